"""Sampling a posterior by particles that are weighed and resampled: twisted diffusion sampling (Wu et al., 2023).

Guidance by a measurement is an approximation, so its samples do not have the law ``p(x_0 | y)``. Here several particles
take the same guided way, and the error of the guidance is weighed. With ``psi_t(z)`` the likelihood that the guidance
assumes, and ``q`` the step with its gradient, a step from ``z_t`` to ``z_s`` has the weight

    p(z_s | z_t) / q(z_s | z_t)  psi_s(z_s) / psi_t(z_t),    psi_0(x_0) = p(y | x_0).

Both steps are Gaussians of one covariance, whose means differ by ``B V W grad log psi_t``: the quotient is a function
of the noise that was drawn. The product of all weights is ``p(y | x_0)`` over what guidance has done already. So for
many particles the law is that of the sampler without guidance, times ``p(y | x_0)``, whatever ``psi`` is.

Particles of one measurement are resampled (systematically) when their effective number is small, and at the end.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime import random, xla
from psld_jax._runtime.checks import check_finite, check_measurement, check_noise, check_number, check_seed
from psld_jax._runtime.device import to_device
from psld_jax._runtime.errors import check_callable, check_choice, check_counts, check_kind
from psld_jax.build import Model, check_model
from psld_jax.conditioning._operators import LINEAR, check_operator
from psld_jax.conditioning.measurements import POSTERIORS, PosteriorGuided, posterior_guided
from psld_jax.integrators.tableau import Tableau
from psld_jax.sampling.settings import Setting

Array = Any

#: Draws of keys that are no noise of a step.
_RESAMPLING = 2**31


class Particles(NamedTuple):
    """What :func:`sample_posterior` returns.

    Attributes:
      images: float32 ``[m, particles, H, W, C]`` in [-1, 1], of equal weights.
      effective: float32 ``[nfe, m]``, ``1 / sum w^2`` of the particles at each evaluation but the last, and at the end;
        1 means that all but one are lost.
      nfe: evaluations of the network for each particle.
      backward: of these, evaluations that also ran backward.
    """

    images: np.ndarray
    effective: np.ndarray
    nfe: int
    backward: int


def sample_posterior(
    model: Model,
    operator: Any,
    measurement: Array,
    *,
    noise_std: float = 0.05,
    particles: int = 16,
    nfe: int = 50,
    posterior: str = "pigdm",
    weight: float = 1.0,
    threshold: float = 0.5,
    seed: int = 0,
    grid: str = "auto",
    batch_size: int = 256,
) -> Particles:
    """Draw from ``p(x_0 | y)`` for ``y = A x_0 + noise_std n``, by particles that are resampled.

    The sampler is ``ancestral`` of order 1. Every particle takes ``nfe`` evaluations of the network, forward and
    backward but for the last one.

    Args:
      model: from :func:`psld_jax.load`.
      operator: ``A``, a function of images, each by itself: linear, or with a derivative for ``posterior="dps"``.
      measurement: ``y``, floating ``[m, ...]``.
      noise_std: of the measurement, > 0.
      particles: for each measurement; more of them are closer to the exact law.
      nfe: budget of each particle.
      posterior: how particles are guided, ``"pigdm"`` or ``"dps"``; the weights mend what it assumes.
      weight: of the guidance; 0 leaves everything to the weights.
      threshold: part of the particles below which the effective number leads to resampling, 0 to 1.
      seed: of all draws; measurement ``i`` has draws of its own.
      grid: name of a time grid. ``"auto"`` is that of the diffusion, or ``"quadratic"`` where that is uniform: equal
        steps in time end with one over most noise levels, in which nearly all weights vanish.
      batch_size: particles at a time, those of whole measurements: of one at least.

    Raises:
      ValueError: for anything out of range, or an operator that does not fit; (``NotFinite``) for particles that are
        not finite.
    """
    check_model(model)
    check_callable("operator", operator, "a function of images, one of psld_jax.operators")
    check_choice("posterior", posterior, POSTERIORS)
    check_counts(particles=particles, nfe=nfe, batch_size=batch_size)
    noise_std = check_noise(noise_std, strict=True)
    check_number("weight", weight, 0)
    check_number("threshold", threshold, 0, 1)
    seed = check_seed(seed)
    y = check_measurement("measurement", measurement)
    check_operator(operator, y, model.image_shape, noise_std, linear="" if posterior == "dps" else LINEAR)
    if nfe < 2:
        raise ValueError(f"nfe={nfe} must be at least 2: one step and the denoising one")
    check_kind("grid", grid, str, "'auto', or the name of one")
    own = "quadratic" if model.sde.grid == "uniform" else model.sde.grid
    table = Setting("ancestral", own if grid == "auto" else grid, hyper={"order": 1}).table(model.sde, nfe)
    particles, rows = int(particles), _rows(table)
    options = jnp.float32(weight), jnp.float32(threshold * particles)
    guide = posterior_guided(model.eps_fn, model.sde, operator, y, noise_std=noise_std, method=posterior)
    at_a_time = min(max(int(batch_size) // particles, 1), len(y))
    images, effective = [], []
    for first in range(0, len(y), at_a_time):
        # The last part is filled up with the last measurement, so that it runs in the same program.
        owners = np.arange(first, first + at_a_time).clip(max=len(y) - 1)
        part = dataclasses.replace(guide, measurement=guide.measurement[np.repeat(owners, particles)])
        numbers = owners[:, None] * particles + np.arange(particles)
        keys = random.sample_keys(jax.random.key(seed), numbers.ravel())
        z_T = model.sde.prior_sample(keys, (len(keys), *model.image_shape))
        z, kept = _run(part, rows, z_T, keys, *options, particles=particles)
        images.append(np.asarray(z[0]))
        effective.append(np.asarray(kept))
    drawn = np.concatenate(images)[: len(y) * particles]
    check_finite("particles", [drawn], len(drawn), "Take more evaluations (nfe), or a smaller weight")
    drawn = np.clip(drawn, -1, 1).reshape(len(y), particles, *model.image_shape)
    return Particles(drawn, np.concatenate(effective, axis=1)[:, : len(y)], table.nfe, table.nfe - 1)


def _rows(table: Tableau) -> dict[str, Array]:
    """Return the rows of a first-order table but the last, on the device, with ``R^-1 B V``, which shifts the noise."""
    inner, b = slice(0, table.nfe - 1), table.B[:, 0]
    assert table.R is not None
    shift = np.linalg.solve(table.R[inner], b[inner] @ table.V[inner])
    names = {"tau": table.tau, "U": table.U, "V": table.V, "A": table.A, "B": b, "R": table.R}
    steps = {name: values[inner] for name, values in names.items()} | {"shift": shift}
    last = {f"last_{name}": values[-1] for name, values in names.items() if name != "R"}
    return to_device({**steps, **last}, jnp.float32)


def _step(row: dict[str, Array], z: blocks.State, eps: blocks.State) -> blocks.State:
    """Return ``A z + B (U z + V eps)``, leaves ``[n, ...]``."""
    q = blocks.add(blocks.apply(row["U"], z), blocks.apply(row["V"], eps))
    return blocks.add(blocks.apply(row["A"], z), blocks.apply(row["B"], q))


def _run_particles(
    guide: PosteriorGuided,
    rows: dict[str, Array],
    z: blocks.State,
    keys: Array,
    weight: Array,
    enough: Array,
    *,
    particles: int,
) -> tuple[blocks.State, Array]:
    """Return the final particles, leaves ``[m particles, ...]``, and their effective numbers, ``[nfe, m]``."""
    groups = len(keys) // particles
    owners = keys.reshape(groups, particles)[:, 0]

    def resampled(number: Array, logs: Array, tree: Any, always: bool = False) -> tuple[Array, Any, Array]:
        """Resample where it is due: log weights ``[m, particles]`` and a tree of particles after it, and before it."""
        logs = logs - jax.scipy.special.logsumexp(logs, axis=1, keepdims=True)
        effective = 1 / jnp.exp(2 * logs).sum(axis=1)
        due = (effective < enough) | always

        def uniform(key: Array) -> Array:
            key = jax.random.fold_in(jax.random.fold_in(key, _RESAMPLING), number)
            return jax.random.uniform(key, dtype=logs.dtype)  # the same draws with and without float64

        at = (jnp.arange(particles, dtype=logs.dtype) + jax.vmap(uniform)(owners)[:, None]) / particles
        ends = jnp.cumsum(jnp.exp(logs), axis=1)
        chosen = jax.vmap(jnp.searchsorted)(ends / ends[:, -1:], at).clip(0, particles - 1)
        unmoved, first = (jnp.arange(count, dtype=chosen.dtype) for count in (particles, groups))
        chosen = jnp.where(due[:, None], chosen, unmoved) + particles * first[:, None]
        tree = jax.tree.map(lambda leaf: leaf[chosen.ravel()], tree)
        return jnp.where(due[:, None], -np.log(particles).astype(logs.dtype), logs), tree, effective

    def body(carry: Any, inputs: Any) -> Any:
        z, logs = carry
        number, row = inputs
        eps, gradient, likelihood = guide.parts(z, row["tau"])
        # Weights say what has been drawn so far: with psi of this state, without that of the state before.
        logs, tree, effective = resampled(
            number, logs + likelihood.reshape(groups, particles), (z, eps, gradient, likelihood)
        )
        z, eps, gradient, likelihood = tree
        xi = random.normal_like(keys, number, z)
        pushed = blocks.apply(weight * guide.gradient(row["tau"]), gradient)
        away = blocks.apply(row["shift"], pushed)
        # log p / q = |xi|^2 / 2 - |xi + R^-1 B V W g|^2 / 2
        quotient = sum(-jnp.sum(a * (x + 0.5 * a), axis=(1, 2, 3)) for a, x in zip(away, xi, strict=True))
        z = blocks.add(_step(row, z, blocks.add(eps, pushed)), blocks.apply(row["R"], xi))
        return (z, logs + (quotient - likelihood).reshape(groups, particles)), effective

    last = {name.removeprefix("last_"): value for name, value in rows.items() if name.startswith("last_")}
    steps = {name: value for name, value in rows.items() if not name.startswith("last_")}
    count = len(steps["tau"])
    logs = jnp.full((groups, particles), -np.log(particles), weight.dtype)
    (z, logs), effective = jax.lax.scan(body, (z, logs), (jnp.arange(count), steps))
    z = _step(last, z, guide.eps_fn(z, last["tau"]))
    off = guide.measurement - guide.operator(z[0])
    exact = -0.5 * jnp.sum((off / guide.noise_std) ** 2, axis=tuple(range(1, off.ndim)))
    logs = logs + exact.reshape(groups, particles)
    _, z, final = resampled(jnp.asarray(count), logs, z, always=True)
    return z, jnp.concatenate([effective, final[None]])


_run = xla.jit(_run_particles, "the particles", static_argnames=("particles",))
