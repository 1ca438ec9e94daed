"""The tuner's search: it tries many settings on few samples, the best on more, then each part by itself."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from psld_jax import integrators
from psld_jax.sampling.settings import Setting
from psld_jax.sde import LinearSDE
from psld_jax.tuning._evaluate import Score

#: Grids that are tried, as (name, rho).
GRIDS = (("uniform", 7.0), ("quadratic", 7.0), ("power", 3.0), ("power", 5.0), ("log_snr", 7.0), ("vp", 7.0))

#: Noise levels that grids start at, beside that of ``t = 1``, see ``Setting.t_start``.
_FIRST_LEVELS = (2.0, 4.0, 8.0, 16.0, 32.0)

#: Values of the hyper-parameters that are tried. A hyper-parameter that is not here keeps its default.
VALUES: dict[str, tuple[Any, ...]] = {
    "prediction": ("eps", "eps_r", "data"),
    "order": (1, 2, 3, 4),
    "variable": ("t", "log_t", "log_snr", "vp_time"),
    "lam": (-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
    "lam_s": (0.0, 0.25, 0.5, 1.0, 2.0),
    "eta": (0.0, 0.25, 0.5, 0.75, 1.0),
}
#: Those that are numbers: between the listed values there are others, and the best is looked for.
CONTINUOUS = ("lam", "lam_s", "eta")

#: Of the settings tried on few samples, this part is tried on four times as many.
_KEEP = 0.25

Trial = Callable[[Setting, int], Score]
"""``trial(setting, n)``: the score on ``n`` samples; the search never asks twice what it knows."""


def applicable(names: Iterable[str], sde: LinearSDE) -> tuple[str, ...]:
    """Return the canonical names of the samplers that work for ``sde``; ``("all",)`` means every one.

    Raises:
      ValueError: for an unknown name, or if none is left.
    """
    names = tuple(names)
    known = integrators.available() if names == ("all",) else [integrators.get(name).name for name in names]
    usable = tuple(name for name in known if integrators.get(name).applies_to(sde))
    if not usable:
        raise ValueError(f"none of the samplers {', '.join(known)} works for {sde!r}")
    return usable


def first_times(sde: LinearSDE, t_end: float) -> tuple[float, ...]:
    """Return the times where a grid may start, latest first, rounded: 1 and those of some noise levels."""
    lowest, highest = (float(sde.sigma(np.float64(t))) for t in (t_end, 1.0))
    levels = [sigma for sigma in reversed(_FIRST_LEVELS) if 2 * lowest < sigma < highest / 2]
    return 1.0, *(float(f"{sde.time(np.float64(sigma)):.4g}") for sigma in levels)


def space(sampler: str, starts: Sequence[float] = (1.0,)) -> list[Setting]:
    """Return every combination of a grid, its start and listed values of the hyper-parameters that ``sampler`` has.

    A deterministic sampler stays one: noise of its own has no place in the error to the ODE.
    """
    integrator = integrators.get(sampler)
    hyper = [name for name in integrator.hyper if name in VALUES and (integrator.stochastic or name != "eta")]
    settings = []
    for grid, rho, start in ((grid, rho, start) for grid, rho in GRIDS for start in starts):
        for values in itertools.product(*(VALUES[name] for name in hyper)):
            setting = Setting(sampler, grid, rho, dict(zip(hyper, values, strict=True)), t_start=start)
            if _valid(setting):
                settings.append(setting)
    return settings


def _valid(setting: Setting) -> bool:
    """Tell whether these values go with the sampler: ancestral sampling has no third order."""
    try:
        setting.integrator()
    except ValueError:
        return False
    return True


def search(
    sampler: str,
    trial: Trial,
    *,
    num_samples: int,
    candidates: int,
    seed: int,
    inherited: Iterable[Setting] = (),
    grids: Sequence[tuple[float, ...]] = (),
    starts: Sequence[float] = (1.0,),
) -> Setting:
    """Find the best setting of ``sampler``: successive halving (Jamieson & Talwalkar, 2016), then part by part.

    Args:
      sampler: canonical name.
      trial: runs a setting.
      num_samples: of the last round; the first has a quarter of it.
      candidates: at most so many settings in the first round, drawn from :func:`space`.
      seed: of the drawing.
      inherited: settings to try in any case, such as those that were good for another budget.
      grids: times of the right number that are tried beside :data:`GRIDS`, first with default hyper-parameters. Where
        they do not start at 1, the state is led to their start.
      starts: times where the others start, see :func:`first_times`.
    """
    pool = space(sampler, starts)
    if len(pool) > candidates:
        rng = np.random.default_rng([seed, zlib.crc32(sampler.encode())])
        pool = [pool[i] for i in sorted(rng.choice(len(pool), candidates, replace=False))]
    defaults = {name: value for name, value in integrators.get(sampler).hyper.items() if name in pool[0].hyper}
    given = [_on(Setting(sampler, hyper=defaults), times) for times in grids]
    # What models that were not tuned have is good for most of them, and a drawing would seldom have it.
    known = defaults | ({"variable": "vp_time"} if "variable" in defaults else {})
    given += [Setting(sampler, "vp", hyper=known, t_start=start) for start in starts]
    pool += [setting for setting in (*inherited, *given) if setting not in pool]
    few = max(num_samples // 4, 1)
    ranked = sorted(pool, key=lambda setting: trial(setting, few).loss)
    best = min(ranked[: max(int(_KEEP * len(ranked)), 1)], key=lambda setting: trial(setting, num_samples).loss)
    for part in ("grid", "t_start", *best.hyper):
        if part in CONTINUOUS:
            others = _numbers(best, part, trial, num_samples)
        else:
            others = _alternatives(best, part, grids, starts)
        best = min([best, *others], key=lambda setting: trial(setting, num_samples).loss)
    return best


def _with(setting: Setting, name: str, value: Any) -> Setting:
    return dataclasses.replace(setting, hyper={**setting.hyper, name: value})


def _on(setting: Setting, times: tuple[float, ...]) -> Setting:
    """Return the setting on a grid of times; the state is led to the first of them."""
    return dataclasses.replace(setting, grid=times, t_start=times[0])


def _alternatives(
    setting: Setting, part: str, grids: Sequence[tuple[float, ...]], starts: Sequence[float]
) -> Iterator[Setting]:
    """Return the setting with other values of one part. Times that are given have their own start."""
    if part == "grid":
        yield from (dataclasses.replace(setting, grid=grid, rho=rho) for grid, rho in GRIDS)
        yield from (_on(setting, times) for times in grids)
    elif part == "t_start":
        if isinstance(setting.grid, str):
            yield from (dataclasses.replace(setting, t_start=start) for start in starts)
    else:
        yield from filter(_valid, (_with(setting, part, value) for value in VALUES.get(part, ())))


def _numbers(setting: Setting, part: str, trial: Trial, num_samples: int, iterations: int = 6) -> Iterator[Setting]:
    """Return the setting with the best number that Brent's method finds between the neighbours of the present one."""
    values, now = np.array(VALUES[part]), setting.hyper[part]
    low, high = values[values < now].max(initial=values[0]), values[values > now].min(initial=values[-1])

    def loss(number: float) -> float:
        return float(np.log(min(trial(_with(setting, part, float(number)), num_samples).loss, 1e9)))

    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"maxiter": iterations})
    yield _with(setting, part, float(found.x))
