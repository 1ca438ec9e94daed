"""The sub-VP diffusion (Song et al., ICLR 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np

from psld_jax._runtime.checks import check_number
from psld_jax.sde.named import register
from psld_jax.sde.one_block import OneBlock

Array = Any


@register("subvp")
class SubVP(OneBlock):
    """The sub-VP SDE: ``alpha = e^{-b/2}`` as VP, but ``sigma = 1 - e^{-b}``, ``b = int_0^t beta``.

    Song et al. (2021, appendix C): ``dx = -beta/2 x dt + sqrt(beta (1 - e^{-2 b})) dw``: its variance is the
    square of VP's, so its ODE and its SDE differ from those of VP. The prior is ``N(0, sigma(1)^2)``.

    Args:
      beta_min, beta_max: rates at ``t = 0`` and ``t = 1``.

    Raises:
      ValueError: for rates that are negative, or vanish together.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        self.beta_min, self.beta_max = check_number("beta_min", beta_min, 0), check_number("beta_max", beta_max, 0)
        if self.beta_min == self.beta_max == 0:
            raise ValueError(f"beta_min={beta_min} and beta_max={beta_max} diffuse nothing: they must be not both 0")
        super().__init__()

    def alpha(self, t: Array) -> np.ndarray:
        return np.exp(-0.5 * self.beta_integral(t))

    def std(self, t: Array) -> np.ndarray:
        return -np.expm1(-self.beta_integral(t))

    def alpha_rate(self, t: Array) -> np.ndarray:
        return -0.5 * self.beta(t) * self.alpha(t)

    def std_rate(self, t: Array) -> np.ndarray:
        return self.beta(t) * np.exp(-self.beta_integral(t))

    def gain(self, t: Array, s: Array) -> np.ndarray:
        t, s = np.asarray(t, np.float64), np.asarray(s, np.float64)
        # b(t) - b(s), whose terms do not cancel; with A = alpha_s, B = alpha_t the gain is (A - B) (1 + A B).
        b = (t - s) * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * (t + s))
        alpha_s = self.alpha(s)
        return -alpha_s * np.expm1(-0.5 * b) * (1 + alpha_s * self.alpha(t))
