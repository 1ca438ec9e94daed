"""The variance-exploding diffusion (Song et al., ICLR 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np

from psld_jax.sde._noise_levels import as_levels, as_times
from psld_jax.sde.edm import check_levels
from psld_jax.sde.named import register
from psld_jax.sde.one_block import OneBlock

Array = Any


@register("vesde")
class VESDE(OneBlock):
    """The variance-exploding SDE: ``x_t = x_0 + sigma eps``, ``sigma = sigma_min (sigma_max / sigma_min)^t``.

    Song et al. (2021, eq. 9 and appendix C). At ``t = 0`` there is noise of ``sigma_min`` in the data. The prior is
    ``N(0, sigma_max^2)``; no law is stationary.

    Args:
      sigma_min, sigma_max: noise at ``t = 0`` and ``t = 1``.

    Raises:
      ValueError: unless ``0 < sigma_min < sigma_max``.
    """

    t_end = 1e-5

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0):
        check_levels(sigma_min, sigma_max)
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self._log_ratio = float(np.log(self.sigma_max / self.sigma_min))
        super().__init__()

    def alpha(self, t: Array) -> np.ndarray:
        return np.ones_like(as_times(t))

    def std(self, t: Array) -> np.ndarray:
        return self.sigma_min * np.exp(self._log_ratio * as_times(t))

    def alpha_rate(self, t: Array) -> np.ndarray:
        return np.zeros_like(np.asarray(t, np.float64))

    def std_rate(self, t: Array) -> np.ndarray:
        return self._log_ratio * self.std(t)

    def gain(self, t: Array, s: Array) -> np.ndarray:
        return self.std(s) * np.expm1(self._log_ratio * (np.asarray(t, np.float64) - s))

    def time(self, sigma: Array) -> np.ndarray:
        sigma = as_levels(sigma)
        self._check_sigma(sigma, self.sigma_min, self.sigma_max)
        return np.log(sigma / self.sigma_min) / self._log_ratio
