"""Checks of the fields of a configuration that no object made of them would check.

ml_collections compares the type of a value with that of the default: NaN is a number to it, and a tuple holds anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from psld_jax._runtime.checks import check_number, check_seed
from psld_jax._runtime.errors import is_count, shown

#: The largest whole number: more than anything is counted to, and exact as a float.
_MOST = 2**53

#: Whole numbers, or entries that are whole numbers, of at least so many.
_LEAST: dict[str, int] = {
    **dict.fromkeys(("model.ch_mult", "model.attn_resolutions", "bench.nfe", "evaluate.nfe", "tune.nfe"), 1),
    **dict.fromkeys(("atlas.nfe", "atlas.num_samples"), 1),
    **dict.fromkeys(("model.edm.channel_mult", "model.edm.attn_resolutions", "model.unet2d.block_out_channels"), 1),
    **dict.fromkeys(("train.steps", "train.batch_size", "train.accumulate", "train.log_every"), 1),
    **dict.fromkeys(("train.keep_last", "train.num_samples", "sampling.batch_size"), 1),
    **dict.fromkeys(("steer.resample", "steer.jump", "steer.factor", "tune.candidates"), 1),
    **dict.fromkeys(("likelihood.num_images", "likelihood.draws", "likelihood.batch_size", "interpolate.num_paths"), 1),
    **dict.fromkeys(("bench.num_samples", "evaluate.num_samples", "tune.num_targets", "interpolate.num_steps"), 2),
    "atlas.frames": 2,
    **dict.fromkeys(("train.warmup", "train.eval_every", "train.sample_every", "train.checkpoint_every"), 0),
    **dict.fromkeys(("train.keep_every", "train.eval_images", "evaluate.num_kept", "evaluate.num_reference"), 0),
    **dict.fromkeys(("model.n_classes", "model.num_labels", "model.edm.num_heads", "steer.labels"), 0),
    **dict.fromkeys(("tune.gradient_steps", "tune.learning.jacobian_batches", "tune.learning.steps"), 0),
    **dict.fromkeys((f"tune.learning.{name}" for name in ("num_samples", "batch_size", "iterations", "history")), 1),
}

#: Numbers that are at least, or above, 0; others may be any finite number here.
_NOT_NEGATIVE = (
    *("steer.guidance", "steer.weight", "steer.noise_std", "steer.guidance_rescale", "steer.momentum_decay"),
    *("steer.clip", "steer.clip_percentile", "steer.null_weight", "sampler.t_start"),
    *("model.data_std", "tune.learning.distance", "tune.learning.soft"),
)
_POSITIVE = (
    *("model.bandwidth", "steer.blur", "steer.t_start", "sampler.rho", "sampler.rtol", "sampler.atol"),
    *("likelihood.rtol", "likelihood.atol", "interpolate.rtol", "interpolate.atol", "train.adam_eps"),
    *("train.noise_std", "atlas.tolerance"),
)
#: Numbers of which infinity is no bound.
_UNBOUNDED = ("model.edm.sigma_max", "sampler.hyper.sigma_max", "sampler.hyper.S_max")

#: Tuples of numbers and of names; every other one is of whole numbers, and in ``_LEAST``, or has a check of its own.
_OF_NUMBERS = (
    *("model.fir_kernel", "model.edm.resample_filter", "sampler.sigmas", "sampler.timesteps"),
    *("sde.alphas_cumprod", "steer.interval", "steer.sigma_interval"),
)
_OF_NAMES = (
    *("bench.samplers", "bench.grids", "evaluate.samplers", "tune.samplers", "tune.learning.free", "program.platforms"),
    "atlas.samplers",
    *("model.unet2d.down_block_types", "model.unet2d.up_block_types"),
)
#: Tuples that something is done for each entry of.
_NOT_EMPTY = (
    *("bench.samplers", "bench.grids", "bench.nfe", "evaluate.samplers", "evaluate.nfe", "evaluate.seeds"),
    *("tune.samplers", "tune.nfe", "tune.learning.free", "atlas.samplers", "atlas.nfe"),
)


def check_fields(config: Any) -> None:
    """Check every field of a configuration by itself: finite numbers, bounds of counts, what a tuple holds.

    Raises:
      ValueError: for the first field that is wrong, by its full name.
    """
    for section in sorted(config):
        _check(section, config[section])


def _check(name: str, value: Any) -> None:
    if isinstance(value, ConfigDict):
        for key in sorted(value):
            _check(f"{name}.{key}", value[key])
    elif isinstance(value, tuple):
        _check_tuple(name, value)
    elif name == "seed":
        check_seed(value, "config.seed")
    elif isinstance(value, int) and not isinstance(value, bool):
        _check_whole(name, value, value)
    elif isinstance(value, float):
        _check_number(name, value)


def _check_tuple(name: str, entries: tuple[Any, ...]) -> None:
    if name in _NOT_EMPTY and not entries:
        raise ValueError(f"config.{name}=() must not be empty")
    check = _TUPLES.get(name)
    for entry in entries:
        if check is not None:
            check(name, entry)
        elif name in _OF_NAMES:
            if not isinstance(entry, str) or not entry:
                raise ValueError(f"config.{name}={shown(entries)} must hold names")
        elif name in _OF_NUMBERS:
            check_number(f"an entry of config.{name}", entry)
        elif name in _LEAST:
            _check_whole(name, entry, entries)


def _check_whole(name: str, number: Any, value: Any) -> None:
    least = _LEAST.get(name, -_MOST)
    if isinstance(number, (int, np.integer)) and is_count(number, least) and number <= _MOST:
        return
    bound = f" >= {least}" if least > -_MOST and not (is_count(number) and number > _MOST) else " of at most 2**53"
    kind = "whole numbers" if isinstance(value, tuple) else "an integer"
    raise ValueError(f"config.{name}={shown(value)} must {'hold' if isinstance(value, tuple) else 'be'} {kind}{bound}")


def _check_number(name: str, value: float) -> None:
    if name in _UNBOUNDED and value == np.inf:
        return
    low = 0 if name in (*_POSITIVE, *_NOT_NEGATIVE) else -np.inf
    check_number(f"config.{name}", value, low, strict=name in _POSITIVE)


def _check_published(name: str, entry: Any) -> None:
    known = isinstance(entry, (tuple, list)) and len(entry) == 3 and isinstance(entry[0], str)
    if not known or not is_count(entry[1]):
        raise ValueError(f"config.{name}: {shown(entry)} must be a sampler, its nfe and a distance, ('EM', 50, 30.81)")
    check_number(f"config.{name}: the distance of {entry[0]!r}", entry[2], 0)


def _check_interval(name: str, entry: Any) -> None:
    known = isinstance(entry, (tuple, list)) and len(entry) == 4 and all(is_count(count) for count in entry[2:])
    if not known:
        raise ValueError(f"config.{name}: {shown(entry)} must be (sigma_min, sigma_max, steps, repeats)")
    for number in entry[:2]:
        check_number(f"config.{name}: a noise level", number, 0, strict=True)


def _check_seed(name: str, entry: Any) -> None:
    check_seed(entry, f"an entry of config.{name}")


def _check_size(name: str, entry: Any) -> None:
    if not is_count(entry):
        raise ValueError(f"config.{name} must hold whole numbers >= 1, got {shown(entry)}")


_TUPLES: dict[str, Callable[[str, Any], None]] = {
    "evaluate.published": _check_published,
    "evaluate.seeds": _check_seed,
    "sampler.hyper.intervals": _check_interval,
    "model.image_size": _check_size,
    "model.edm.image_size": _check_size,
    "model.unet2d.sample_size": _check_size,
}
