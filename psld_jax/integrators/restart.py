"""Restart sampling adds noise again, and samples a part of the trajectory again (Xu et al., 2023)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from psld_jax._runtime.checks import check_number
from psld_jax._runtime.errors import is_count, shown
from psld_jax.integrators import base as registry
from psld_jax.integrators._noise_frame import time_between
from psld_jax.integrators.base import MAX_PAST, Integrator, Place, Stage, register
from psld_jax.sde import LinearSDE, cholesky

Interval = tuple[float, float, int, int]


def _base(base: Any) -> Integrator:
    """Return the base sampler; raise a ``ValueError`` for what names none."""
    parts: tuple[Any, ...] = tuple(base) if isinstance(base, tuple | list) and base else (base,)
    name, *pairs = parts
    known = isinstance(name, str) and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs)
    if not known:
        raise ValueError(
            f"base={shown(base)} must be the name of an integrator, or with hyper-parameters ('ipndm', ('order', 3))"
        )
    return _made(name, tuple(map(tuple, pairs)), registry.function(name))


@functools.lru_cache(64)
def _made(name: Any, pairs: tuple[tuple[str, Any], ...], fn: Any) -> Integrator:
    # The function is not used: in a notebook, another one may get the same name.
    integrator = registry.get(name, **dict(pairs))
    if integrator.name == "restart":
        raise ValueError("base='restart' restarts itself; name another integrator")
    return integrator


def _checked(intervals: Any) -> tuple[Interval, ...]:
    """Return ``intervals`` as numbers; raise a ``ValueError`` that shows the one that is none."""
    if not isinstance(intervals, tuple | list):
        raise ValueError(f"intervals={shown(intervals)} must be a tuple of (sigma_min, sigma_max, steps, repeats)")
    for row in intervals:
        right = isinstance(row, tuple | list) and len(row) == 4
        right = right and all(isinstance(x, int | float) and np.isfinite(x) for x in row)
        if not (right and 0 < row[0] < row[1] and is_count(row[2]) and is_count(row[3])):
            raise ValueError(
                f"intervals holds {row!r}; each is (sigma_min, sigma_max, steps, repeats), 0 < sigma_min < sigma_max, "
                "with counts of at least 1"
            )
    return tuple((low, high, int(steps), int(times)) for low, high, steps, times in intervals)


def _spaced(sde: LinearSDE, top: float, s: float, steps: int, rho: float) -> np.ndarray:
    """Return times from ``top`` to ``s`` in equal steps of ``sigma^(1/rho)``, ``[steps + 1]``."""
    levels = np.linspace(float(sde.sigma(top)) ** (1 / rho), float(sde.sigma(s)) ** (1 / rho), steps + 1) ** rho
    return np.array([top, *(time_between(sde, level, top, s) for level in levels[1:-1]), s])


def _again(
    sde: LinearSDE, t: float, s: float, intervals: tuple[Interval, ...] | None, repeats: int, rho: float
) -> list[np.ndarray]:
    """Return the walks, each down to ``s``, that follow the step from ``t`` to ``s``."""
    if intervals is None:
        return [np.array([t, s])] * repeats
    walks: list[np.ndarray] = []
    low, high = float(sde.sigma(s)), float(sde.sigma(t))
    for sigma_min, sigma_max, steps, times in intervals:
        if sigma_max > sde.sigma(1.0):
            most = float(sde.sigma(1.0))
            raise ValueError(f"sigma_max={sigma_max} of an interval is above that of the prior, {most:.6g}")
        if low <= sigma_min < high:
            walks += [_spaced(sde, time_between(sde, sigma_max, 1.0, s), s, steps, rho)] * times
    return walks


def _evaluations(hyper: dict[str, Any]) -> int:
    """Count the evaluations that are made once a run, in the intervals."""
    intervals = () if hyper["intervals"] is None else hyper["intervals"]
    steps = sum(steps * times for _, _, steps, times in _checked(intervals))
    return steps * _base(hyper["base"]).nfe_per_step


def _order(hyper: dict[str, Any]) -> int:
    integrator = _base(hyper["base"])
    return 1 if integrator.multistep and hyper["intervals"] is None else integrator.order


@register("restart", order=_order, once=_evaluations, ode=True, source="Xu et al., 2023")
def restart(
    sde: LinearSDE,
    t: float,
    s: float,
    past: tuple[float, ...],
    place: Place,
    *,
    base: Any = "edm_heun",
    intervals: Any = None,
    repeats: int = 1,
    S_noise: float = 1.0,
    interval_rho: float = 7.0,
) -> list[Stage]:
    """Restart: when the base sampler has reached ``s``, noise is added, and the sampler goes down to ``s`` again.

    ``z_top = Psi(top, s) z_s + noise`` (for K = 1, ``x / alpha`` gains noise of variance ``sigma_top^2 - sigma_s^2``),
    then the base sampler from ``top`` to ``s``, and this several times: errors of earlier steps shrink with each (Xu et
    al., NeurIPS 2023, algorithm 1). Without ``intervals`` every step is walked ``repeats + 1`` times.
    Weak order 2, NFE 4, one draw with the default base; in general the order of the base (1 if it is multistep, as it
    starts anew in each step). Any K that the base takes.

    Args:
      base: name of an integrator, or with hyper-parameters ``("ipndm", ("order", 3))``.
      intervals: ``(sigma_min, sigma_max, steps, repeats)`` each: when the grid first comes to ``sigma_min`` or below,
        so many times back to ``sigma_max`` and down in so many steps. Their evaluations are part of the budget. Their
        steps do not get shorter with those of the grid.
      repeats: without intervals, how often each step is walked again.
      S_noise: factor of the noise.
      interval_rho: steps in an interval are equal in ``sigma^(1 / interval_rho)``.

    Raises:
      ValueError: for an unknown base, intervals that are none, counts below 1, or a negative ``S_noise``.
    """
    integrator = _base(base)
    ways = None if intervals is None else _checked(intervals)
    if not is_count(repeats):
        raise ValueError(f"repeats={repeats!r} must be an integer >= 1")
    scale, rho = check_number("S_noise", S_noise, 0.0), check_number("interval_rho", interval_rho, 1.0)
    walks = _again(sde, t, s, ways, repeats, rho)
    # What a multistep base remembers when this step begins: the latest walk's times, if there was one since.
    nodes: list[float] = []
    for u, v in zip((*past[::-1], t)[:-1], (*past[::-1], t)[1:], strict=True):
        latest = _again(sde, u, v, ways, repeats, rho)[-1:]
        nodes = list(latest[0][:-1]) if latest else [*nodes, u]
    stages = integrator.stages(sde, t, s, nodes[::-1][:MAX_PAST], place)
    for walk in walks:
        top, nodes = float(walk[0]), []
        stages.append(Stage(sde.transition(top, s), R=scale * cholesky(sde.noise_cov(top, s))))
        for u, v in zip(walk[:-1], walk[1:], strict=True):
            stages += integrator.stages(sde, float(u), float(v), nodes[::-1][:MAX_PAST], place)
            nodes.append(float(u))
    return stages
