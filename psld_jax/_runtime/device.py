"""The only place where float64 numbers of the host become numbers of the device.

Host side (``sde``, ``grids``, ``integrators``, ``tableau``): numpy float64, time known as a number.
Device side (``solve`` and below): the dtype of the state, time possibly a traced value. Coefficients
cross here and nowhere else: :func:`to_device` for tables, :class:`TimeFunction` for functions of time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import lambertw

from psld_jax._runtime.checks import MIN_TIME

Array = Any
Function = Callable[[np.ndarray], np.ndarray]


def to_device(tree: Any, dtype: Any) -> Any:
    """Cast every floating leaf of ``tree`` to ``dtype``; integer and boolean leaves keep theirs."""

    def cast(leaf: Array) -> jax.Array:
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return jnp.asarray(leaf, dtype)
        return jnp.asarray(leaf)

    return jax.tree.map(cast, tree)


def wide(dtype: Any) -> Any:
    """Return ``dtype``, or float32 for one in half precision: what sums and draws are computed in."""
    # Not jnp.promote_types, which refuses two dtypes where JAX refuses implicit promotion.
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


# The spline's variable u = log t + RATE * t resolves the power laws near t = 0 and the exponential
# decay near t = 1 with one uniform spacing.
_RATE = 16.0
_MAX_PIECES = 2**15
# A function is reproduced relative to its largest value since this part of the time.
_NEAR = 0.9


@jax.tree_util.register_pytree_node_class
class TimeFunction:
    """A float64 host function of time, made available to traced code as a piecewise cubic polynomial.

    ``fn(t)`` takes a float64 array ``[n]`` and returns ``[n, ...]``. A smooth function becomes a spline, uniform in
    ``u = log t + 16 t``. One with ``knots``, times at which its slopes jump, or one that changes too fast somewhere, is
    interpolated in ``log t`` between the knots, at four points of cells that are as short as need be. Both are refined
    on construction until they reproduce ``fn`` to ``rtol``, relative to the largest entry between ``0.9 t`` and ``t``:
    so a function may vanish at 1. In float32 what is left is the rounding of ``t``.

    Calling it with a scalar or ``[n]`` array of times returns ``[...]`` or ``[n, ...]`` in the dtype of
    ``t``. Outside ``[t_min, t_max]`` the result is NaN: device code cannot raise, and a clamped coefficient
    would be silently wrong. The object is a pytree (its leaves are the coefficients), so it can be
    passed through ``jax.jit`` and replaced without recompiling.

    Args:
      fn: the function.
      t_min, t_max: where it is needed.
      rtol: see above.
      knots: float64 ``[m]``, in any order; ``sde.knots`` of a diffusion.

    Raises:
      ValueError: if the interval is not ``0 < t_min < t_max``, or ``fn`` is not smooth enough to reach
        ``rtol`` with 32,768 pieces.
    """

    def __init__(
        self,
        fn: Function,
        t_min: float = MIN_TIME,
        t_max: float = 1.0,
        rtol: float = 1e-9,
        knots: Sequence[float] | np.ndarray = (),
    ):
        if not 0.0 < t_min < t_max:
            raise ValueError(f"TimeFunction needs 0 < t_min < t_max, got t_min={t_min}, t_max={t_max}")
        # One part in a million of slack, so that float32(t_min) and float32(t_max) lie inside.
        low, high = t_min * (1 - 1e-6), t_max * (1 + 1e-6)
        inside = np.sort(np.asarray(knots, np.float64))
        inside = inside[(inside > low) & (inside < high)]
        error = np.inf
        #: ``[4, ...]`` of every piece, the highest power first; where pieces begin, and the last one ends.
        self.coefficients = self.starts = np.zeros(0)
        if not len(inside):
            self.coefficients, self.starts, error = _spline(fn, low, high, rtol)
        if error > rtol:
            self.coefficients, self.starts, error = _cells(fn, low, high, rtol, inside)
        if error > rtol:
            raise ValueError(
                f"{_MAX_PIECES} cubic pieces reproduce the function of time to {error:.1e}, not to rtol={rtol:.1e}; "
                f"is it smooth on [{t_min}, {t_max}]?"
            )

    def __call__(self, t: Array) -> jax.Array:
        t = jnp.asarray(t)
        if not jnp.issubdtype(t.dtype, jnp.floating):
            t = t.astype(jnp.result_type(float))
        # In half precision log t + 16 t has an error of many pieces, and at t = 1 it lies outside of all.
        dtype = t.dtype
        t = t.astype(wide(dtype))
        c, starts = (jnp.asarray(leaf, t.dtype) for leaf in (self.coefficients, self.starts))
        if starts.shape[0] == 2:  # offset and spacing of a uniform one
            u = jnp.log(t) + _RATE * t
            segment = jnp.floor((u - starts[0]) / starts[1])
            inside = (segment >= 0) & (segment < c.shape[0])
            index = jnp.clip(segment, 0, c.shape[0] - 1)
            w = u - starts[0] - index * starts[1]
            index = index.astype(jnp.int32)
        else:
            u = jnp.log(t)
            inside = (u >= starts[0]) & (u <= starts[-1])
            index = jnp.clip(jnp.searchsorted(starts, u, side="right") - 1, 0, c.shape[0] - 1)
            w = (u - starts[index]) / (starts[index + 1] - starts[index])
        c = c[index]  # [..., 4, value shape]
        value_ndim = c.ndim - t.ndim - 1
        w, inside = (jnp.reshape(a, a.shape + (1,) * value_ndim) for a in (w, inside))
        c = jnp.moveaxis(c, t.ndim, 0)
        return jnp.where(inside, ((c[0] * w + c[1]) * w + c[2]) * w + c[3], jnp.nan).astype(dtype)

    def tree_flatten(self):
        return (self.coefficients, self.starts), None

    @classmethod
    def tree_unflatten(cls, _, children):
        self = object.__new__(cls)
        self.coefficients, self.starts = children
        return self


def _spline(fn: Function, low: float, high: float, rtol: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return coefficients ``[n, 4, ...]`` of a uniform spline in ``u``, its offset and spacing, and its error."""
    u_low, u_high = _to_u(low), _to_u(high)
    nodes = 512
    while True:
        u = np.linspace(u_low, u_high, nodes + 1)
        spline = CubicSpline(u, fn(_from_u(u)), axis=0)
        middle = (u[1:] + u[:-1]) / 2
        t = _from_u(middle)
        exact, found = (values.reshape(nodes, -1) for values in (fn(t), spline(middle)))
        before = spline(np.maximum(_to_u(_NEAR * t), u_low)).reshape(nodes, -1)
        error = float(_relative(found - exact, exact, before).max())
        if error <= rtol or 2 * nodes > _MAX_PIECES:
            # CubicSpline stores [4, nodes, ...] with the highest power first.
            return np.moveaxis(spline.c, 0, 1), np.array([u_low, (u_high - u_low) / nodes]), error
        nodes *= 2


# In a cell, a cubic polynomial takes the function's values at the first points, and is compared at the second.
_TOLD = np.array([0.0, 0.25, 0.75, 1.0])
_ASKED = np.array([0.1, 0.5, 0.9])
_TO_COEFFICIENTS = np.linalg.inv(np.vander(_TOLD, 4))


def _cells(
    fn: Function, low: float, high: float, rtol: float, knots: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return coefficients ``[n, 4, ...]`` of cubics between knots, ``log t`` where they begin, and the largest error.

    A piece has its own variable, 0 to 1. Those that are not exact enough are halved.
    """

    def values(x: np.ndarray) -> np.ndarray:
        flat = fn(np.exp(x.ravel()))
        return flat.reshape(*x.shape, *flat.shape[1:])

    starts = np.union1d(np.linspace(np.log(low), np.log(high), 65), np.log(knots))
    while True:
        left, width = starts[:-1, None], np.diff(starts)[:, None]
        pieces = np.einsum("ij,nj...->ni...", _TO_COEFFICIENTS, values(left + width * _TOLD))
        exact = values(left + width * _ASKED).reshape(len(left), len(_ASKED), -1)
        found = np.einsum("qi,ni...->nq...", np.vander(_ASKED, 4), pieces).reshape(exact.shape)
        before = values(np.maximum(left + np.log(_NEAR), starts[0])).reshape(len(left), 1, -1)
        error = _relative(found - exact, exact, before).max(axis=1)
        wrong = error > rtol
        if not wrong.any() or len(left) + wrong.sum() > _MAX_PIECES:
            return pieces, starts, float(error.max())
        starts = np.union1d(starts, (left + width / 2)[wrong])


def _relative(difference: np.ndarray, *near: np.ndarray) -> np.ndarray:
    """Divide the largest entry of a difference by the largest value near it, along the last axis."""
    scale = np.max([np.abs(values).max(axis=-1) + 0 * difference[..., 0] for values in near], axis=0)
    return np.abs(difference).max(axis=-1) / (scale + np.finfo(np.float64).tiny)


def _to_u(t: float) -> float:
    return np.log(t) + _RATE * t


def _from_u(u: np.ndarray) -> np.ndarray:
    """Invert ``u = log t + RATE t`` by ``RATE t = W(RATE e^u)``, polished by Newton in log t."""
    t = np.real(lambertw(_RATE * np.exp(u))) / _RATE
    for _ in range(2):
        t *= np.exp((u - _to_u(t)) / (1 + _RATE * t))
    return t
