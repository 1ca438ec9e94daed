"""Descending time grids ``T = t_0 > t_1 > ... > t_N = t_end``, float64 ``[N + 1]``, forward time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from psld_jax._runtime.checks import MIN_TIME, check_number
from psld_jax._runtime.errors import check_choice, check_counts, is_count, not_a_count, shown
from psld_jax.sde.discrete import Discrete

if TYPE_CHECKING:
    from psld_jax.integrators import Integrator
    from psld_jax.sde import LinearSDE


# A noise level beyond which there is no signal, and the level that it counts as in grids of levels: EDM's largest.
_NO_SIGNAL, _INSTEAD = 1e6, 80.0


def validate(grid: Any) -> np.ndarray:
    """Return ``grid`` as float64 ``[N + 1]``, or say what is wrong with it.

    Raises:
      ValueError: unless it is one-dimensional, of at least two points, finite, strictly descending, and in
        ``(0, 1]``.
    """
    given = grid
    try:
        grid = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"grid={shown(given)} must be at least 2 falling times, as a list or an array") from None
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"a grid is a one-dimensional array of at least 2 times, got shape {grid.shape}")
    if not np.all(np.isfinite(grid)):
        raise ValueError(f"grid times must be finite, got {grid}")
    if grid[-1] <= 0 or grid[0] > 1:
        raise ValueError(f"grid times must lie in (0, 1] (forward time, noise first), got {grid[0]} to {grid[-1]}")
    if grid[-1] < MIN_TIME:
        raise ValueError(f"the last time of a grid (t_end) must be at least {MIN_TIME:g}, got {grid[-1]:g}")
    if not np.all(np.diff(grid) < 0):
        i = int(np.argmax(np.diff(grid) >= 0))
        raise ValueError(
            "a grid must be strictly descending (forward time, noise first, data last), but "
            f"grid[{i}] = {grid[i]} is followed by {grid[i + 1]}; reverse it with grid[::-1] if it ascends"
        )
    return grid


def _checked(n_steps: Any, t_end: Any, t_start: Any) -> tuple[int, float, float]:
    """Return the three as numbers of Python: a time of numpy in float32 would make all times of the grid so."""
    check_counts(n_steps=n_steps)
    t_end, t_start = check_number("t_end", t_end), check_number("t_start", t_start)
    if not 0 < t_end < t_start <= 1:
        raise ValueError(f"need 0 < t_end < t_start <= 1, got t_end={t_end}, t_start={t_start}")
    if t_end < MIN_TIME:
        raise ValueError(f"t_end={t_end:g} must be at least {MIN_TIME:g}")
    return int(n_steps), t_end, t_start


def uniform(n_steps: int, t_end: float = 1e-3, t_start: float = 1.0) -> np.ndarray:
    """Equal steps in ``t``, float64 ``[n_steps + 1]``.

    Raises:
      ValueError: unless ``n_steps`` is a whole number of at least 1, and ``0 < t_end < t_start <= 1``.
    """
    n_steps, t_end, t_start = _checked(n_steps, t_end, t_start)
    return np.linspace(t_start, t_end, n_steps + 1)


def quadratic(n_steps: int, t_end: float = 1e-3, t_start: float = 1.0) -> np.ndarray:
    """``t_i = t_end + (T - t_end)(1 - i/N)^2``, the original PSLD code's quadratic striding.

    Float64 ``[n_steps + 1]``.

    Raises:
      ValueError: unless ``n_steps`` is a whole number of at least 1, and ``0 < t_end < t_start <= 1``.
    """
    n_steps, t_end, t_start = _checked(n_steps, t_end, t_start)
    return t_end + (t_start - t_end) * np.linspace(1.0, 0.0, n_steps + 1) ** 2


def power(n_steps: int, t_end: float = 1e-3, t_start: float = 1.0, rho: float = 7.0) -> np.ndarray:
    """Equal steps in ``t^(1/rho)`` (Karras et al., 2022, eq. 5): larger ``rho``, finer near the data.

    Float64 ``[n_steps + 1]``.

    Raises:
      ValueError: unless ``n_steps`` is a whole number of at least 1, and ``0 < t_end < t_start <= 1``,
        and ``rho > 0``.
    """
    n_steps, t_end, t_start = _checked(n_steps, t_end, t_start)
    rho = check_number("rho", rho, 0, strict=True)
    grid = np.linspace(t_start ** (1 / rho), t_end ** (1 / rho), n_steps + 1) ** rho
    grid[0], grid[-1] = t_start, t_end
    return grid


def log_snr(n_steps: int, t_end: float = 1e-3, t_start: float = 1.0, *, sde: LinearSDE | None = None) -> np.ndarray:
    """Equal steps in ``log SNR_t``, ``SNR_t = mu_t^T Sigma_t^{-1} mu_t``: equal ratios of noise levels.

    Where there is no signal at ``t_start``, its noise level counts as 80. Float64 ``[n_steps + 1]``.

    Raises:
      ValueError: unless ``n_steps`` is a whole number of at least 1, and ``0 < t_end < t_start <= 1``,
        and ``sde`` is given.
    """
    n_steps, t_end, t_start = _checked(n_steps, t_end, t_start)
    if sde is None:
        raise ValueError("the log_snr grid depends on the SDE: pass sde=...")
    first, last = _levels(sde, t_start, t_end)
    return _at_levels(sde, np.exp(np.linspace(np.log(first), np.log(last), n_steps + 1)), t_start, t_end)


def edm(
    n_steps: int, t_end: float = 1e-3, t_start: float = 1.0, rho: float = 7.0, *, sde: LinearSDE | None = None
) -> np.ndarray:
    """Equal steps in ``sigma^(1/rho)``, ``sigma`` the noise level of ``sde`` (Karras et al., 2022, eq. 5).

    ``sigma_i = (sigma_max^(1/rho) + i / N (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho``, and the times of these. The
    step to 0 that follows there is the denoising step here. Without ``sde`` noise is taken to grow with ``t``: then it
    is :func:`power`. Where there is no signal at ``t_start``, its level counts as 80. Float64 ``[n_steps + 1]``.

    Raises:
      ValueError: as :func:`power`.
    """
    if sde is None:
        return power(n_steps, t_end, t_start, rho)
    n_steps, t_end, t_start = _checked(n_steps, t_end, t_start)
    rho = check_number("rho", rho, 0, strict=True)
    first, last = _levels(sde, t_start, t_end)
    return _at_levels(sde, np.linspace(first ** (1 / rho), last ** (1 / rho), n_steps + 1) ** rho, t_start, t_end)


def vp(n_steps: int, t_end: float = 1e-3, t_start: float = 1.0, *, sde: LinearSDE | None = None) -> np.ndarray:
    """The quadratic grid of a VP diffusion, at its noise levels: equal steps in ``u^(1/2)``, whatever the path.

    ``u = sqrt(log(1 + sigma^2))`` is the time of a VP diffusion whose rate grows in proportion to time. Where there is
    no signal at ``t_start``, its noise level counts as 80. Float64 ``[n_steps + 1]``.

    Raises:
      ValueError: as :func:`log_snr`.
    """
    n_steps, t_end, t_start = _checked(n_steps, t_end, t_start)
    if sde is None:
        raise ValueError("the vp grid depends on the SDE: pass sde=...")
    first, last = (np.log1p(level**2) ** 0.25 for level in _levels(sde, t_start, t_end))
    return _at_levels(sde, np.sqrt(np.expm1(np.linspace(first, last, n_steps + 1) ** 4)), t_start, t_end)


def _levels(sde: LinearSDE, t_start: float, t_end: float) -> tuple[float, float]:
    first, last = (float(sde.sigma(np.float64(t))) for t in (t_start, t_end))
    return (first if first < _NO_SIGNAL else max(_INSTEAD, 10 * last)), last


def _at_levels(sde: LinearSDE, levels: np.ndarray, t_start: float, t_end: float) -> np.ndarray:
    """Return the times of noise levels. The two ends stay as they are."""
    return np.concatenate([[t_start], sde.time(levels[1:-1]), [t_end]])


def from_sigmas(sde: LinearSDE, sigmas: Any) -> np.ndarray:
    """Return the times with these falling noise levels, float64 ``[N + 1]``.

    A last 0, as k-diffusion's lists have it, is left out: the step to it is the denoising step.

    Raises:
      ValueError: for levels that do not fall, or that ``sde`` does not have.
    """
    levels = _given("sigmas", sigmas)
    levels = levels[:-1] if len(levels) > 2 and levels[-1] == 0 else levels
    return validate(np.minimum(sde.time(levels), 1.0))


def from_timesteps(sde: LinearSDE, timesteps: Any) -> np.ndarray:
    """Return these falling times, float64 ``[N + 1]``. Of a discrete schedule they are the times of these levels.

    Raises:
      ValueError: for times that do not fall, or lie outside of (0, 1] (levels: 0 to N - 1).
    """
    times = _given("timesteps", timesteps)
    return validate(sde.time_of(times) if isinstance(sde, Discrete) else times)


def _given(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={shown(values)} must be at least two numbers that fall") from None
    if array.ndim != 1 or len(array) < 2 or not np.all(np.diff(array) < 0):
        raise ValueError(f"{name}={np.array2string(array, threshold=6)} must be at least two numbers that fall")
    return array


def resample(times: Any, n_steps: int) -> np.ndarray:
    """A grid of ``n_steps`` steps shaped like ``times``: ``log t`` over ``i / N`` by monotone cubic interpolation.

    Float64 ``[n_steps + 1]``.

    Raises:
      ValueError: for times that :func:`validate` refuses, or ``n_steps`` that is no whole number of at least 1.
    """
    times = validate(times)
    check_counts(n_steps=n_steps)
    n_steps = int(n_steps)
    if n_steps == len(times) - 1:
        return times
    shape = PchipInterpolator(np.linspace(0, 1, len(times)), np.log(times))
    grid = np.exp(shape(np.linspace(0, 1, n_steps + 1)))
    grid[0], grid[-1] = times[0], times[-1]
    return grid


_GRIDS: dict[str, Callable[..., np.ndarray]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "power": power,
    "log_snr": log_snr,
    "edm": edm,
    "karras": edm,  # as diffusers call it
    "vp": vp,
}


def options_of(name: str, sde: LinearSDE, rho: float) -> dict[str, Any]:
    """Return what the grid of that name takes of a diffusion and ``rho``, as keyword arguments.

    Raises:
      ValueError: for an unknown name.
    """
    known = inspect.signature(get(name)).parameters
    return {key: value for key, value in (("sde", sde), ("rho", rho)) if key in known}


def available() -> tuple[str, ...]:
    """Return the names of all grids."""
    return tuple(_GRIDS)


def get(name: str) -> Callable[..., np.ndarray]:
    """Return the grid function of that name: it takes steps and options, and gives float64 ``[n_steps + 1]``.

    Raises:
      ValueError: for an unknown name; it lists the known ones.
    """
    check_choice("grid", name, _GRIDS)
    return _GRIDS[name]


def for_budget(
    grid: str | Sequence[float] | np.ndarray,
    integrator: Integrator,
    nfe: int,
    denoise: bool | str = True,
    **options: Any,
) -> np.ndarray:
    """Return the largest grid on which ``integrator`` needs at most ``nfe`` evaluations, float64 ``[N + 1]``.

    Args:
      grid: one of :func:`available`, or descending times, which are taken through :func:`resample`.
      integrator: from ``psld_jax.integrators.get``.
      nfe: the budget, counting the final denoising evaluation if ``denoise``.
      options: passed to a grid that is named (``t_end``, ``t_start``, ``rho``, ``sde``).

    Raises:
      ValueError: if the budget does not cover a single step, or ``t_end`` is not the end of the given times.
    """
    fn = get(grid) if isinstance(grid, str) else None
    cost, once, last = integrator.nfe_per_step, integrator.nfe_once, bool(denoise)
    least = integrator.least_nfe(denoise)
    if not is_count(nfe, 0):
        raise not_a_count("nfe", nfe, least)
    if not is_count(nfe, least):
        parts = [f"one step costs {cost}", f"its restarts {once}" * bool(once), "the denoising step 1" * last]
        raise ValueError(
            f"nfe={nfe} is too small for {integrator.name!r}: {' and '.join(filter(None, parts))}; "
            f"use an integer nfe >= {least}"
        )
    n_steps = (int(nfe) - once - last) // cost
    if fn is not None:
        return fn(n_steps, **options)
    times = validate(grid)
    if not np.isclose(options.get("t_end", times[-1]), times[-1], rtol=1e-9):
        raise ValueError(f"t_end={options['t_end']}, but the given times end at {times[-1]}; pass t_end={times[-1]}")
    return resample(times, n_steps)
