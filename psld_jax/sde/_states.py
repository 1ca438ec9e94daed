"""The part of a diffusion that runs on the device: its states, draws of its prior, and data with its noise."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from psld_jax import blocks
from psld_jax._runtime import random
from psld_jax._runtime.device import TimeFunction, to_device
from psld_jax.sde._linear_algebra import cholesky

Array = Any


class StatesOfBlocks:
    """The part of a diffusion that makes states. The other part, :class:`psld_jax.sde.LinearSDE`, makes matrices."""

    num_blocks: int
    knots: np.ndarray

    def mean(self, t: Array) -> np.ndarray:
        """Mean ``mu_t``, ``[..., K, 1]``."""
        raise NotImplementedError

    def factor(self, t: Array, cov0: Array | None = None) -> np.ndarray:
        """Factor of the covariance ``L_t``, ``[..., K, K]``."""
        raise NotImplementedError

    def prior_cov(self) -> np.ndarray:
        """Covariance of the prior, ``[K, K]``."""
        raise NotImplementedError

    def denoiser(self, t: Array) -> tuple[np.ndarray, np.ndarray]:
        """``U, V [..., 1, K]``."""
        raise NotImplementedError

    def state(self, *parts: Any) -> blocks.State:
        """Make a state of K blocks: :class:`PhaseState` for 2, :class:`ThirdOrderState` for 3, else a plain tuple.

        The parts are as they are, e.g. ``[n, H, W, C]`` each.

        Raises:
          ValueError: for another number of parts than K.
        """
        if len(parts) != self.num_blocks:
            raise ValueError(f"a state of this SDE has {self.num_blocks} blocks, got {len(parts)}")
        return {2: blocks.PhaseState, 3: blocks.ThirdOrderState}.get(len(parts), lambda *blocks: blocks)(*parts)

    def prior_sample(self, key: Array, shape: tuple[int, ...], dtype: Any = None) -> blocks.State:
        """Draw ``z_T ~ N(0, Sigma_inf)``: K blocks of ``shape`` (batch first), leaves ``[n, ...]``, on the device.

        ``key`` is one key (sample ``i`` uses ``fold_in(key, i)``) or one key per sample. ``dtype`` defaults to
        float32.

        Raises:
          ValueError: for a shape without a batch axis, or another number of keys.
        """
        if len(shape) < 1 or shape[0] < 1:
            raise ValueError(f"shape={shape} needs a leading batch axis of at least 1")
        leaf = jax.ShapeDtypeStruct(shape, np.float32 if dtype is None else dtype)
        keys = random.per_sample(key, shape[0])
        xi = random.normal_like(keys, random.PRIOR_DRAW, self.state(*[leaf] * self.num_blocks))
        return blocks.apply(to_device(cholesky(self.prior_cov()), leaf.dtype), xi)

    def perturb(self, x0: Array, t: Array, eps: blocks.State) -> blocks.State:
        """Add noise to data: ``z_t = mu_t x_0 + L_t eps``, on the device.

        Args:
          x0: data, a pytree with leaves ``[n, ...]``.
          t: one time or ``[n]`` times in ``[1e-6, 1]``. Known numbers are turned into coefficients in float64;
            traced ones go through a spline (:class:`TimeFunction`).
          eps: standard normal state, K blocks shaped like ``x0``.

        Returns:
          The state, in the dtype of ``x0``.

        Raises:
          ValueError: for noise of another number of blocks, and known times outside [0, 1].
        """
        if len(eps) != self.num_blocks:
            raise ValueError(f"eps has {len(eps)} blocks, this SDE has {self.num_blocks}")
        dtype = jax.tree.leaves(x0)[0].dtype
        if isinstance(t, Tracer):
            kernel = self._kernel_of_time(t).astype(dtype)
        else:
            kernel = to_device(self._kernel(_known_time(t)), dtype)
        mu, factor = kernel[..., :1], kernel[..., 1:]
        mean = blocks.apply(mu, (x0,))
        return self.state(*blocks.add(mean, tuple(blocks.apply(factor, eps))))

    def _kernel(self, t: np.ndarray) -> np.ndarray:
        return np.concatenate([self.mean(t), self.factor(t)], axis=-1)

    @functools.cached_property
    def _kernel_of_time(self) -> TimeFunction:
        return TimeFunction(self._kernel, knots=self.knots)

    def denoiser_at(self, t: Array, dtype: Any) -> jax.Array:
        """``[U, V] [1, 2 K]`` of ``E[x_0 | z] = U z + V out`` at one time, known or traced, on the device.

        Raises:
          ValueError: for a known time outside of (0, 1].
        """
        if isinstance(t, Tracer):
            return self.denoiser_of_time(t).astype(dtype)
        t = _known_time(t)
        if not t > 0:
            raise ValueError("at t = 0 nothing is left to denoise; t must lie in (0, 1]")
        return to_device(self._denoiser(t), dtype)

    def _denoiser(self, t: np.ndarray) -> np.ndarray:
        return np.concatenate(self.denoiser(t), axis=-1)

    @functools.cached_property
    def denoiser_of_time(self) -> TimeFunction:
        """``[U, V] [1, 2 K]`` of :meth:`denoiser` at a traced time, on the device."""
        return TimeFunction(self._denoiser, knots=self.knots)


def _known_time(t: Array) -> np.ndarray:
    t = np.asarray(t, np.float64)
    if not np.all((t >= 0) & (t <= 1)):
        raise ValueError(f"t must lie in [0, 1], got {t.min()} to {t.max()}")
    return t
