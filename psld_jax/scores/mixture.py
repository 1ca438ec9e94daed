"""The exact score of a smoothed data set: a network-free ``eps_fn`` for tests, benches and pictures."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime.checks import MIN_TIME, check_number
from psld_jax._runtime.device import TimeFunction, wide
from psld_jax._runtime.errors import check_counts
from psld_jax.sde import LinearSDE, OneBlock

Array = Any

# Samples go through in tiles of this many rows, padded. XLA chooses kernels by shape, so only products of one fixed
# shape make a sample's bits independent of how many others share its batch; and memory is that of one tile.
_TILE = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash, and jax.jit asks for one
class MixtureScore:
    """``eps_fn`` of a Gaussian mixture; make it with :func:`mixture`. A pytree: data are arguments, not constants.

    Attributes:
      points: centred data ``[blocks, m, d]``, zero-padded; half_norms: ``|x_i|^2 / 2``, infinite for padding.
      center: the data's mean ``[d]``.
      coefficients: function of time, ``[K, 2 K + 3]``: ``G``, ``H``, ``mu``, ``S^-1 mu`` and ``P``, for
        ``G (z - mu xhat) + H z + P xhat``.
      shape: shape of one datum.
    """

    points: Array
    half_norms: Array
    center: Array
    coefficients: TimeFunction
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    residual: bool = dataclasses.field(metadata={"static": True}, default=True)

    def __call__(self, z: blocks.State, t: Array) -> blocks.State:
        """Return ``eps(z, t)`` for a state with leaves ``[n, *shape]`` and scalar ``t``; same structure and dtype.

        Raises:
          ValueError: when it is traced, for a state of other blocks or shapes.
        """
        given = jax.tree.leaves(z)[0].dtype
        # Exponents of hundreds that nearly cancel: half precision would take other data points, or overflow.
        dtype = wide(given)
        out = self._at_precision(jax.tree.map(lambda leaf: leaf.astype(dtype), z), jnp.asarray(t, dtype))
        return jax.tree.map(lambda leaf: leaf.astype(given), out)

    def _at_precision(self, z: blocks.State, t: Array) -> blocks.State:
        """Return the same for a state in float32 or float64."""
        leaves = jax.tree.leaves(z)
        dtype, n = leaves[0].dtype, leaves[0].shape[0]
        matrix = self.coefficients(t)
        k = matrix.shape[0]
        matrix, pull = matrix[:, :-1], matrix[:, -1]
        if len(z) != k or len(leaves) != k or any(leaf.shape[1:] != self.shape for leaf in leaves):
            raise ValueError(
                f"this score takes a state of {k} arrays of shape [n, {', '.join(map(str, self.shape))}], "
                f"got {[leaf.shape for leaf in leaves]}"
            )
        gain, skip, mu, sigma_mu = matrix[:, :k], matrix[:, k:-2], matrix[:, -2:-1], matrix[:, -1]
        precision = jnp.dot(mu[:, 0], sigma_mu)
        center = self.center.astype(dtype)
        rows = tuple(jnp.reshape(leaf, (n, -1)) - mu[i] * center for i, leaf in enumerate(leaves))
        a = blocks.apply(sigma_mu[None], rows)[0]
        tiles = jnp.reshape(jnp.pad(a, ((0, -n % _TILE), (0, 0))), (-1, _TILE, a.shape[1]))
        mean = jax.lax.map(lambda tile: _posterior_mean(self, tile, precision), tiles)
        mean = jnp.reshape((jnp.reshape(mean, (-1, a.shape[1])) + center)[:n], (n, *self.shape))
        residual = blocks.like(z, (leaf - mu[i] * mean for i, leaf in enumerate(leaves)))
        predicted = blocks.add(blocks.apply(gain, residual), blocks.apply(skip, z))
        return (
            predicted if self.residual else blocks.like(z, (leaf + pull[i] * mean for i, leaf in enumerate(predicted)))
        )


def _posterior_mean(score: MixtureScore, a: Array, precision: Array) -> Array:
    """Return ``sum_i w_i x_i`` with ``w_i`` proportional to ``exp(<a, x_i> - precision |x_i|^2 / 2)``, ``a [n, d]``.

    One pass over the data by blocks with a running maximum, so memory is ``n`` times one block.
    """

    def step(carry, block):
        top, total, weighted = carry
        points, half_norms = block[0].astype(a.dtype), block[1].astype(a.dtype)
        logits = jnp.dot(a, points.T, precision="highest") - precision * half_norms
        # Its derivative cancels. Left to JAX it is 0 / 0 where XLA computes the logits twice and rounds them
        # differently, so that none equals the largest.
        new_top = jax.lax.stop_gradient(jnp.maximum(top, logits.max(axis=1, keepdims=True)))
        weights, shrink = jnp.exp(logits - new_top), jnp.exp(top - new_top)
        total = total * shrink + weights.sum(axis=1, keepdims=True)
        weighted = weighted * shrink + jnp.dot(weights, points, precision="highest")
        return (new_top, total, weighted), None

    n, d = a.shape
    start = (jnp.full((n, 1), -jnp.inf, a.dtype), jnp.zeros((n, 1), a.dtype), jnp.zeros((n, d), a.dtype))
    (_, total, weighted), _ = jax.lax.scan(step, start, (score.points, score.half_norms))
    return weighted / total


def mixture(
    data: Array, bandwidth: float, sde: LinearSDE, *, t_min: float = MIN_TIME, data_block: int = 8192
) -> MixtureScore:
    """Make the exact ``eps_fn`` of the data set smoothed with a Gaussian, for any K-block SDE.

    For data ``x_i`` and bandwidth ``h`` the law of ``z_t`` is the mixture of ``N(mu_t x_i, S_t)`` with
    ``S_t = Sigma_t + h^2 mu_t mu_t^T`` for each pixel. With ``xhat = E[x_i | z]``,
    ``score = S^-1 (mu xhat - z)`` and ``eps = C^-1 (score - Cskip z)``: what a network for ``sde`` predicts.

    Args:
      data: ``[N, ...]``, finite.
      bandwidth: standard deviation ``h > 0``, in the data's units.
      sde: the diffusion.
      t_min: smallest time at which the score can be evaluated (below it, NaN).
      data_block: data points visited at a time: bounds the working memory at ``64 x data_block`` numbers.

    Raises:
      ValueError: for empty or non-finite data, or a bandwidth or block that is not positive.
    """
    data = np.asarray(data, np.float64)
    if data.ndim < 2 or data.size == 0:
        raise ValueError(f"data must be a non-empty array [N, ...], got shape {data.shape}")
    bad = ~np.isfinite(data).reshape(len(data), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f"data has NaN or infinite values in {bad.sum()} of {len(data)} points, first at index {bad.argmax()}"
        )
    bandwidth = check_number("bandwidth", bandwidth, 0, strict=True)
    check_counts(data_block=data_block)
    flat = data.reshape(len(data), -1)
    center = flat.mean(axis=0)
    flat = flat - center  # small numbers in the exponent: less to lose in float32
    size = min(data_block, len(flat))
    count = -(-len(flat) // size)
    points = np.zeros((count * size, flat.shape[1]))
    points[: len(flat)] = flat
    half_norms = np.full(count * size, np.inf)
    half_norms[: len(flat)] = 0.5 * (flat**2).sum(axis=1)

    # What tells x_0 from noise where there is no signal is not a multiple of z - mu xhat.
    path = sde if isinstance(sde, OneBlock) and (sde.prediction != "eps" or sde.data_std is not None) else None

    def coefficients(t: np.ndarray) -> np.ndarray:
        mu, total = sde.mean(t), sde.total_cov(t, bandwidth)
        sigma_mu = np.linalg.solve(total, mu)
        if path is not None:
            # out = p x_0 + q eps, with x_0 and eps of the posterior: x_0 = (sigma^2 xhat + h^2 alpha z) / S and
            # eps = sigma (z - alpha xhat) / S, which do not cancel.
            p, q = (number[..., None, None] for number in path.training_target(t))
            std = path.factor(t)
            skip = (p * bandwidth**2 * mu + q * std) / total
            pull = (p * std - q * mu) * std / total
            return np.concatenate([np.zeros_like(mu), skip, mu, sigma_mu, pull], axis=-1)
        # eps = C^-1 (S^-1 (mu xhat - z) - Cskip z) = gain (z - mu xhat) + skip z. A preconditioned C has rank one, and
        # what it multiplies lies in its range.
        inverse = np.linalg.inv(sde.score_matrix(t)) if sde.data_std is None else np.linalg.pinv(sde.score_matrix(t))
        gain, skip = -inverse @ np.linalg.inv(total), -inverse @ sde.score_skip(t)
        return np.concatenate([gain, skip, mu, sigma_mu, np.zeros_like(mu)], axis=-1)

    dtype = jnp.result_type(float)
    return MixtureScore(
        points.reshape(count, size, -1).astype(dtype),
        half_norms.reshape(count, size).astype(dtype),
        center.astype(dtype),
        TimeFunction(coefficients, t_min, knots=sde.knots),
        data.shape[1:],
        path is None,
    )
