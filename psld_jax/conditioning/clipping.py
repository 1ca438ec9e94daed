"""Clipping of predicted images to the range of images, as the samplers of DDPM and Imagen do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime.checks import check_number
from psld_jax._runtime.device import TimeFunction
from psld_jax._runtime.errors import check_callable, check_kind
from psld_jax.conditioning.weights import in_image
from psld_jax.integrators.tableau import Tableau
from psld_jax.sde import LinearSDE, check_sde

Array = Any

#: Rows of a table whose weights are kept; longer ones have twice, three times as many.
_ENTRIES = 1024


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash, and jax.jit asks for one
class Clipped:
    """An ``eps_fn`` whose images are clipped; make it with :func:`clipped`."""

    eps_fn: Any
    bound: Array
    percentile: Array | None
    matrices: TimeFunction
    times: Array
    weights: Array

    def bind(self, eps_fn: Any, own: dict[str, Array]) -> Clipped:
        """Clip another ``eps_fn`` in the same way. Clipping has no arrays ``[n, ...]`` of each sample in ``own``."""
        return dataclasses.replace(self, eps_fn=blocks.as_pytree(eps_fn))

    def __call__(self, z: blocks.State, t: Array) -> blocks.State:
        """Return what the network predicts, moved as little as makes its image the clipped one.

        For a state of arrays ``[n, H, W, C]`` and scalar ``t``; same structure and dtype.
        """
        dtype = z[0].dtype
        t = jnp.asarray(t, dtype)
        out = blocks.like(z, self.eps_fn(z, t))
        matrix = self.matrices(t)
        (x0,) = blocks.apply(matrix, (*z, *out))
        # Times are told to the network as they stand in the rows, so equality finds the row.
        row = jnp.where(self.times.astype(dtype) == t, self.weights.astype(dtype), 0).sum() if self.times.size else 1
        of_out = matrix[:, matrix.shape[-1] // 2 :]
        gain = of_out.T / jnp.sum(of_out**2)
        return blocks.like(z, blocks.add(tuple(out), blocks.apply(row * gain, (self._within(x0) - x0,))))

    def _within(self, x0: Array) -> Array:
        bound = self.bound.astype(x0.dtype)
        if self.percentile is None:
            return jnp.clip(x0, -bound, bound)
        size = jnp.percentile(jnp.abs(x0).reshape(len(x0), -1), self.percentile, axis=1)
        size = jnp.maximum(size.astype(x0.dtype), bound).reshape(-1, *(1,) * (x0.ndim - 1))
        return jnp.clip(x0, -size, size) * (bound / size)


def clipped(
    eps_fn: Callable[..., Any],
    sde: LinearSDE,
    bound: float = 1.0,
    percentile: float | None = None,
    table: Tableau | None = None,
) -> Clipped:
    """Make an ``eps_fn`` whose predicted image ``x_0`` lies in ``[-bound, bound]`` at every evaluation.

    Few evaluations and strong guidance drive ``x_0`` beyond the range of images. ``E[x_0 | z] = U z + V out`` is
    clipped, and ``out + V^T (V V^T)^-1 (clip(x_0) - x_0)`` is the nearest prediction with that image. With one block
    noise and image then still add up to ``z``. This is DDPM's ``clip_denoised`` (Ho, Jain & Abbeel, 2020), for every
    sampler, path and number of blocks. No further evaluation.

    Args:
      eps_fn: any network, with its guidance.
      sde: the diffusion.
      bound: of the image, > 0.
      percentile: dynamic thresholding (Saharia et al., 2022): each sample is clipped at that percentile of its
        ``|x_0|`` and divided by it, where it is above ``bound``; (0, 100].
      table: keep the *noise* as it was before the clip, as DDIM of diffusers does unless it is told
        ``use_clipped_model_output``: what each step of this table then does. Noise and image no longer add up to ``z``.

    Raises:
      ValueError: for a bound or percentile out of range, and a table of another diffusion than one of one block, or
        whose steps use more than the one prediction of their start.
    """
    check_callable("eps_fn", eps_fn)
    check_sde(sde)
    bound = check_number("bound", bound, 0, strict=True)
    if percentile is not None:
        percentile = check_number("percentile", percentile, 0, 100, strict=True)
    check_kind("table", table, (Tableau, type(None)), "a psld_jax.Tableau, or None")
    times, weights = (np.zeros(0), np.zeros(0)) if table is None else _weights(sde, table)
    return Clipped(
        blocks.as_pytree(eps_fn),
        jnp.asarray(bound),
        None if percentile is None else jnp.asarray(percentile),
        sde.denoiser_of_time,
        times,
        weights,
    )


def _weights(sde: LinearSDE, table: Tableau) -> tuple[np.ndarray, np.ndarray]:
    """Times of the rows, and by how much of the clip the image has to move there for a step with the noise from before.

    A row ``a z + b x_0`` (:func:`in_image`) is ``(a alpha + b) x_0 + a sigma eps``. Its image moves it by ``b`` alone:
    ``1 + a alpha / b`` of the clip is what is needed. Both are filled up, so that all tables share a program.
    """
    if sde.num_blocks > 1 or table.num_blocks > 1:
        raise ValueError(f"noise and image are told apart for one block; {sde!r} has {sde.num_blocks}")
    # The way to the start of the grid comes before the first evaluation, and changes no step.
    pushed, unused = table.P is not None and np.any(table.P[1:] != 1), np.any(table.B[:, 0] == 0)
    if pushed or unused or np.any(table.B[:, 1:]) or len(np.unique(table.tau)) < table.nfe:
        raise ValueError("the noise from before the clip can be kept by one-step samplers alone, such as 'ddim'")
    a, b = in_image(sde, table)
    weights = 1 + a * sde.mean(table.tau)[:, 0, 0] / b
    missing = -table.nfe % _ENTRIES
    return np.pad(table.tau, (0, missing), constant_values=-1.0), np.pad(weights, (0, missing))
