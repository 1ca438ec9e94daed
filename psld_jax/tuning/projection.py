"""Weights by which the two outputs of a network give ``x_0``, fitted to the errors of the network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime.checks import as_pixels, check_seed
from psld_jax._runtime.device import to_device
from psld_jax._runtime.errors import shown
from psld_jax.build import Model, check_model

Array = Any


def fit_projection(
    model: Model, images: Array, *, times: Array | None = None, seed: int = 0
) -> tuple[tuple[float, float, float], ...]:
    """Fit the weights by which the two outputs of a network give the best ``x_0``, on a few images.

    ``z + Sigma score = mu x_0`` holds in both blocks for an exact score. A network's blocks err by ``e_1`` and ``e_2``
    (as estimates of ``x_0``); the weights ``a, b`` are those that make ``<(a (x_0 + e_1) + b (x_0 + e_2) - x_0)^2>``
    smallest. Near ``t = 1``, where a plain network's estimates err by more than the images vary, they are small: what
    preconditioning would have done. For an exact score ``a + b = 1``.

    Args:
      model: from ``psld_jax.load``, with a network that predicts both blocks.
      images: ``[n, H, W, C]`` in [-1, 1], in one batch.
      times: at which to fit; by default 33 from 1e-4 to 1, equal in their logarithm.
      seed: of the noise.

    Returns:
      Triples ``(t, a, b)``, the hyper-parameter ``projection`` of ``exponential_multistep`` and others.

    Raises:
      ValueError: for a model with one block, or whose network predicts one; for images, times or a seed that are none.
    """
    check_model(model)
    sde, seed = model.sde, check_seed(seed)
    if sde.num_blocks != 2 or sde.data_std is not None:
        reason = "has one block" if sde.num_blocks != 2 else "is preconditioned: its network predicts one block"
        raise ValueError(f"there is nothing to fit: the model {reason}")
    times = np.geomspace(1e-4, 1.0, 33) if times is None else np.asarray(times)
    if times.ndim != 1 or not len(times) or times.dtype.kind not in "iuf" or not ((times > 0) & (times <= 1)).all():
        raise ValueError(f"times={shown(times.tolist())} must be one or more numbers in (0, 1]")
    images = jnp.asarray(as_pixels("images", images, model.image_shape), jnp.float32)
    keys = jax.random.split(jax.random.key(seed), sde.num_blocks)
    noise = sde.state(*(jax.random.normal(key, images.shape, images.dtype) for key in keys))
    fitted = []
    for t in times:
        mu, cov = sde.mean(t), sde.cov(t)
        skip = (np.eye(2) + cov @ sde.score_skip(t)) / mu
        gain = cov @ sde.score_matrix(t) / mu
        z = sde.perturb(images, float(t), noise)
        matrices = to_device((skip, gain), jnp.float32)
        estimates = [np.ravel(e).astype(float) for e in _estimates(model.eps_fn, matrices, z, jnp.float32(t))]
        weights = np.linalg.lstsq(np.stack(estimates, axis=-1), np.ravel(images), rcond=None)[0]
        fitted.append((float(t), *map(float, weights)))
    return tuple(fitted)


@jax.jit
def _estimates(eps_fn, matrices, z, t):
    """Return what each block says of ``x_0``."""
    skip, gain = matrices
    return blocks.add(blocks.apply(skip, z), blocks.apply(gain, eps_fn(z, t)))
