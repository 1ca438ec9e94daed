"""Linear diffusions whose matrices are any functions of time. An ODE on the host gives transition and covariance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from psld_jax._runtime.checks import TIME_SLACK, check_number
from psld_jax._runtime.errors import check_callable, why
from psld_jax.sde._linear_algebra import check_covariance, check_reached, real, real_matrix
from psld_jax.sde._noise_levels import as_times
from psld_jax.sde._quadrature import NODES, WEIGHTS, collocate
from psld_jax.sde.base import LinearSDE

Array = Any
Function = Callable[[Any], Any]

# A panel is halved until that no longer moves its transition and covariance; rounding allows no less.
_RTOL = 1e-13
_MOST_PANELS = 2**12
# The first panels: each half as long as the next, since noise near t = 0 grows as powers of t.
_FIRST_EDGES = np.concatenate([[0.0], 2.0 ** np.arange(-24, 1)])
# A power of t that is no integer is not resolved at 0; what is left of it from there to here is nothing.
_EARLIEST = 1e-18


class VaryingSDE(LinearSDE):
    """``dz = F(t) z dt + G(t) dw``, ``D = G G^T``, for any functions ``F`` and ``D`` and any K.

    ``Psi(s, t)`` solves ``d Psi / ds = F Psi``, and ``cov(t | s) = int_s^t Psi(t, u) D(u) Psi(t, u)^T du``. Both by
    collocation at 12 Gauss points on panels that are halved until they stand still to 1e-13, and put together by
    products and sums of positive terms: 1e-12 of their size, and no difference of large numbers for short steps.

    Args:
      drift: ``F``, a function of a time, or of times ``[n]``, to ``[K, K]`` or ``[n, K, K]``, by numpy or JAX,
        in float64.
      diffusion: ``D`` likewise, symmetric positive semi-definite.
      prior_cov: ``[K, K]``, covariance of the prior; by default that of the kernel at ``t = 1``.
      initial_cov: ``[K, K]``, ``Sigma_0``, zero by default.
      decomposition, jitter: as for :class:`LinearSDE`.
      t_end: where grids end unless told otherwise.
      t_max: the latest time, at most 1: less where ``F`` or ``D`` is not finite at 1.

    Raises:
      ValueError: for matrices of the wrong shape, not finite, or a ``D`` with a negative eigenvalue (it names the
        time); for noise that does not reach every block; if the solve does not converge; and when called, for times
        outside of ``[0, t_max]``.
    """

    stationary = False

    def __init__(
        self,
        drift: Function,
        diffusion: Function,
        *,
        prior_cov: Array | None = None,
        initial_cov: Array | None = None,
        decomposition: str = "lower",
        jitter: float = 0.0,
        t_end: float = 1e-3,
        t_max: float = 1.0,
    ):
        check_number("t_end", t_end), check_number("t_max", t_max)
        for name, fn in (("drift", drift), ("diffusion", diffusion)):
            check_callable(name, fn, "a function of time; LinearSDE takes constant matrices")
        if not 0 < t_end < t_max <= 1:
            raise ValueError(f"need 0 < t_end < t_max <= 1, got t_end={t_end}, t_max={t_max}")
        self._functions = {"drift": drift, "diffusion": diffusion}
        self.t_end, self.t_max = float(t_end), float(t_max)
        with jax.enable_x64(True):
            try:
                shape, _ = real(drift(0.5 * t_max)).shape, real(diffusion(0.5 * t_max))
            except Exception as error:
                raise ValueError(f"drift or diffusion failed at t={0.5 * t_max}: {why(error)}") from error
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"drift({0.5 * t_max}) has shape {shape}, expected a square matrix [K, K]")
        self._set_up(shape[0], initial_cov, decomposition, jitter)
        self._check_matrices()
        self._between: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._edges = self._panels()
        check_reached(self.noise_cov(np.float64(t_max)))
        self._prior_cov = self.cov(np.float64(t_max)) if prior_cov is None else real_matrix("prior_cov", prior_cov)
        check_covariance("prior_cov", self._prior_cov, shape)

    def __repr__(self) -> str:
        names = [getattr(fn, "__qualname__", repr(fn)).split(".<locals>.")[-1] for fn in self._functions.values()]
        return f"VaryingSDE({', '.join(names)})"

    # --- the two functions --------------------------------------------------------------------------

    def drift(self, t: Array) -> np.ndarray:
        return self._matrices("drift", t)

    def diffusion(self, t: Array) -> np.ndarray:
        return self._matrices("diffusion", t)

    @jax.enable_x64(True)  # functions made with JAX compute in float64 here, as those of numpy do
    def _matrices(self, name: str, t: Array) -> np.ndarray:
        t = np.minimum(np.asarray(t, np.float64), self.t_max)
        k, fn = self.num_blocks, self._functions[name]
        try:
            values = real(fn(t))
        except (TypeError, ValueError):
            values = np.zeros(0)  # it takes one time at a time
        if values.shape == (k, k) and t.size != 1:
            # Constant, or a function that has mixed up the times: two of them tell.
            values = np.broadcast_to(values, (*t.shape, k, k)) if _is_constant(fn, t) else np.zeros(0)
        if values.shape != (*t.shape, k, k):
            values = real([fn(u.item()) for u in t.ravel()])
            if values.shape != (t.size, k, k):
                raise ValueError(f"{name} gives shape {values.shape[1:]} at one time, expected {(k, k)}")
        return values.reshape(*t.shape, k, k)

    def _check_matrices(self) -> None:
        t = self.t_max * np.linspace(0.01, 1, 100)
        for name in self._functions:
            with np.errstate(all="ignore"):
                values = self._matrices(name, t)
            wrong = ~np.isfinite(values).all(axis=(-1, -2))
            if wrong.any():
                raise ValueError(f"{name} is not finite at t={t[wrong.argmax()]:.6g}; t_max ends the times before that")
        d = self.diffusion(t)
        if not np.allclose(d, np.swapaxes(d, -1, -2), rtol=1e-12, atol=0):
            raise ValueError("diffusion must be symmetric, D = G G^T")
        least = np.linalg.eigvalsh(d)[:, 0]
        wrong = least < -1e-12 * np.abs(d).max(axis=(-1, -2))
        if wrong.any():
            raise ValueError(
                f"diffusion at t={t[wrong.argmax()]:.6g} has the negative eigenvalue {least[wrong][0]:.6g}"
            )

    # --- the solve ------------------------------------------------------------------------------------

    def _short(self, t: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``Psi(t, s)`` and ``cov(t | s)``, ``[n, K, K]``, for times ``[n]`` within one panel each."""
        u = t[:, None] + (s - t)[:, None] * NODES
        # From t back to s: A(u) = Psi(t, u) solves dA/du = -A F.
        at_nodes, psi = collocate(-self.drift(u), s - t)
        noise = np.einsum("i,nijk,nikl,niml->njm", WEIGHTS, at_nodes, self.diffusion(u), at_nodes)
        return psi, (t - s)[:, None, None] * noise

    def _panels(self) -> np.ndarray:
        edges = _FIRST_EDGES * self.t_max
        edges[-1] += TIME_SLACK  # beyond the last time the matrices are what they are there
        while True:
            left, right = edges[:-1], edges[1:]
            middle = (left + right) / 2
            whole = self._short(right, left)
            halves = _join(self._short(middle, left), self._short(right, middle))
            moved = [
                np.abs(a - b).max(axis=(1, 2)) > _RTOL * np.abs(b).max(axis=(1, 2)) + np.finfo(float).tiny
                for a, b in zip(whole, halves, strict=True)
            ]
            coarse = (moved[0] | moved[1]) & (right > _EARLIEST)
            if not coarse.any():
                return edges
            edges = np.sort(np.concatenate([edges, middle[coarse]]))
            if len(edges) > _MOST_PANELS or np.any(np.diff(edges) < 1e-14 * edges[1:]):
                at = middle[coarse][0]
                raise ValueError(
                    f"the transition does not converge near t={at:.6g}; drift and diffusion must be smooth on "
                    f"[0, {self.t_max}], in float64, and finite (t_max ends the times earlier)"
                )

    def _from_edge(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Return transition and covariance from edge ``first`` to every later edge, itself included."""
        if first not in self._between:
            parts = self._short(self._edges[first + 1 :], self._edges[first:-1])
            psi, noise = [np.eye(self.num_blocks)], [np.zeros((self.num_blocks,) * 2)]
            for part in zip(*parts, strict=True):
                joined = _join((psi[-1], noise[-1]), part)
                psi.append(joined[0])
                noise.append(joined[1])
            self._between[first] = np.stack(psi), np.stack(noise)
        return self._between[first]

    def _flow(self, t: Array, s: Array) -> tuple[np.ndarray, np.ndarray]:
        """``Psi(t, s)`` and ``cov(t | s)``, ``[..., K, K]``, for ``s <= t``."""
        t, s = np.broadcast_arrays(np.asarray(t, np.float64), np.asarray(s, np.float64))
        shape, t, s = t.shape, t.ravel(), s.ravel()
        last = len(self._edges) - 2
        start = np.clip(np.searchsorted(self._edges, s, "right") - 1, 0, last)
        stop = np.clip(np.searchsorted(self._edges, t, "left") - 1, 0, last)
        psi, noise = self._short(t, s)
        for i in np.unique(start[stop > start]):
            far = (start == i) & (stop > start)
            between = tuple(part[stop[far] - i - 1] for part in self._from_edge(i + 1))
            edge = np.full(far.sum(), self._edges[i + 1])
            way = _join(_join(self._short(edge, s[far]), between), self._short(t[far], self._edges[stop[far]]))
            psi[far], noise[far] = way
        return psi.reshape(*shape, *psi.shape[1:]), noise.reshape(*shape, *noise.shape[1:])

    def _check_times(self, *times: Array) -> None:
        for t in times:
            as_times(t, self.t_max)

    def transition(self, s: Array, t: Array) -> np.ndarray:
        self._check_times(s, t)
        forward = self._flow(np.maximum(s, t), np.minimum(s, t))[0]
        back = np.broadcast_to(np.asarray(s) < t, forward.shape[:-2])
        return np.where(back[..., None, None], np.linalg.inv(forward), forward) if np.any(back) else forward

    def noise_cov(self, t: Array, s: Array = 0.0) -> np.ndarray:
        self._check_times(s, t)
        return self._flow(t, s)[1]

    def prior_cov(self) -> np.ndarray:
        return self._prior_cov


def _join(first: tuple, second: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Join transition and covariance of two stretches of time, one after the other."""
    psi = second[0]
    return psi @ first[0], psi @ first[1] @ np.swapaxes(psi, -1, -2) + second[1]


def _is_constant(fn: Function, t: np.ndarray) -> bool:
    low, high = float(np.min(t)), float(np.max(t))
    return np.array_equal(np.asarray(fn(low)), np.asarray(fn(high)))
