"""Integrals and linear ODEs by Gauss-Legendre collocation, in float64 on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

#: Gauss points and weights on [0, 1].
NODES, WEIGHTS = np.polynomial.legendre.leggauss(12)
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2

_RTOL = 1e-12
#: A move below this that halving does not make smaller is rounding in what is integrated.
_ROUNDING = 1e-8
_MAX_DEPTH = 40

MatrixFunction = Callable[[np.ndarray], np.ndarray]


def _integration_matrix() -> np.ndarray:
    """``Q[i, j] = int_0^{c_i} l_j``, with ``l_j`` the Lagrange polynomials of the Gauss points ``c``."""
    legendre = np.polynomial.legendre
    vandermonde = legendre.legvander(2 * NODES - 1, len(NODES) - 1)
    integrals = np.stack(
        [legendre.legval(2 * NODES - 1, legendre.legint(row, lbnd=-1)) / 2 for row in np.eye(len(NODES))],
        axis=-1,
    )
    return integrals @ np.linalg.inv(vandermonde)


_Q = _integration_matrix()


def collocate(generator: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve ``dA/du = A G(u)``, ``A = I`` at the start, over m intervals of (signed) ``length``, ``[m]``.

    Args:
      generator: ``G`` at the Gauss points, ``[m, n, K, K]``.

    Returns:
      ``A`` at the Gauss points, ``[m, n, K, K]``, and at the end, ``[m, K, K]``.
    """
    m, n, k = generator.shape[:3]
    length = length[:, None, None]
    # Rows of A satisfy a_i = a_0 + length sum_j Q_ij a_j G_j: one linear system for all nodes.
    system = np.eye(n * k) - length * np.einsum("ij,mjkl->mjkil", _Q, generator).reshape(m, n * k, n * k)
    right = np.broadcast_to(np.tile(np.eye(k), (n, 1)), (m, n * k, k))
    at_nodes = np.linalg.solve(np.swapaxes(system, -1, -2), right).reshape(m, n, k, k)
    at_nodes = np.swapaxes(at_nodes, -1, -2)
    return at_nodes, np.eye(k) + length * np.einsum("i,mijk,mikl->mjl", WEIGHTS, at_nodes, generator)


def conjugate_flow(
    generator: MatrixFunction, forcing: MatrixFunction, t: float, s: float
) -> tuple[np.ndarray, np.ndarray]:
    """``A(s)`` and ``Phi(s)`` of ``dA/du = A generator(u)``, ``dPhi/du = A forcing(u)``, ``A(t) = I``, ``Phi(t) = 0``.

    ``A`` by collocation and ``Phi`` by Gauss-Legendre quadrature on the same 12 points, on panels that are halved until
    both stand still to 1e-12 relative, or to what rounding in the two functions leaves, below 1e-8. Works whether or
    not ``generator`` commutes with itself over the step.

    Args:
      generator, forcing: of times ``[n]``, ``[n, K, K]`` and ``[n, K, L]``.

    Returns:
      Float64 ``[K, K]`` and ``[K, L]``.

    Raises:
      ValueError: if forty halvings do not suffice.
    """

    def panels(starts: list[float], ends: list[float]) -> list[tuple[np.ndarray, np.ndarray]]:
        # All of them with one call of each function, whose cost hardly depends on the number of times.
        lengths = np.subtract(ends, starts)
        u = (np.array(starts)[:, None] + lengths[:, None] * NODES).ravel()
        rates, forces = (x.reshape(len(lengths), len(NODES), *x.shape[1:]) for x in (generator(u), forcing(u)))
        at_nodes, end = collocate(rates, lengths)
        phi = lengths[:, None, None] * np.einsum("i,mijk,mikl->mjl", WEIGHTS, at_nodes, forces)
        return list(zip(end, phi, strict=True))

    def refine(a: float, b: float, depth: int, before: float) -> tuple[np.ndarray, np.ndarray]:
        middle = (a + b) / 2
        whole, left, right = panels([a, a, middle], [b, middle, b])
        both = _join(left, right)
        moved = max(
            np.abs(x - y).max() / max(np.abs(y).max(), np.finfo(float).tiny) for x, y in zip(whole, both, strict=True)
        )
        if moved <= _RTOL or before / 2 <= moved <= _ROUNDING:
            return both
        if depth == _MAX_DEPTH:
            raise ValueError(f"the coefficients of the step {t} -> {s} do not converge (last move {moved:.1e})")
        return _join(refine(a, middle, depth + 1, moved), refine(middle, b, depth + 1, moved))

    return refine(t, s, 0, np.inf)


def once(fn: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    """Return ``fn``, of times ``[n]``, with its latest value kept for the same array.

    :func:`conjugate_flow` calls both its functions with the same times.
    """
    latest: list[Any] = [None, None]

    def call(u: np.ndarray) -> Any:
        if u is not latest[0]:
            latest[:] = u, fn(u)
        return latest[1]

    return call


_FEWEST_PANELS, _MOST_PANELS = 4, 2**14


def integrate(fn: MatrixFunction, t: float, s: float) -> np.ndarray:
    """Integrate ``int_t^s fn(u) du`` for a function of times ``[n]`` to ``[n, J]``: float64 ``[J]``; ``t``, ``s`` > 0.

    Gauss-Legendre quadrature on 12 points, on panels of equal length in ``log u`` that are doubled until the result
    stands still to 1e-12 of the integral of the absolute value, or with 16,384 panels to 1e-8: a table of noise levels
    makes a kink in a high derivative at many places, which are large if the levels are rounded.

    Raises:
      ValueError: if 16,384 panels do not suffice.
    """
    before, count = None, _FEWEST_PANELS
    while count <= _MOST_PANELS:
        edges = t * (s / t) ** np.linspace(0, 1, count + 1)
        edges[-1] = s
        u = edges[:-1, None] + np.diff(edges)[:, None] * NODES
        parts = (np.diff(edges)[:, None] * WEIGHTS).ravel()[:, None] * fn(u.ravel())
        total, size = parts.sum(axis=0), np.abs(parts).sum(axis=0)
        limit = _RTOL if count < _MOST_PANELS else _ROUNDING
        if before is not None and np.all(np.abs(total - before) <= limit * size):
            return total
        before, count = total, 2 * count
    raise ValueError(f"the coefficients of the step {t} -> {s} do not converge; is the path smooth there?")


def _join(first: tuple, second: tuple) -> tuple[np.ndarray, np.ndarray]:
    return first[0] @ second[0], first[1] + first[0] @ second[1]
