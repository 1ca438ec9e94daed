"""Weights of guidance as functions of time: limited intervals, schedules, and those of CFG++.

A guide mixes or adds with a weight ``w(t)``. One value of it, the *neutral* one, costs nothing further: 1 for two
predictions that are mixed, 0 for a gradient that is added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psld_jax import blocks
from psld_jax._runtime.checks import check_number
from psld_jax._runtime.errors import check_choice, shown
from psld_jax.integrators.tableau import Tableau
from psld_jax.sde import LinearSDE

Array = Any
Schedule = str | Callable[[Array], Array]

#: Weights over time with mean 1 over ``[0, 1]`` (Wang et al., 2024): the later, the more.
SCHEDULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": np.ones_like,
    "linear": lambda t: 2 * (1 - t),
    "cosine": lambda t: 1 + np.cos(np.pi * t),
}
#: How two predictions become one step: mixed in all of it, or in the estimate of the data alone.
RULES = ("cfg", "cfg++")
#: Entries of a curve; larger ones have twice, four times as many, so that few programs are compiled.
_ENTRIES = 1024
#: Of the coefficient of a step, relative: both sides are products of a few numbers in float64.
_ROUNDING = 1e-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weight:
    """``w(t) = base + (scale - base) curve(t)`` in an interval, ``neutral`` outside; :func:`weight_of` makes it.

    Attributes:
      scale: a scalar, float32.
      interval: two times, or ``None`` for all.
      curve: rising times ``[m]`` and factors ``[m]``, float32, linear in between; ``None`` for 1.
      neutral: the weight outside of the interval.
      base: see above.
    """

    scale: Array
    interval: tuple[Array, Array] | None = None
    curve: tuple[Array, Array] | None = None
    neutral: float = dataclasses.field(default=1.0, metadata={"static": True})
    base: float = dataclasses.field(default=1.0, metadata={"static": True})

    @property
    def limited(self) -> bool:
        """Tells whether the weight may be neutral at some times and not at others."""
        return self.interval is not None or self.curve is not None

    def __call__(self, t: Array) -> Array:
        """Return the weight at ``t``, float32, any shape."""
        return self._at(t, jnp)

    def on_host(self, t: np.ndarray) -> np.ndarray:
        """Return the same numbers for ``t [n]``, on the host."""
        return self._at(t, np)

    def _at(self, t: Array, xp: Any) -> Array:
        t = xp.asarray(t, xp.float32)
        value = xp.asarray(self.scale, xp.float32)
        if self.curve is not None:
            value = self.base + (value - self.base) * xp.interp(t, *self.curve).astype(xp.float32)
        if self.interval is not None:
            low, high = self.interval
            value = xp.where((t >= low) & (t <= high), value, xp.float32(self.neutral))
        return xp.broadcast_to(value, t.shape)

    def acts(self, t: np.ndarray) -> np.ndarray:
        """Tell at which of the times ``t [n]`` the weight is not neutral, bool ``[n]``."""
        return self.on_host(t) != np.float32(self.neutral)


def weight_of(
    scale: float | Weight,
    neutral: float = 1.0,
    *,
    interval: tuple[float, float] = (0.0, 1.0),
    schedule: Schedule = "constant",
    table: Tableau | None = None,
) -> Weight:
    """Make ``w(t) = neutral + (scale - neutral) schedule(t)`` in ``interval``, and ``neutral`` outside of it.

    Args:
      scale: a number; a :class:`Weight` is returned as it is.
      neutral: 1 for predictions that are mixed, 0 for gradients.
      interval: two forward times, from 0 to 1 (Kynkaanniemi et al., 2024).
      schedule: ``"constant"``, ``"linear"`` (``2 (1 - t)``), ``"cosine"`` (``1 + cos(pi t)``), or a function of times
        ``[m]`` that returns ``[m]``; it is called on the host, in float64.
      table: of the sampler, at whose times the schedule is taken; without one at 1,023 times, linear in between.

    Raises:
      ValueError: for a scale that is no finite number, an interval that is none, an unknown schedule, or a function
        that returns something else.
    """
    if isinstance(scale, Weight):
        return scale
    if not isinstance(scale, Tracer):
        scale = check_number("scale", scale)
    low, high = check_interval(interval)
    inside = None if (low, high) == (0.0, 1.0) else (jnp.float32(low), jnp.float32(high))
    curve = None
    if schedule_of(schedule) is not SCHEDULES["constant"]:
        times = np.linspace(0.0, 1.0, _ENTRIES - 1) if table is None else table.tau
        curve = _curve(times, _factors(schedule, times))
    return Weight(jnp.asarray(scale, jnp.float32), inside, curve, neutral, neutral)


def check_interval(interval: Any) -> tuple[float, float]:
    """Return ``interval`` as two numbers; raise a ``ValueError`` unless they are times ``0 <= low < high <= 1``."""
    try:
        known = np.shape(interval) == (2,) and 0 <= interval[0] < interval[1] <= 1
    except (TypeError, ValueError):
        known = False
    if not known:
        raise ValueError(f"interval={shown(interval)} must be two times 0 <= low < high <= 1")
    return float(interval[0]), float(interval[1])


def interval_of_sigmas(sde: LinearSDE, sigmas: Any) -> tuple[float, float]:
    """Return the times ``(low, high)`` between which the noise level ``sde.sigma(t)`` lies between two ``sigmas``.

    A level below the lowest, 0 among them, is time 0; one above the highest, or infinity, is time 1.

    Raises:
      ValueError: unless ``sigmas`` are two numbers ``0 <= low < high``, and some level of ``sde`` lies in between.
    """
    try:
        low, high = (float(value) for value in sigmas)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not 0 <= low < high:
        raise ValueError(f"sigma_interval={shown(sigmas)} must be two noise levels 0 <= low < high, e.g. (0.2, 2.0)")
    most = float(sde.sigma(np.float64(1.0)))
    if low >= most:
        raise ValueError(f"sigma_interval={shown(sigmas)} lies above all noise levels of {sde!r}, at most {most:.4g}")
    least = float(sde.sigma(np.float64(1e-9)))
    if high <= least:
        raise ValueError(f"sigma_interval={shown(sigmas)} lies below all noise levels of {sde!r}, at least {least:.4g}")
    start = 0.0 if low <= least else float(sde.time(np.float64(low)))
    return start, 1.0 if high >= most else float(sde.time(np.float64(high)))


def schedule_of(schedule: Any) -> Callable[[Any], Any]:
    """Return the function that ``schedule`` names, or is; raise a ``ValueError`` for anything else."""
    if callable(schedule):
        return schedule
    check_choice("schedule of guidance", schedule, SCHEDULES)
    return SCHEDULES[schedule]


def _factors(schedule: Schedule, times: np.ndarray) -> np.ndarray:
    try:
        factors = np.asarray(schedule_of(schedule)(np.asarray(times, np.float64)), np.float64)
    except Exception as error:  # whatever a user's function raises
        raise ValueError(f"guidance_schedule={shown(schedule)} fails for an array of times: {error}") from None
    if factors.shape != np.shape(times) or not np.isfinite(factors).all():
        raise ValueError(
            f"guidance_schedule={shown(schedule)} must return a finite number for each time of an array [m]"
        )
    return factors


def _curve(times: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return times and factors, float32, rising and filled up. A time of the table finds its own factor, to the bit."""
    times, first = np.unique(np.asarray(times, np.float32), return_index=True)
    factors = np.asarray(factors, np.float32)[first]
    # At least one entry lies behind the last time: at the very end a linear interpolation would round.
    size = _ENTRIES * 2 ** max(0, int(np.ceil(np.log2((len(times) + 1) / _ENTRIES))))
    missing = size - len(times)
    behind = times[-1] + np.arange(1, missing + 1, dtype=np.float32)
    return np.concatenate([times, behind]), np.pad(factors, (0, missing), mode="edge")


def in_image(sde: LinearSDE, table: Tableau) -> tuple[np.ndarray, np.ndarray]:
    """Write rows of one block that use one prediction as ``z <- a z + b x_0``: ``a, b``, float64 ``[nfe]``.

    A row reads ``q = U z + V out`` and adds ``B q`` to ``A z``; of ``x_0 = u z + v out`` follow ``b = B V / v`` and
    ``a = A + B U - b u``.
    """
    u, v = (part[:, 0, 0] for part in sde.denoiser(table.tau))
    weight = table.B[:, 0, 0, 0]
    b = weight * table.V[:, 0, 0] / v
    return table.A[:, 0, 0] + weight * table.U[:, 0, 0] - b * u, b


def renoised(sde: LinearSDE, table: Tableau, scale: float, neutral: float) -> Weight:
    """Return the weights that turn DDIM into CFG++ (Chung et al., 2024), with ``scale`` their ``lambda``.

    CFG++ takes the guided estimate of the data and the noise of the prediction without guidance,

        x_s = alpha_s D_lambda + sigma_s eps,    D_lambda = D + lambda (D_guided - D),    D, eps without guidance,

    so ``alpha_s lambda (D_guided - D)`` is added to the step of DDIM without guidance. DDIM with weight ``w`` adds
    ``(alpha_s - alpha_t sigma_s / sigma_t) w (D_guided - D)``. For every Gaussian path of one block the two are the
    same for

        w = lambda / (1 - alpha_t sigma_s / (sigma_t alpha_s)),

    a weight that depends on the step, and is ``lambda`` in the denoising step.

    In phase space the noise of a step is no function of one prediction, and a step of higher order mixes several: CFG++
    means nothing there, and is refused.

    Raises:
      ValueError: for a path of several blocks, or a table whose steps are not those of DDIM.
    """
    if table.num_blocks != 1:
        raise ValueError(
            f"guidance_rule='cfg++' takes the noise of one prediction, which {sde!r} of {table.num_blocks} blocks "
            "has not: use guidance_rule='cfg', with an interval or a schedule"
        )
    single = table.nfe == table.num_steps and table.num_draws == 0 and not np.any(table.B[:, 1:])
    t, s = np.append(table.tau[0], table.times[1:-1]), table.times[1:]  # the state may be led to the first
    inner = s > 0
    if single and np.all(np.diff(table.times) < 0):
        alpha_t, std_t = sde.mean(t)[:, 0, 0], np.sqrt(sde.cov(t)[:, 0, 0])
        at = np.where(inner, s, t)  # the last step is the denoising one, which ends at D
        alpha_s, std_s = sde.mean(at)[:, 0, 0], np.sqrt(sde.cov(at)[:, 0, 0])
        ddim = alpha_s - alpha_t * std_s / std_t  # the coefficient of D
        single = np.allclose(in_image(sde, table)[1][inner], ddim[inner], rtol=_ROUNDING)
    if not single:
        raise ValueError(
            "guidance_rule='cfg++' is defined for steps of DDIM: take sampler='ddim', without eta and resample"
        )
    factors = np.where(inner, alpha_s / np.where(inner, ddim, 1.0), 1.0)
    return Weight(jnp.asarray(scale, jnp.float32), None, _curve(table.tau, factors), neutral, 0.0)


def as_rescale(rescale: float) -> Array | None:
    """Return ``rescale`` as a float32 scalar, ``None`` for 0; raise a ``ValueError`` unless it is from 0 to 1."""
    value = check_number("rescale", rescale, 0, 1)
    return jnp.asarray(value, jnp.float32) if value else None


def rescaled(guided: blocks.State, plain: blocks.State, rescale: Array | None) -> blocks.State:
    """Return ``guided`` with part ``rescale`` of its standard deviation set to that of ``plain`` (Lin et al., 2024).

    ``(rescale std(plain) / std(guided) + 1 - rescale) guided``, for each sample and block by itself: leaves
    ``[n, ...]``, same structure and dtype. What is 0 everywhere stays so.
    """
    if rescale is None:
        return guided

    def leaf(a: Array, b: Array) -> Array:
        axes = tuple(range(1, a.ndim))
        of_a, of_b = (jnp.std(v, axis=axes, keepdims=True) for v in (a, b))
        ratio = jnp.where(of_a > 0, of_b / jnp.where(of_a > 0, of_a, 1), 1)
        part = jnp.asarray(rescale, a.dtype)
        return (part * ratio + (1 - part)) * a

    return jax.tree.map(leaf, guided, plain)
