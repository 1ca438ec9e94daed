"""The variance-preserving diffusion (Song et al., ICLR 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np

from psld_jax.sde.base import LinearSDE
from psld_jax.sde.named import register

Array = Any


@register("vpsde")
class VPSDE(LinearSDE):
    """The variance-preserving SDE, K = 1: ``dx = -beta(t)/2 x dt + sqrt(beta(t)) dw`` (Song et al., 2021, eq. 11).

    ``mu_t = e^{-b/2}``, ``Sigma_t = 1 - e^{-b}``, ``b = int_0^t beta``; computed with ``expm1``, so nothing is lost
    near ``t = 0``.

    Args:
      beta_min, beta_max: rates at ``t = 0`` and ``t = 1``.
      jitter: added to every marginal variance (the original adds none here).

    Raises:
      ValueError: as :class:`LinearSDE`.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, jitter: float = 0.0):
        super().__init__([[-0.5]], [[1.0]], beta_min=beta_min, beta_max=beta_max, jitter=jitter)

    def __repr__(self) -> str:
        return f"VPSDE(beta_min={self.beta_min}, beta_max={self.beta_max}, jitter={self.jitter})"

    def transition(self, s: Array, t: Array) -> np.ndarray:
        return np.exp(-0.5 * (self.beta_integral(s) - self.beta_integral(t)))[..., None, None]

    def noise_cov(self, t: Array, s: Array = 0.0) -> np.ndarray:
        return -np.expm1(self.beta_integral(s) - self.beta_integral(t))[..., None, None]

    def prior_cov(self) -> np.ndarray:
        return np.ones((1, 1))
