"""The path of Karras et al. (2022): noise is added to data whose size stays the same."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from psld_jax._runtime.checks import check_number
from psld_jax.sde._noise_levels import as_levels, as_times
from psld_jax.sde.named import register
from psld_jax.sde.one_block import OneBlock

Array = Any


@register("edm")
class EDM(OneBlock):
    """``x_t = x_0 + sigma eps`` with ``sigma = sigma_max t`` (Karras et al., 2022): ``alpha = 1``, linear in time.

    A grid in ``t`` is one in sigma, so Euler and Heun here are theirs. Grids end at ``sigma_min``. With
    ``preconditioned`` the network is theirs too (table 1), for data of ``data_std``.

    Args:
      sigma_min, sigma_max: the smallest noise level that samplers go to, and that of the prior.
      data_std: of the data, what ``preconditioned`` takes unless told otherwise.

    Raises:
      ValueError: unless ``0 < sigma_min < sigma_max`` and ``data_std > 0``.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, data_std: float = 0.5):
        check_levels(sigma_min, sigma_max)
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self.own_data_std = check_number("data_std", data_std, 0, strict=True)
        super().__init__()
        self.t_end = self.sigma_min / self.sigma_max

    def __repr__(self) -> str:
        return f"EDM(sigma_min={self.sigma_min}, sigma_max={self.sigma_max}, data_std={self.own_data_std})"

    def preconditioned(self, data_std: float | None = None) -> Self:
        return super().preconditioned(self.own_data_std if data_std is None else data_std)

    def alpha(self, t: Array) -> np.ndarray:
        return np.ones_like(as_times(t))

    def std(self, t: Array) -> np.ndarray:
        return self.sigma_max * as_times(t)

    def alpha_rate(self, t: Array) -> np.ndarray:
        return np.zeros_like(np.asarray(t, np.float64))

    def std_rate(self, t: Array) -> np.ndarray:
        return np.full_like(np.asarray(t, np.float64), self.sigma_max)

    def gain(self, t: Array, s: Array) -> np.ndarray:
        return self.sigma_max * (np.asarray(t, np.float64) - s)

    def time(self, sigma: Array) -> np.ndarray:
        sigma = as_levels(sigma)
        self._check_sigma(sigma, 0.0, self.sigma_max)
        return sigma / self.sigma_max


def check_levels(sigma_min: float, sigma_max: float) -> None:
    """Raise a ``ValueError`` unless ``0 < sigma_min < sigma_max``, both finite."""
    for name, sigma in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        check_number(name, sigma)
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got sigma_min={sigma_min}, sigma_max={sigma_max}")
