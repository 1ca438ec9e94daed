"""The variance-preserving diffusion (Song et al., ICLR 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np

from psld_jax._runtime.checks import check_flag
from psld_jax.sde.base import LinearSDE
from psld_jax.sde.named import register
from psld_jax.sde.one_block import OneBlock

Array = Any


@register("vpsde")
class VPSDE(OneBlock):
    """The variance-preserving SDE, K = 1: ``dx = -beta(t)/2 x dt + sqrt(beta(t)) dw`` (Song et al., 2021, eq. 11).

    ``alpha = e^{-b/2}``, ``sigma^2 = 1 - e^{-b}``, ``b = int_0^t beta``; computed with ``expm1``, so nothing is lost
    near ``t = 0``. It has constant matrices too, ``F = -1/2`` and ``D = 1``, and N(0, 1) is stationary.

    Args:
      beta_min, beta_max: rates at ``t = 0`` and ``t = 1``.
      jitter: added to every marginal variance (the original adds none here).
      mixed: whether the network predicts what a Gaussian's score leaves over, see ``predicting``.

    Raises:
      ValueError: as :class:`LinearSDE`.
    """

    stationary = True
    variance_preserving = True
    last_step = "euler"
    grid = "quadratic"

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, jitter: float = 0.0, mixed: bool = False):
        LinearSDE.__init__(self, [[-0.5]], [[1.0]], beta_min=beta_min, beta_max=beta_max, jitter=jitter)
        self.prediction = "mixed" if check_flag("mixed", mixed) else "eps"

    def __repr__(self) -> str:
        mixed = ", mixed=True" if self.prediction == "mixed" else ""
        return f"VPSDE(beta_min={self.beta_min}, beta_max={self.beta_max}, jitter={self.jitter}{mixed})"

    def alpha(self, t: Array) -> np.ndarray:
        return np.exp(-0.5 * self.beta_integral(t))

    def std(self, t: Array) -> np.ndarray:
        return np.sqrt(self.jitter - np.expm1(-self.beta_integral(t)))

    def alpha_rate(self, t: Array) -> np.ndarray:
        return -0.5 * self.beta(t) * self.alpha(t)

    def std_rate(self, t: Array) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return 0.5 * self.beta(t) * np.exp(-self.beta_integral(t)) / self.std(t)

    def gain(self, t: Array, s: Array) -> np.ndarray:
        alpha_t, alpha_s = self.alpha(t), self.alpha(s)
        fall = (1 + self.jitter) * alpha_s**2 * self.noise_cov(t, s)[..., 0, 0]
        total = self.std(t) * alpha_s + alpha_t * self.std(s)
        return fall / np.where(total > 0, total, 1.0)

    def drift(self, t: Array) -> np.ndarray:
        return LinearSDE.drift(self, t)

    def diffusion(self, t: Array) -> np.ndarray:
        return LinearSDE.diffusion(self, t)

    def transition(self, s: Array, t: Array) -> np.ndarray:
        return np.exp(-0.5 * (self.beta_integral(s) - self.beta_integral(t)))[..., None, None]

    def noise_cov(self, t: Array, s: Array = 0.0) -> np.ndarray:
        t, s = np.asarray(t, np.float64), np.asarray(s, np.float64)
        # b(t) - b(s), whose terms do not cancel.
        b = (t - s) * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * (t + s))
        return -np.expm1(-b)[..., None, None]
