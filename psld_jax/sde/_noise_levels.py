"""The noise levels of a diffusion, by which its times are told whatever its own clock is."""

from __future__ import annotations

from typing import Any

import numpy as np

from psld_jax._runtime.checks import TIME_SLACK, check_known
from psld_jax._runtime.errors import shown

Array = Any

# Noise levels are looked for from here to t = 1.
_EARLIEST = 1e-9


def as_levels(sigma: Array) -> np.ndarray:
    """Return noise levels of any shape in float64; a ``ValueError`` for what is no number or is traced."""
    check_known("sigma", sigma)
    try:
        return np.asarray(sigma, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"sigma={shown(sigma)} must be a noise level, or an array of them") from None


def as_times(t: Array, last: float = 1.0) -> np.ndarray:
    """Return times of any shape in float64; a ``ValueError`` for what is no number, is traced or not in [0, last]."""
    # One time and many of float64 are told fast: making a table asks thousands of times.
    if isinstance(t, float) and 0 <= t <= last + TIME_SLACK:
        return np.asarray(t, np.float64)
    if isinstance(t, np.ndarray) and t.dtype == np.float64 and t.size and t.min() >= 0 and t.max() <= last + TIME_SLACK:
        return t
    check_known("t", t)
    try:
        times = np.asarray(t, np.float64)
    except (TypeError, ValueError):
        times = np.full((), np.nan)
    wrong = ~((times >= 0) & (times <= last + TIME_SLACK))
    if wrong.any():
        first = float(times[wrong].flat[0]) if times.ndim else shown(t)
        raise ValueError(f"t={first} is no time: those of this diffusion lie in [0, {last:g}], with the data at 0")
    return times


class NoiseLevels:
    """The part of a diffusion that has noise levels. :class:`psld_jax.sde.LinearSDE` has the matrices they follow."""

    def mean(self, t: Array) -> np.ndarray:
        """Mean ``mu_t``, ``[..., K, 1]``."""
        raise NotImplementedError

    def factor(self, t: Array, cov0: Array | None = None) -> np.ndarray:
        """Factor of the covariance ``L_t``, ``[..., K, K]``."""
        raise NotImplementedError

    def snr(self, t: Array) -> np.ndarray:
        """Signal-to-noise ratio ``mu_t^T Sigma_t^-1 mu_t`` of ``x_0`` in ``z_t``, ``[...]``; it falls with ``t``."""
        return (np.linalg.solve(self.factor(t), self.mean(t)) ** 2).sum(axis=(-1, -2))

    def log_snr(self, t: Array) -> np.ndarray:
        """Logarithm of the signal-to-noise ratio ``log SNR_t``, ``[...]``, see :meth:`snr`."""
        return np.log(self.snr(t))

    def sigma(self, t: Array) -> np.ndarray:
        """Noise level ``SNR_t^(-1/2)``, ``[...]``: the noise in ``x_t / alpha_t``, for one block ``sigma_t / alpha_t``.

        It is the sigma of Karras et al. (2022), whatever diffusion it is asked of; it grows with ``t``.
        """
        return np.exp(-0.5 * self.log_snr(t))

    def time(self, sigma: Array) -> np.ndarray:
        """The time with noise level ``sigma``, ``[...]``: the inverse of :meth:`sigma`, by bisection.

        Raises:
          ValueError: for a level that the diffusion does not have between ``t = 1e-9`` and 1.
        """
        sigma = as_levels(sigma)
        low, high = np.full(sigma.shape, np.log(_EARLIEST)), np.zeros(sigma.shape)
        self._check_sigma(sigma, *self.sigma(np.array([_EARLIEST, 1.0])))
        for _ in range(80):
            middle = (low + high) / 2
            early = self.sigma(np.exp(middle)) < sigma
            low, high = np.where(early, middle, low), np.where(early, high, middle)
        return np.exp((low + high) / 2)

    def _check_sigma(self, sigma: np.ndarray, least: float, most: float) -> None:
        # One part in a million of slack: who asks for the level of t = 1 may have it in float32.
        inside = (sigma >= least * (1 - 1e-6)) & (sigma <= most * (1 + 1e-6))
        if not np.all(inside):
            wrong = sigma[~inside].flat[0] if sigma.ndim else sigma
            raise ValueError(f"sigma={wrong} is no noise level of {self!r}: it must lie in [{least:.6g}, {most:.6g}]")
