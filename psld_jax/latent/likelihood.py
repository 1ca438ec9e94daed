"""Likelihood ``log p(x)`` by the probability-flow ODE; in phase space it is a bound over the momentum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime import random, xla
from psld_jax._runtime.checks import MIN_TIME, as_pixels, check_finite, check_known, check_number, check_seed
from psld_jax._runtime.device import to_device, wide
from psld_jax._runtime.errors import check_callable, check_choice, check_counts
from psld_jax.build import Model, check_model
from psld_jax.latent.codes import momentum_law, start_state
from psld_jax.sampling.adaptive import MAX_STEPS, OdeProblem, check_reached, check_solver, integrate, velocity
from psld_jax.sampling.states import evaluate
from psld_jax.sde import LinearSDE

Array = Any

DIVERGENCES = ("hutchinson", "exact")


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """What :func:`log_likelihood` found.

    Attributes:
      nats: ``[n]``, ``log p(x)``, for K > 1 a lower bound: the mean over the draws.
      standard_error: ``[n]``, of that mean; NaN for a single draw.
      nfe: ``[n]``, mean evaluations of the network for one draw.
      dims: numbers in an image.
    """

    nats: np.ndarray
    standard_error: np.ndarray
    nfe: np.ndarray
    dims: int

    def bits_per_dim(self) -> np.ndarray:
        """Return bits a dimension, ``[n]``, of images from :func:`dequantize`, whose 256 levels are 1/128 apart."""
        return -self.nats / (self.dims * np.log(2)) + np.log2(128)


def dequantize(levels: Array, seed: int = 0) -> np.ndarray:
    """Make images in [-1, 1] from levels 0 to 255, uint8: ``(level + u) / 128 - 1``, ``u`` uniform in [0, 1).

    Any shape, kept.

    Raises:
      ValueError: for levels that are not uint8, or a seed that is none.
    """
    check_known("levels", levels)
    try:
        levels = np.asarray(levels)
    except ValueError:
        raise ValueError("levels must be one array of uint8") from None
    if levels.dtype != np.uint8:
        raise ValueError(f"levels must be uint8, got {levels.dtype}")
    u = np.random.default_rng(check_seed(seed)).random(levels.shape)
    return ((levels + u) / 128 - 1).astype(np.float32)


def log_likelihood(
    model: Model,
    images: Array,
    *,
    draws: int = 4,
    divergence: str = "hutchinson",
    seed: int = 0,
    first: int = 0,
    t_end: float = 1e-5,
    solver: str = "rk45",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = MAX_STEPS,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Likelihood:
    """Compute ``log p(x)`` of images under the probability-flow ODE (Song et al., 2021, section 4.3).

    ``log p(z) = log p_1(z(1)) + int_{t_end}^1 div v dt`` along ``dz/dt = v = H z + N eps(z, t)``. In phase space a draw
    of the momentum ``m ~ q`` (``latent.momentum_law``) gives ``log p(x) >= E[log p(x, m) - log q(m | x)]``, with
    equality for the true law of the momentum given the image at ``t_end``, which ``q`` becomes for ``t_end -> 0``.

    The divergence of the linear part is known; that of the rest is exact, or Hutchinson's estimate ``xi^T J xi`` with
    signs ``xi`` for each block by itself, the same along the way (signs in both at once have a standard error fifty
    times as large). ``p_1`` is the prior, as it is for samples: what the diffusion leaves of the data at ``t = 1``
    counts as an error of the model.

    Args:
      model: from ``psld_jax.load``.
      images: ``[n, H, W, C]`` in [-1, 1]; :func:`dequantize` those of 256 levels.
      draws: of the momentum and ``xi``, for each image; together they give the standard error.
      divergence: ``"hutchinson"`` (K Jacobian-vector products an evaluation), or ``"exact"`` (as many as the state has
        numbers: for small images).
      seed: of the draws; those of image ``i`` are a function of ``(seed, first + i)``.
      first: number of the first image, where many are taken in several calls.
      t_end, solver, rtol, atol, max_steps: as for :func:`psld_jax.sample_ode`; they control the error of ``log p`` too.
      progress: wraps the numbers of the draws, e.g. ``tqdm.tqdm``.

    Raises:
      ValueError: for images of another shape, or options out of range.
    """
    check_model(model)
    check_counts(draws=draws)
    check_counts(0, first=first)
    check_solver(solver, rtol, atol)
    check_choice("divergence", divergence, DIVERGENCES)
    check_counts(max_steps=max_steps)
    check_number("t_end", t_end, MIN_TIME, 0.5)
    check_callable("progress", progress, "a function of the numbers of the draws, such as tqdm.tqdm")
    seed, sde = check_seed(seed), model.sde
    images = jnp.asarray(as_pixels("images", images, model.image_shape, levels=False))
    images = images.astype(wide(images.dtype))  # sums over all pixels need it
    dims = int(np.prod(model.image_shape))
    keys = random.sample_keys(jax.random.key(seed), first + np.arange(len(images)))
    matrices = velocity(sde, t_end, 1.0)
    times = to_device(np.array([t_end, 1.0, rtol, atol]), images.dtype)
    inverse = to_device(np.linalg.inv(sde.prior_cov()), images.dtype)
    log_scale = -0.5 * dims * float(np.linalg.slogdet(2 * np.pi * sde.prior_cov())[1])
    values, counts = [], []
    for draw in progress(range(draws)):
        draw_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, draw)
        z = start_state(model, images, draw_keys, t_end)
        signs = jax.tree.map(jnp.sign, random.normal_like(draw_keys, 0, z))
        options = {"divergence": divergence, "solver": solver, "max_steps": max_steps}
        end, change, nfe, reached = _flow(blocks.as_pytree(model.eps_fn), matrices, z, signs, times, **options)
        check_reached(OdeProblem(matrices, None, times, solver, "sample", max_steps), reached, nfe)
        pulled = blocks.apply(inverse, end)
        quadratic = sum(jnp.sum(a * b, axis=tuple(range(1, a.ndim))) for a, b in zip(end, pulled, strict=True))
        values.append(np.asarray(log_scale - 0.5 * quadratic + change, np.float64) - _log_momentum(sde, z, t_end))
        counts.append(np.asarray(nfe))
    error = np.std(values, axis=0, ddof=1) / np.sqrt(draws) if draws > 1 else np.full(len(images), np.nan)
    check_finite("log p", [np.stack(values, axis=1)], len(images), "Look at the weights, or take a larger t_end")
    return Likelihood(np.mean(values, axis=0), error, np.mean(counts, axis=0), dims)


def _log_momentum(sde: LinearSDE, z: blocks.State, t: float) -> np.ndarray:
    """Return ``log q`` of everything but the position, ``[n]``."""
    total = np.zeros(len(z[0]))
    if sde.num_blocks > 1:
        x, *rest = (np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in z)
        mean, cov = momentum_law(sde, t)
        m = np.stack(rest) - mean[:, :, None] * x
        total -= 0.5 * np.einsum("ind,ij,jnd->n", m, np.linalg.inv(cov), m)
        total -= 0.5 * m.shape[-1] * np.linalg.slogdet(2 * np.pi * cov)[1]
    return total


@partial(xla.jit, what="the solver of the likelihood", static_argnames=("divergence", "solver", "max_steps"))
def _flow(eps_fn, matrices, z, signs, times, *, divergence: str, solver: str, max_steps: int):
    """Return state at ``t = 1``, integral of the divergence, NFE and time reached, for each sample by itself."""

    def field(t, carry, signs):
        z, _ = carry
        matrix = matrices(t)
        k = matrix.shape[0]

        def forced(z):
            return blocks.apply(matrix[:, k:], evaluate(eps_fn, z, t))

        def product(direction):
            out, tangent = jax.jvp(forced, (z,), (direction,))
            return out, sum(jnp.sum(a * b) for a, b in zip(direction, tangent, strict=True))

        size = z[0].size
        if divergence == "hutchinson":
            # Block by block: signs in both at once would add what x does to m, which is large and not in the trace.
            alone = [
                blocks.like(z, (s if i == j else jnp.zeros_like(s) for i, s in enumerate(signs))) for j in range(k)
            ]
            (out, trace), *rest = map(product, alone)
            trace = trace + sum(other for _, other in rest)
        else:
            basis = jnp.eye(k * size, dtype=z[0].dtype).reshape(k * size, k, *z[0].shape)
            out, trace = forced(z), jax.lax.map(lambda e: product(blocks.like(z, e))[1], basis).sum()
        return blocks.add(blocks.apply(matrix[:, :k], z), out), size * jnp.trace(matrix[:, :k]) + trace

    def norm(errors):
        # One number for log p among thousands of pixels would not count in a common mean.
        state, change = errors
        count = sum(leaf.size for leaf in state)
        return jnp.maximum(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in state) / count), jnp.abs(change))

    def solve(z, signs):
        start = (z, jnp.zeros((), z[0].dtype))
        options: dict[str, Any] = {"max_steps": max_steps, "first_step": 0.01 * times[0], "args": signs, "norm": norm}
        (end, change), nfe, reached = integrate(field, solver, times, start, **options)
        return end, change, nfe, reached

    end, change, nfe, reached = jax.vmap(solve)(*jax.tree.map(lambda leaf: leaf[:, None], (z, signs)))
    return jax.tree.map(lambda leaf: leaf[:, 0], end), change, nfe, reached
