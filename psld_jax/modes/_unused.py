"""Lines about fields that were set and have no effect in a mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console

from psld_jax import build, integrators
from psld_jax._runtime.errors import shown
from psld_jax.checkpoints.directory import flatten
from psld_jax.sampling.adaptive import SOLVERS

Condition = tuple[str, Callable[[Any], bool]]

_MIXED: Condition = ("config.steer.labels or negative", lambda c: bool(c.steer.labels or c.steer.negative))
_GUIDED: Condition = (
    "config.steer.labels, negative, or an operator with a gradient (not 'conjugate' alone)",
    lambda c: build.has_guidance(c.steer),
)
_MASK: Condition = ("config.steer.mask", lambda c: bool(c.steer.mask))
_KNOWN: Condition = ("config.steer.operator to be none of mask", lambda c: c.steer.operator != "mask")
_OPERATOR: Condition = ("config.steer.operator", lambda c: bool(c.steer.operator))
_ADAPTIVE: Condition = (f"config.sampler.name, one of {', '.join(SOLVERS)}", lambda c: c.sampler.name in SOLVERS)
_POWER: Condition = (
    "config.sampler.grid, one of auto, power, edm, karras",
    lambda c: c.sampler.grid in ("auto", "power", "edm", "karras"),
)
_STEPS: Condition = ("config.sampler.sigmas and timesteps being empty", lambda c: not _own_steps(c))
_FIXED: Condition = ("a sampler with a grid", lambda c: c.sampler.name not in SOLVERS)
_INCEPTION: Condition = ("config.evaluate.features='inception'", lambda c: c.evaluate.features == "inception")
_COSINE: Condition = ("config.train.schedule='cosine'", lambda c: c.train.schedule == "cosine")
_AVERAGE: Condition = ("config.train.ema_decay", lambda c: c.train.ema_decay > 0)

_SAMPLE: dict[str, tuple[Condition, ...]] = {
    "sampler.nfe": (_STEPS, _FIXED),
    "sampler.grid": (_STEPS, _FIXED),
    "sampler.t_end": (_STEPS,),
    "sampler.t_start": (_FIXED,),
    "sampler.rho": (_POWER, _STEPS, _FIXED),
    "sampler.rtol": (_ADAPTIVE,),
    "sampler.atol": (_ADAPTIVE,),
    "sampler.max_steps": (_ADAPTIVE,),
    "model.bandwidth": (("config.model.name='mixture'", lambda c: c.model.name == "mixture"),),
}
_STEER: dict[str, tuple[Condition, ...]] = {
    "steer.guidance": (_MIXED,),
    # steer.t_start is that of a measurement.
    "sampler.t_start": (_FIXED, ("config.steer.operator being empty", lambda c: not c.steer.operator)),
    **dict.fromkeys(("steer.interval", "steer.sigma_interval", "steer.guidance_schedule"), (_GUIDED,)),
    **dict.fromkeys(("steer.guidance_rule", "steer.guidance_rescale"), (_GUIDED,)),
    **dict.fromkeys(
        ("steer.clip_percentile", "steer.clip_noise"), (("config.steer.clip", lambda c: c.steer.clip != 0),)
    ),
    "steer.momentum_decay": (("config.steer.momentum", lambda c: c.steer.momentum != 0),),
    "steer.fresh": (_MASK, _KNOWN),
    "steer.resample": (_MASK, _KNOWN),
    "steer.jump": (_MASK, _KNOWN),
    "steer.factor": (("config.steer.operator='downsample'", lambda c: c.steer.operator == "downsample"),),
    "steer.blur": (("config.steer.operator='blur'", lambda c: c.steer.operator == "blur"),),
    "steer.noise_std": (_OPERATOR,),
    "steer.posterior": (_OPERATOR,),
    "steer.weight": (_OPERATOR,),
    "steer.t_start": (_OPERATOR,),
    "steer.null_weight": (
        _OPERATOR,
        ("config.steer.posterior='conjugate'", lambda c: c.steer.posterior == "conjugate"),
    ),
    "sampling.levels": (("config.sampling.save", lambda c: bool(c.sampling.save)),),
}
#: Mode -> field -> what it needs to have an effect.
NEEDS: dict[str, dict[str, tuple[Condition, ...]]] = {
    "sample": _SAMPLE | _STEER,
    "program": _SAMPLE,
    "evaluate": {"evaluate.inception": (_INCEPTION,), "evaluate.resize": (_INCEPTION,)},
    "train": {
        "train.lr_final": (_COSINE,),
        "train.ema_warmup": (_AVERAGE,),
        **dict.fromkeys(
            ("train.noise_mean", "train.noise_std"),
            (("config.train.noise='log_normal'", lambda c: c.train.noise == "log_normal"),),
        ),
    },
}


def tell_unused(config: Any, mode: str, console: Console) -> None:
    """Print a line for each field that differs from its default and has no effect in this mode."""
    for line in unused(config, mode):
        console.print(line)


def unused(config: Any, mode: str) -> list[str]:
    """Return the lines. There are none for a configuration all of whose fields count."""
    default = build.load_config("default")
    values, defaults = (flatten(c.to_dict(), separator=".") for c in (config, default))
    lines = []
    for name, conditions in NEEDS.get(mode, {}).items():
        missing = [what for what, holds in conditions if not holds(config)]
        if missing and values[name] != defaults[name]:
            lines.append(f"config.{name}={shown(values[name])} has no effect: it needs {missing[0]}")
    if mode in ("sample", "program"):
        lines += _hyper(config.sampler.name, config.sampler.hyper, default.sampler.hyper)
    return lines


def _hyper(sampler: str, hyper: Any, default: Any) -> list[str]:
    """Return those hyper-parameters without a default that the sampler does not have."""
    told = {name: hyper[name] for name in default if default[name] is None and hyper.get(name) is not None}
    known = integrators.get(sampler).hyper if told and sampler not in ("auto", *SOLVERS) else {}
    return [
        f"config.sampler.hyper.{name}={shown(value)} has no effect: it is none of {sampler!r}"
        for name, value in told.items()
        if name not in known
    ]


def _own_steps(config: Any) -> bool:
    return bool(config.sampler.sigmas or config.sampler.timesteps)
