"""Schedules of discrete noise levels (DDPM, improved DDPM, latent diffusion) in continuous time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator

from psld_jax._runtime.checks import check_flag, check_number
from psld_jax._runtime.errors import check_choice, check_counts, shown
from psld_jax.sde._noise_levels import as_times
from psld_jax.sde._quadrature import NODES, WEIGHTS
from psld_jax.sde.named import register
from psld_jax.sde.one_block import OneBlock

Array = Any

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
# Below so long a step in log t, a difference of the spline is an integral of its slope.
_SHORT = 1e-4


def named_betas(schedule: str, beta_start: float, beta_end: float, num_steps: int) -> np.ndarray:
    """Return the schedule ``beta_0, beta_1, ...`` of DDPM, float64 ``[num_steps]``.

    ``"linear"``; ``"scaled_linear"``, linear in the square root; ``"squaredcos_cap_v2"``, ``1 - c(i + 1) / c(i)`` with
    ``c(i) = cos^2(pi/2 (i / N + 0.008) / 1.008)``, at most 0.999, which takes no notice of the two ends.

    Raises:
      ValueError: for another schedule, or ends that are not ``0 < beta_start <= beta_end < 1``.
    """
    if not isinstance(schedule, str):
        raise ValueError(
            f"schedule={shown(schedule)} must be one of {', '.join(SCHEDULES)}; levels of your own are alphas_cumprod"
        )
    check_choice("schedule", schedule, SCHEDULES)
    check_counts(2, num_steps=num_steps)
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"need 0 < beta_start <= beta_end < 1, got beta_start={beta_start}, beta_end={beta_end}")
    if schedule == "squaredcos_cap_v2":
        c = np.cos(0.5 * np.pi * (np.arange(num_steps + 1) / num_steps + 0.008) / 1.008) ** 2
        return np.minimum(1 - c[1:] / c[:-1], 0.999)
    if schedule == "scaled_linear":
        return np.linspace(beta_start**0.5, beta_end**0.5, num_steps) ** 2
    return np.linspace(beta_start, beta_end, num_steps)


@register("discrete")
class Discrete(OneBlock):
    """A schedule of N levels ``alpha_bar_0 > alpha_bar_1 > ...`` as a path: ``alpha^2`` is ``alpha_bar``.

    ``sigma^2 = 1 - alpha_bar`` (Ho, Jain & Abbeel, 2020). Level ``n`` is at ``t = (n + 1) / N``. Between levels
    ``asinh(alpha / sigma)`` is a cubic spline in ``log t`` (or, if that is not monotone, a monotone one: Fritsch &
    Carlson, 1980), below the first a straight line. That is half the log-SNR, up to a constant, where there is little
    noise, and stays finite where there is no signal. Grids end at the first level, as DDPM's sampling does. A last
    ``alpha_bar`` of 0, zero terminal SNR, is at ``t = 1``, where ``eps`` says nothing: then the network predicts a
    velocity unless ``predicting`` says otherwise.

    Args:
      schedule, beta_start, beta_end, num_steps: a schedule that has a name, see :func:`named_betas`.
      zero_terminal_snr: move the named schedule so that the last level has no signal (Lin et al., 2024, algorithm 1).
      alphas_cumprod: ``[N]``, any other schedule in place of a named one; diffusers' ``scheduler.alphas_cumprod``.

    Raises:
      ValueError: for levels that do not fall from below 1 to 0 or above, or as :func:`named_betas`.
    """

    grid = "uniform"
    variance_preserving = True

    def __init__(
        self,
        schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        num_steps: int = 1000,
        zero_terminal_snr: bool = False,
        alphas_cumprod: Sequence[float] = (),
    ):
        self.beta_start, self.beta_end = check_number("beta_start", beta_start), check_number("beta_end", beta_end)
        self.schedule = schedule
        self.num_steps, self.zero_terminal_snr = num_steps, check_flag("zero_terminal_snr", zero_terminal_snr)
        try:
            self.alphas_cumprod = tuple(map(float, np.asarray(alphas_cumprod, np.float64).ravel()))
        except (TypeError, ValueError):
            raise ValueError(f"alphas_cumprod={shown(alphas_cumprod)} must be numbers that fall") from None
        if self.alphas_cumprod:
            if zero_terminal_snr:
                raise ValueError("zero_terminal_snr=True moves a named schedule; alphas_cumprod are taken as they are")
            levels = np.array(self.alphas_cumprod)
            falls = len(levels) > 1 and levels[0] < 1 and levels[-1] >= 0 and np.all(np.diff(levels) < 0)
            if not falls:
                raise ValueError("alphas_cumprod must be at least two numbers that fall, below 1 and not below 0")
            alpha, std = np.sqrt(levels), np.sqrt(1 - levels)
            self.num_steps = len(levels)
        else:
            log_alpha = 0.5 * np.cumsum(np.log1p(-named_betas(schedule, beta_start, beta_end, num_steps)))
            alpha, std = np.exp(log_alpha), np.sqrt(-np.expm1(2 * log_alpha))
            if zero_terminal_snr:
                first, last = alpha[0], alpha[-1]
                alpha = (alpha - last) * first / (first - last)
                std = np.sqrt((1 - alpha) * (1 + alpha))
        self.knots = np.arange(1, self.num_steps + 1) / self.num_steps
        self._log_t = np.log(self.knots)
        values = np.arcsinh(alpha / std)
        # No curvature at the first level, where the straight line goes on.
        ends: Any = ("natural", "not-a-knot")  # scipy's types know only one name for both
        spline = CubicSpline(self._log_t, values, bc_type=ends) if self.num_steps > 3 else None
        fine = np.linspace(self._log_t[:-1], self._log_t[1:], 9).ravel()
        if spline is None or np.any(spline(fine, 1) >= 0):
            spline = PchipInterpolator(self._log_t, values)
        self._spline, self._slope = spline, spline.derivative()
        if alpha[-1] == 0:
            self.prediction = "velocity"
        self.t_end = 1 / self.num_steps
        super().__init__()

    def __repr__(self) -> str:
        if self.alphas_cumprod:
            levels = f"{self.num_steps} levels from {self.alphas_cumprod[0]!r} to {self.alphas_cumprod[-1]!r}"
            return f"Discrete({levels}, sum {sum(self.alphas_cumprod)!r})"
        return (
            f"Discrete({self.schedule!r}, beta_start={self.beta_start}, beta_end={self.beta_end}, "
            f"num_steps={self.num_steps}, zero_terminal_snr={self.zero_terminal_snr})"
        )

    def index(self, t: Array) -> np.ndarray:
        """Return the number of the level at ``t`` as a real number, ``[...]``: ``N t - 1``."""
        return self.num_steps * np.asarray(t, np.float64) - 1

    def time_of(self, index: Array) -> np.ndarray:
        """Return the time of the level with that number, ``[...]``. Numbers begin at 0, as timesteps of diffusers do.

        Raises:
          ValueError: for numbers outside of 0 to N - 1.
        """
        index = np.asarray(index, np.float64)
        if not np.all((index >= 0) & (index <= self.num_steps - 1)):
            raise ValueError(f"level {index} must lie in 0 to {self.num_steps - 1}")
        return (index + 1) / self.num_steps

    def _y(self, t: Array, slope: bool = False) -> np.ndarray:
        """``asinh(alpha / sigma)``, or its slope in ``log t``."""
        with np.errstate(divide="ignore"):
            x = np.log(as_times(t))
        first = self._log_t[0]
        if slope:
            return self._slope(np.maximum(x, first))
        return self._spline(np.maximum(x, first)) + self._slope(first) * np.minimum(x - first, 0.0)

    def alpha(self, t: Array) -> np.ndarray:
        return np.tanh(self._y(t))

    def std(self, t: Array) -> np.ndarray:
        with np.errstate(over="ignore"):
            return 1 / np.cosh(self._y(t))

    def alpha_rate(self, t: Array) -> np.ndarray:
        return self._y(t, slope=True) / np.asarray(t, np.float64) * self.std(t) ** 2

    def std_rate(self, t: Array) -> np.ndarray:
        return -self._y(t, slope=True) / np.asarray(t, np.float64) * self.std(t) * self.alpha(t)

    def gain(self, t: Array, s: Array) -> np.ndarray:
        # sech(a) tanh(b) - tanh(a) sech(b) = (sinh b - sinh a) sech(a) sech(b), and sinh b - sinh a is a product:
        # 2 cosh((a + b) / 2) sinh((b - a) / 2). From s = 0, where y is infinite and sigma is 0, it is sigma_t.
        t, s = np.broadcast_arrays(np.asarray(t, np.float64), np.asarray(s, np.float64))
        safe = np.where(s > 0, s, t)
        a, b = self._y(t), self._y(safe)
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.where(t > 0, np.log1p((safe - t) / t), 0.0)
            short = np.abs(reach) < _SHORT
            at = t[..., None] * np.exp(np.where(short, reach, 0.0)[..., None] * NODES)
            risen = np.where(short, reach * (self._y(at, slope=True) @ WEIGHTS), b - a)
            product = 2 * np.cosh(0.5 * (a + b)) * np.sinh(0.5 * risen) / (np.cosh(a) * np.cosh(b))
        return np.where(s > 0, product, self.std(t))
