"""Stability of samplers, and exact propagation of mean and covariance where eps is linear and a step is affine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime.errors import check_kind
from psld_jax.integrators import grids
from psld_jax.integrators.base import Integrator
from psld_jax.integrators.tableau import Tableau, tabulate
from psld_jax.sde import LinearSDE, check_sde
from psld_jax.sde._quadrature import conjugate_flow

Array = Any
Jacobian = Callable[[float], np.ndarray]


def propagate(
    table: Tableau, jacobian: Jacobian | Array, mean: Array, cov: Array, offset: Callable | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean ``[K]`` and covariance ``[K, K]`` after a sampler, for ``eps(z, t) = J(t) z + offset(t)``.

    No Monte Carlo: the covariance of state and prediction history is carried through every row of the table.

    Args:
      table: from ``psld_jax.tabulate``.
      jacobian: ``J``, ``[K, K]`` or a function of time.
      mean, cov: of the initial state.
      offset: function of time, ``[K]``; default 0.
    """
    k, depth = table.num_blocks, table.B.shape[1]
    size = k * (1 + depth)
    m, c = np.zeros(size), np.zeros((size, size))
    m[:k], c[:k, :k] = mean, cov
    for i in range(table.nfe):
        j = _at(jacobian, float(table.tau[i]))
        shift = np.zeros(k) if offset is None else np.asarray(offset(float(table.tau[i])))
        if table.P is not None and table.Rpre is not None:
            before = np.eye(size)
            before[:k, :k] = table.P[i]
            m, c = before @ m, before @ c @ before.T
            c[:k, :k] += table.Rpre[i] @ table.Rpre[i].T
        push = np.zeros((size, size))
        push[:k, :k] = np.eye(k)
        push[k : 2 * k, :k] = table.U[i] + table.V[i] @ j
        push[2 * k :, k : size - k] = np.eye(size - 2 * k)
        m, c = push @ m, push @ c @ push.T
        m[k : 2 * k] += table.V[i] @ shift
        after = np.eye(size)
        after[:k, :k] = table.A[i]
        after[:k, k:] = np.concatenate(list(table.B[i]), axis=1)
        m, c = after @ m, after @ c @ after.T
        if table.R is not None:
            c[:k, :k] += table.R[i] @ table.R[i].T
    return m[:k], c[:k, :k]


def _at(jacobian: Jacobian | Array, t: float) -> np.ndarray:
    return np.asarray(jacobian(t) if callable(jacobian) else jacobian, np.float64)


def gaussian_jacobian(sde: LinearSDE, variance: float) -> Jacobian:
    """Return ``J(t)`` of the exact eps when the data are Gaussian, ``x_0 ~ N(0, variance)`` for each pixel.

    ``score = -Stilde^-1 z``, ``Stilde = Sigma + variance mu mu^T``, so ``J = -C^-1 (Stilde^-1 + Cskip)``.
    """

    def jacobian(t: float) -> np.ndarray:
        total = sde.total_cov(t, np.sqrt(variance))
        return -np.linalg.pinv(sde.score_matrix(t)) @ (np.linalg.inv(total) + sde.score_skip(t))

    return jacobian


def estimate_jacobian(eps_fn: Callable, z: blocks.State, t: float, key: Array) -> np.ndarray:
    """Estimate ``J[k, l]``, the mean diagonal of ``d eps_k / d z_l`` at ``(z, t)``, by Hutchinson's estimator.

    The estimator takes one probe a block. Returns float64 ``[K, K]``, averaged over samples and pixels.
    """
    time = jnp.asarray(t, jax.tree.leaves(z)[0].dtype)
    return np.asarray(_hutchinson(blocks.as_pytree(eps_fn), z, time, key), np.float64)


@jax.jit
def _hutchinson(eps_fn, z, t, key):
    leaves, structure = jax.tree.flatten(z[0])
    size = sum(leaf.size for leaf in leaves)
    keys = jax.random.split(key, len(leaves))
    signs = [jax.random.rademacher(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    probe = jax.tree.unflatten(structure, signs)
    zeros = jax.tree.map(jnp.zeros_like, z)

    def column(j: int) -> Array:
        tangent = blocks.like(z, (probe if i == j else zero for i, zero in enumerate(zeros)))
        _, moved = jax.jvp(lambda z: tuple(eps_fn(z, t)), (z,), (tangent,))
        products = [jax.tree.map(jnp.vdot, block, probe) for block in moved]
        return jnp.stack([sum(jax.tree.leaves(product)) / size for product in products])

    return jnp.stack([column(j) for j in range(len(z))], axis=1)


def step_maps(
    integrator: Integrator, sde: LinearSDE, grid: Array, jacobian: Jacobian | Array
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the linear maps of every step, ``[N, K, K]`` each: the integrator's, and the exact flow's.

    For stochastic methods these are the maps of the mean, against the drift of the reverse SDE.

    Raises:
      ValueError: as :func:`stability`.
    """
    check_kind("integrator", integrator, Integrator, "one of psld_jax.integrators.get")
    check_sde(sde)
    grid = grids.validate(grid)
    k, weight = sde.num_blocks, 1.0 if integrator.stochastic else 0.5

    def minus_generator(u: np.ndarray) -> np.ndarray:
        j = np.stack([_at(jacobian, float(x)) for x in u])
        d = sde.diffusion(u)
        return -(sde.drift(u) - weight * d @ (sde.score_skip(u) + sde.score_matrix(u) @ j))

    steps, flows = [], []
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        table = tabulate(integrator, sde, np.array([t, s]), denoise=False)
        unit = np.eye(k)
        steps.append(np.stack([propagate(table, jacobian, e, np.zeros((k, k)))[0] for e in unit], axis=1))
        inverse, _ = conjugate_flow(minus_generator, _zero_forcing(k), t, s)
        flows.append(np.linalg.inv(inverse))
    return np.stack(steps), np.stack(flows)


def _zero_forcing(k: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda u: np.zeros((len(u), k, k))


def stability(integrator: Integrator, sde: LinearSDE, grid: Array, jacobian: Jacobian | Array) -> np.ndarray:
    """Compute the spectral radius of each step relative to the exact flow, float64 ``[N]`` (paper, theorem 2).

    With ``eps(z, t) = J z`` a step is a matrix ``M`` and the exact flow over it a matrix ``E``; this is the
    spectral radius of ``M E^-1``. Above 1 the step amplifies errors that the exact flow would not.

    Args:
      integrator, sde, grid: as for ``psld_jax.tabulate``.
      jacobian: ``J``, ``[K, K]`` or a function of time; see :func:`gaussian_jacobian` and
        :func:`estimate_jacobian`.

    Raises:
      ValueError: as :func:`psld_jax.tabulate`, and for a Jacobian that is no finite ``[K, K]``.
    """
    steps, flows = step_maps(integrator, sde, grid, jacobian)
    return np.abs(np.linalg.eigvals(steps @ np.linalg.inv(flows))).max(axis=-1)
