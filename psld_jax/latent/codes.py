"""The probability-flow ODE in both directions: from images to latent states and back, and paths between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime import random
from psld_jax._runtime.checks import as_pixels, check_array, check_finite, check_number, check_seed
from psld_jax._runtime.device import to_device
from psld_jax._runtime.errors import shown
from psld_jax.build import Model, check_model
from psld_jax.sampling.adaptive import encode_ode, sample_ode
from psld_jax.sampling.states import check_state
from psld_jax.sde import LinearSDE, check_sde, cholesky

Array = Any


def encode(
    model: Model,
    images: Array,
    *,
    seed: int = 0,
    t_end: float | None = None,
    solver: str = "rk45",
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> blocks.State:
    """Compute latent states of images by the probability-flow ODE from ``(x, m)`` at ``t_end`` to 1.

    The momentum of image ``i`` is a draw of :func:`momentum_law`, a function of ``(seed, i)``: in phase space an image
    has many codes.

    Args:
      model: from ``psld_jax.load``.
      images: ``[n, H, W, C]`` in [-1, 1].
      seed: of the momentum.
      t_end, solver, rtol, atol: as for :func:`psld_jax.sample_ode`.

    Returns:
      A state at ``t = 1``, distributed nearly as the prior.

    Raises:
      ValueError: for images of another shape, or options out of range.
    """
    check_model(model)
    seed, t_end = check_seed(seed), model.sde.t_end if t_end is None else check_number("t_end", t_end)
    images = as_pixels("images", images, model.image_shape)
    z = start_state(model, images, random.sample_keys(jax.random.key(seed), np.arange(len(images))), t_end)
    options: dict[str, Any] = {"t_end": t_end, "solver": solver, "rtol": rtol, "atol": atol}
    codes = encode_ode(model.eps_fn, model.sde, z, **options)[0]
    check_finite("codes", codes, len(images), "Look at the weights, or take a larger t_end")
    return codes


def decode(
    model: Model,
    z: blocks.State,
    *,
    t_end: float | None = None,
    solver: str = "rk45",
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Array:
    """Compute images from latent states: the inverse of :func:`encode`, within the tolerance (no denoising step).

    Args:
      model: from ``psld_jax.load``.
      z: latent states, leaves ``[n, H, W, C]``.
      t_end, solver, rtol, atol: as for :func:`encode`.

    Returns:
      Images ``[n, H, W, C]``, not clipped, in the dtype of ``z``.

    Raises:
      ValueError: for an unknown solver, tolerances or times out of range, or states that do not fit.
    """
    check_model(model)
    options: dict[str, Any] = {"t_end": t_end, "solver": solver, "rtol": rtol, "atol": atol}
    images = sample_ode(model.eps_fn, model.sde, z, denoise=False, **options)[0][0]
    check_finite("images of codes", [images], len(images), "Look at the codes and the weights")
    return images


def momentum_law(sde: LinearSDE, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Return mean ``[K - 1, 1]`` (times the image) and covariance ``[K - 1, K - 1]`` of the momentum at a small ``t``.

    That of the kernel for ``x_0 = x / mu_x``: at ``t = 1e-5`` the noise in the momentum is already 1% of the variance
    that it starts with.
    """
    mu = sde.mean(t)
    return mu[1:] / mu[:1], sde.cov(t)[1:, 1:]


def start_state(model: Model, images: Array, keys: Array, t: float) -> blocks.State:
    """Make ``(x, m)`` with the momentum drawn from its law at ``t``, by one key for each image.

    Images ``[n, H, W, C]`` and keys ``[n]`` to a state, leaves ``[n, H, W, C]``.

    Raises:
      ValueError: for images that do not fit the model.
    """
    images = jnp.asarray(as_pixels("images", images, model.image_shape))
    sde = model.sde
    mean, cov = momentum_law(sde, t)
    transform = to_device(np.concatenate([mean, cholesky(cov)], axis=1), images.dtype)
    like = sde.state(*[images] * sde.num_blocks)
    noise = random.normal_like(keys, random.PRIOR_DRAW, like)
    return blocks.like(like, (images, *blocks.apply(transform, (images, *noise[1:]))))


def interpolate(sde: LinearSDE, a: blocks.State, b: blocks.State, weights: Sequence[float]) -> blocks.State:
    """Interpolate spherically (Shoemake, 1985) in phase space, between latent states of one sample each.

    In coordinates in which the prior is N(0, I), ``(sin((1 - w) angle) a + sin(w angle) b) / sin(angle)``, the angle
    being that between all blocks of ``a`` and ``b`` together: every point on the way is as probable as its ends.

    Args:
      sde: the diffusion.
      a, b: states with leaves ``[1, ...]``.
      weights: from 0 (``a``) to 1 (``b``).

    Returns:
      A state with leaves ``[len(weights), ...]``.

    Raises:
      ValueError: for states of more than one sample.
    """
    check_sde(sde)
    check_array("weights", weights)
    if np.ndim(weights) != 1:
        raise ValueError(f"weights={shown(weights)} must be several numbers, [n]")
    for name, state in (("a", a), ("b", b)):
        check_state(state, sde.num_blocks)
        for leaf in state:
            check_array(f"state {name}", leaf)
    if len(a[0]) != 1 or len(b[0]) != 1:
        raise ValueError(f"interpolate takes one sample each, got {len(a[0])} and {len(b[0])}")
    white, colour = np.linalg.inv(cholesky(sde.prior_cov())), cholesky(sde.prior_cov())
    u, v = (jnp.stack(blocks.apply(to_device(white, a[0].dtype), z)) for z in (a, b))
    angle = jnp.arccos(jnp.clip(jnp.sum(u * v) / (jnp.linalg.norm(u.ravel()) * jnp.linalg.norm(v.ravel())), -1, 1))
    w = jnp.asarray(weights, u.dtype).reshape(-1, *[1] * (u.ndim - 2))
    mixed = (jnp.sin((1 - w) * angle) * u + jnp.sin(w * angle) * v) / jnp.sin(angle)
    return blocks.apply(to_device(colour, u.dtype), blocks.like(a, mixed))
