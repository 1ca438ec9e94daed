"""Conjugate integrators: DDIM generalised (Pandey, Rudolph & Mandt, ICLR 2024, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from psld_jax.integrators.base import Stage, real_number, register
from psld_jax.sde import LinearSDE

# Collocation at Gauss points on each panel; panels are halved until the result stops moving.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2
_RTOL = 1e-12
_MAX_DEPTH = 40


def _integration_matrix() -> np.ndarray:
    """``Q[i, j] = int_0^{c_i} l_j``, with ``l_j`` the Lagrange polynomials of the Gauss points ``c``."""
    legendre = np.polynomial.legendre
    vandermonde = legendre.legvander(2 * _NODES - 1, len(_NODES) - 1)
    integrals = np.stack(
        [legendre.legval(2 * _NODES - 1, legendre.legint(row, lbnd=-1)) / 2 for row in np.eye(len(_NODES))],
        axis=-1,
    )
    return integrals @ np.linalg.inv(vandermonde)


_Q = _integration_matrix()

MatrixFunction = Callable[[np.ndarray], np.ndarray]


def conjugate_flow(
    generator: MatrixFunction, forcing: MatrixFunction, t: float, s: float
) -> tuple[np.ndarray, np.ndarray]:
    """``A(s)`` and ``Phi(s)`` of ``dA/du = A generator(u)``, ``dPhi/du = A forcing(u)``, ``A(t) = I``, ``Phi(t) = 0``.

    ``A`` by collocation at 12 Gauss points and ``Phi`` by Gauss-Legendre quadrature on the same points, on
    panels that are halved until both stand still to 1e-12 relative. Works whether or not ``generator``
    commutes with itself over the step. Float64 ``[K, K]`` each.
    """

    def panel(a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
        u = a + (b - a) * _NODES
        g, force = generator(u), forcing(u)
        k, n = g.shape[-1], len(u)
        # Rows of A satisfy a_i = a_0 + (b - a) sum_j Q_ij a_j G_j: one linear system for all nodes.
        system = np.eye(n * k) - (b - a) * np.einsum("ij,jkl->jkil", _Q, g).reshape(n * k, n * k)
        at_nodes = np.linalg.solve(system.T, np.tile(np.eye(k), (n, 1))).reshape(n, k, k)
        at_nodes = np.swapaxes(at_nodes, -1, -2)
        end = np.eye(k) + (b - a) * np.einsum("i,ijk,ikl->jl", _WEIGHTS, at_nodes, g)
        return end, (b - a) * np.einsum("i,ijk,ikl->jl", _WEIGHTS, at_nodes, force)

    def refine(a: float, b: float, whole: tuple, depth: int) -> tuple[np.ndarray, np.ndarray]:
        middle = (a + b) / 2
        left, right = panel(a, middle), panel(middle, b)
        both = _join(left, right)
        moved = max(
            np.abs(x - y).max() / max(np.abs(y).max(), np.finfo(float).tiny) for x, y in zip(whole, both, strict=True)
        )
        if moved <= _RTOL:
            return both
        if depth == _MAX_DEPTH:
            raise ValueError(f"the coefficients of the step {t} -> {s} do not converge (last move {moved:.1e})")
        return _join(refine(a, middle, left, depth + 1), refine(middle, b, right, depth + 1))

    return refine(t, s, panel(t, s), 0)


def _join(first: tuple, second: tuple) -> tuple[np.ndarray, np.ndarray]:
    return first[0] @ second[0], first[1] + first[0] @ second[1]


def conjugate_stage(
    sde: LinearSDE,
    t: float,
    s: float,
    b: np.ndarray,
    *,
    project: np.ndarray | None = None,
    stochastic: bool = False,
) -> Stage:
    """One conjugate step: Euler for ``zhat = A z`` from ``t`` to ``s``, written in the frame with ``A(t) = I``.

    ``z <- A(s)^-1 [(I - h B) z + Phi(s) eps]``, where ``dA/du = A (B - F + w D Cskip)`` and
    ``dPhi/du = -w A D C`` with ``w = 1/2`` (ODE). With ``stochastic`` the split drift of the reverse SDE is
    meant: ``w = 1`` and ``F + F_O`` for ``F`` (see ``splitting``). ``project`` = E restricts the flow to some
    blocks: ``E F``, ``E D``, ``E B``.
    """
    k = sde.num_blocks
    e = np.eye(k) if project is None else project
    weight = 1.0 if stochastic else 0.5
    inverse_prior = np.linalg.inv(sde.prior_cov())

    def generator(u: np.ndarray) -> np.ndarray:
        f, d = sde.drift(u), sde.diffusion(u)
        if stochastic:
            f = f - 0.5 * d @ inverse_prior
        return e @ (b - f + weight * d @ sde.score_skip(u))

    def forcing(u: np.ndarray) -> np.ndarray:
        return -weight * e @ sde.diffusion(u) @ sde.score_matrix(u)

    a, phi = conjugate_flow(generator, forcing, t, s)
    inverse = np.linalg.inv(a)
    return Stage(inverse @ (np.eye(k) - (t - s) * e @ b), (inverse @ phi,))


@register("ddim", order=1, aliases=("DDIM",))
def ddim(sde: LinearSDE, t: float, s: float) -> list[Stage]:
    """DDIM: the conjugate integrator with ``B = 0``, an exponential integrator in eps.

    On VP exactly DDIM (Song, Meng & Ermon, ICLR 2021), on PSLD first-order DEIS (Zhang & Chen, ICLR 2023).
    ``z <- A(s)^-1 [z + Phi(s) eps]``. Exact for constant eps. Order 1, NFE 1, deterministic, any K.
    """
    return [conjugate_stage(sde, t, s, np.zeros((sde.num_blocks,) * 2)).at(t)]


@register("lambda_ddim_i", order=1, aliases=("lambda-DDIM-I",))
def lambda_ddim_i(sde: LinearSDE, t: float, s: float, *, lam: float = 0.5) -> list[Stage]:
    """lambda-DDIM-I: the conjugate integrator with ``B = lam I`` (paper, section 3.1).

    Order 1, NFE 1, deterministic, any K. ``lam = 0`` is DDIM; the best value falls with the NFE.
    """
    lam = real_number("lam", lam)
    return [conjugate_stage(sde, t, s, lam * np.eye(sde.num_blocks)).at(t)]


@register("lambda_ddim_ii", order=1, aliases=("lambda-DDIM-II",))
def lambda_ddim_ii(sde: LinearSDE, t: float, s: float, *, lam: float = 0.5) -> list[Stage]:
    """lambda-DDIM-II: the conjugate integrator with ``B = lam 1 1^T`` (paper, section 3.1).

    Order 1, NFE 1, deterministic, any K. ``lam = 0`` is DDIM; the best value falls with the NFE.
    """
    lam = real_number("lam", lam)
    return [conjugate_stage(sde, t, s, lam * np.ones((sde.num_blocks,) * 2)).at(t)]


@register("conjugate", order=1)
def conjugate(sde: LinearSDE, t: float, s: float, *, B: Any = 0.0) -> list[Stage]:
    """The conjugate integrator with any constant matrix ``B`` (paper, theorem 1).

    Order 1, NFE 1, deterministic, any K.

    Args:
      B: ``[K, K]``, or a number for that multiple of the identity, in units of 1/time.
    """
    k = sde.num_blocks
    try:
        b = np.asarray(B, np.float64)
    except (TypeError, ValueError):
        b = np.full((), np.nan)
    if b.shape not in ((), (k, k)) or not np.all(np.isfinite(b)):
        raise ValueError(f"B={B!r} must be a finite number or a finite {k} x {k} matrix, got shape {b.shape}")
    b = b * np.eye(k) if b.ndim == 0 else b
    return [conjugate_stage(sde, t, s, b).at(t)]
