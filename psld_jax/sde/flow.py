"""The straight path of rectified flow and flow matching."""

from __future__ import annotations

from typing import Any

import numpy as np

from psld_jax._runtime.checks import check_number
from psld_jax.sde._noise_levels import as_levels, as_times
from psld_jax.sde.named import register
from psld_jax.sde.one_block import OneBlock

Array = Any


@register("flow")
class Flow(OneBlock):
    """``x_t = (1 - u) x_0 + u eps`` with ``u = shift t / (1 + (shift - 1) t)``; ``u = t`` for a shift of 1.

    Rectified flow (Liu et al., 2023), flow matching (Lipman et al., 2023); the shift of Esser et al. (2024, eq. 23)
    spends more of the time at high noise. The network predicts the velocity ``dx/dt`` unless ``predicting`` says
    otherwise. ``alpha`` vanishes at ``t = 1`` and ``sigma`` at 0.

    Args:
      shift: > 0.

    Raises:
      ValueError: for a shift that is not > 0.
    """

    grid = "uniform"
    prediction = "flow"

    def __init__(self, shift: float = 1.0):
        self.shift = check_number("shift", shift, 0, strict=True)
        super().__init__()

    def _stretch(self, t: Array) -> np.ndarray:
        return 1 + (self.shift - 1) * np.asarray(t, np.float64)

    def alpha(self, t: Array) -> np.ndarray:
        return (1 - as_times(t)) / self._stretch(t)

    def std(self, t: Array) -> np.ndarray:
        return self.shift * as_times(t) / self._stretch(t)

    def alpha_rate(self, t: Array) -> np.ndarray:
        return -self.std_rate(t)

    def std_rate(self, t: Array) -> np.ndarray:
        return self.shift / self._stretch(t) ** 2

    def gain(self, t: Array, s: Array) -> np.ndarray:
        return self.shift * (np.asarray(t, np.float64) - s) / (self._stretch(t) * self._stretch(s))

    def time(self, sigma: Array) -> np.ndarray:
        sigma = as_levels(sigma)
        self._check_sigma(sigma, 0.0, np.inf)
        with np.errstate(invalid="ignore"):
            return np.where(np.isinf(sigma), 1.0, sigma / (self.shift + sigma))
