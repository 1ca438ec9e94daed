"""A soft teacher: a student of few evaluations may start from noise near that of the fine solution.

What a solver of few evaluations cannot reach from a noise, it may reach from one beside it. Samples are drawn from the
law of the noise, so it does not matter which noise leads to which image. Where the start may move within a small ball,
learning spends its numbers on what no start can mend (Tong et al., 2025, "Learning to discretize denoising diffusion
ODEs").
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from psld_jax import blocks
from psld_jax._runtime import xla
from psld_jax.integrators.tableau import Tableau
from psld_jax.sampling.loop import sample

Array = Any


@functools.partial(xla.jit, static_argnames="of")
def moved(
    eps_fn: Any, table: Tableau, z_T: blocks.State, goal: Array, cov: Array, radius: Array, of: Callable[[Array], Array]
) -> blocks.State:
    """Starts that lead nearer to ``goal``, each by one step of steepest descent.

    The direction is that of the noise's own metric, ``-Sigma J^T r`` with ``r = of(x) - goal`` and its Jacobian ``J``
    by ``z_T``. The length makes ``|r|`` smallest to first order, but the step is at most ``radius`` long: root mean
    square of ``Sigma^-1/2 (z' - z_T)`` over blocks and pixels.

    Args:
      eps_fn, table: a deterministic sampler; ``table.nfe`` evaluations, three times forward and once backward.
      z_T: starts, leaves ``[n, ...]``.
      goal: where ``of`` of the samples should come to, ``[n, ...]``.
      cov: ``Sigma [K, K]``, the covariance of the noise.
      radius: in standard deviations of the noise.
      of: what is compared, a function of ``x [n, ...]``.

    Returns:
      The starts, same structure and dtype as ``z_T``.
    """

    def apart(z: blocks.State) -> Array:
        return of(sample(eps_fn, table, z, remat=True)[0]) - goal

    residual, pull_back = jax.vjp(apart, z_T)
    (slope,) = pull_back(residual)
    direction = blocks.like(z_T, blocks.apply(cov, slope))
    _, along = jax.jvp(apart, (z_T,), (direction,))
    steepness = jnp.sum(jnp.stack([_dot(s, d) for s, d in zip(slope, direction, strict=True)]), axis=0)
    best = _ratio(steepness, _dot(along, along))
    size = sum(leaf[0].size for leaf in z_T)
    longest = radius * jnp.sqrt(_ratio(jnp.asarray(size, steepness.dtype), steepness))
    step = jnp.minimum(best, longest)
    return jax.tree.map(lambda z, d: z - step.reshape(-1, *(1,) * (z.ndim - 1)) * d, z_T, direction)


def _dot(a: Array, b: Array) -> Array:
    """Of every sample, ``[n]``."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)))


def _ratio(above: Array, below: Array) -> Array:
    """0 where nothing is divided by: a sample that is at its goal stays."""
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 0)
