"""The cosine schedule (Nichol & Dhariwal, 2021) in continuous time."""

from __future__ import annotations

from typing import Any

import numpy as np

from psld_jax._runtime.checks import check_number
from psld_jax.sde._noise_levels import as_times
from psld_jax.sde.named import register
from psld_jax.sde.one_block import OneBlock

Array = Any


@register("cosine")
class Cosine(OneBlock):
    """``alpha = cos(a) / cos(a_0)`` with ``a = pi/2 (t + offset) / (1 + offset)``, ``alpha^2 + sigma^2 = 1``.

    Nichol & Dhariwal (2021, eq. 17) in continuous time. At ``t = 1`` the signal is gone: the network predicts a
    velocity unless ``predicting`` says otherwise. Their table of levels, which stops short of that, is the schedule
    ``squaredcos_cap_v2`` of :class:`psld_jax.sde.discrete.Discrete`.

    Args:
      offset: their ``s``, > 0.

    Raises:
      ValueError: for an offset that is not > 0.
    """

    grid = "uniform"
    prediction = "velocity"
    variance_preserving = True

    def __init__(self, offset: float = 0.008):
        self.offset = check_number("offset", offset, 0, strict=True)
        self._rate = 0.5 * np.pi / (1 + self.offset)
        self._start = np.cos(self._rate * self.offset)
        super().__init__()

    def alpha(self, t: Array) -> np.ndarray:
        # The sine of what is missing to a right angle: the cosine loses its digits near t = 1.
        return np.sin(self._rate * (1 - as_times(t))) / self._start

    def std(self, t: Array) -> np.ndarray:
        return np.sqrt(self._fall(t, 0.0))

    def _fall(self, t: Array, s: Array) -> np.ndarray:
        """``alpha_s^2 - alpha_t^2 = sigma_t^2 - sigma_s^2``."""
        t = as_times(t)
        return np.sin(self._rate * (t - s)) * np.sin(self._rate * (t + s + 2 * self.offset)) / self._start**2

    def alpha_rate(self, t: Array) -> np.ndarray:
        return -self._rate * np.sin(self._rate * (np.asarray(t, np.float64) + self.offset)) / self._start

    def std_rate(self, t: Array) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return -self.alpha(t) * self.alpha_rate(t) / self.std(t)

    def gain(self, t: Array, s: Array) -> np.ndarray:
        total = self.std(t) * self.alpha(s) + self.alpha(t) * self.std(s)
        return self._fall(t, s) / np.where(total > 0, total, 1.0)  # 0 from t = 0 to itself
