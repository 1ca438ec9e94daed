"""The border between the two number systems.

Host side (``sde``, ``grids``, ``integrators``, ``tableau``): numpy float64, time known as a number.
Device side (``solve`` and below): the dtype of the state, time possibly a traced value. Coefficients
cross here and nowhere else: :func:`to_device` for tables, :class:`TimeFunction` for functions of time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import lambertw

from psld_jax._runtime.checks import MIN_TIME

Array = Any


def to_device(tree: Any, dtype: Any) -> Any:
    """Cast every floating leaf of ``tree`` to ``dtype``; integer and boolean leaves keep theirs."""

    def cast(leaf: Array) -> jax.Array:
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return jnp.asarray(leaf, dtype)
        return jnp.asarray(leaf)

    return jax.tree.map(cast, tree)


# The spline's variable u = log t + RATE * t resolves the power laws near t = 0 and the exponential
# decay near t = 1 with one uniform spacing.
_RATE = 16.0
_MAX_NODES = 2**15


@jax.tree_util.register_pytree_node_class
class TimeFunction:
    """A float64 host function of time, made available to traced code as a cubic spline.

    ``fn(t)`` takes a float64 array ``[n]`` and returns ``[n, ...]``. The spline is uniform in
    ``u = log t + 16 t`` and is refined on construction until it reproduces ``fn`` between its nodes to
    ``rtol``, relative to the largest entry at that time; in float32 what is left is the rounding of ``t``.

    Calling it with a scalar or ``[n]`` array of times returns ``[...]`` or ``[n, ...]`` in the dtype of
    ``t``. Outside ``[t_min, t_max]`` the result is NaN: device code cannot raise, and a clamped coefficient
    would be silently wrong. The object is a pytree (its leaves are the spline coefficients), so it can be
    passed through ``jax.jit`` and replaced without recompiling.

    Raises:
      ValueError: if the interval is not ``0 < t_min < t_max``, or ``fn`` is not smooth enough to reach
        ``rtol`` with 32,768 nodes.
    """

    def __init__(
        self,
        fn: Callable[[np.ndarray], np.ndarray],
        t_min: float = MIN_TIME,
        t_max: float = 1.0,
        rtol: float = 1e-9,
    ):
        if not 0.0 < t_min < t_max:
            raise ValueError(f"TimeFunction needs 0 < t_min < t_max, got t_min={t_min}, t_max={t_max}")
        # One part in a million of slack, so that float32(t_min) and float32(t_max) lie inside.
        low, high = t_min * (1 - 1e-6), t_max * (1 + 1e-6)
        u_low, u_high = _to_u(low), _to_u(high)
        nodes = 512
        while True:
            u = np.linspace(u_low, u_high, nodes + 1)
            spline = CubicSpline(u, fn(_from_u(u)), axis=0)
            middle = (u[1:] + u[:-1]) / 2
            exact = fn(_from_u(middle)).reshape(nodes, -1)
            scale = np.abs(exact).max(axis=1) + np.finfo(np.float64).tiny
            error = np.abs(spline(middle).reshape(nodes, -1) - exact).max(axis=1) / scale
            if error.max() <= rtol:
                break
            nodes *= 2
            if nodes > _MAX_NODES:
                raise ValueError(
                    f"a spline of {_MAX_NODES} nodes reproduces the function of time to "
                    f"{error.max():.1e}, not to rtol={rtol:.1e}; is it smooth on [{t_min}, {t_max}]?"
                )
        # CubicSpline stores [4, nodes, ...] with the highest power first.
        self.coefficients = np.moveaxis(spline.c, 0, 1)
        self.offset = np.float64(u_low)
        self.spacing = np.float64((u_high - u_low) / nodes)

    def __call__(self, t: Array) -> jax.Array:
        t = jnp.asarray(t)
        if not jnp.issubdtype(t.dtype, jnp.floating):
            t = t.astype(jnp.result_type(float))
        c = jnp.asarray(self.coefficients, t.dtype)
        offset, spacing = jnp.asarray(self.offset, t.dtype), jnp.asarray(self.spacing, t.dtype)
        u = jnp.log(t) + _RATE * t
        segment = jnp.floor((u - offset) / spacing)
        inside = (segment >= 0) & (segment < c.shape[0])
        index = jnp.clip(segment, 0, c.shape[0] - 1)
        w = u - offset - index * spacing
        c = c[index.astype(jnp.int32)]  # [..., 4, value shape]
        value_ndim = c.ndim - t.ndim - 1
        w, inside = (jnp.reshape(a, a.shape + (1,) * value_ndim) for a in (w, inside))
        c = jnp.moveaxis(c, t.ndim, 0)
        return jnp.where(inside, ((c[0] * w + c[1]) * w + c[2]) * w + c[3], jnp.nan)

    def tree_flatten(self):
        return (self.coefficients, self.offset, self.spacing), None

    @classmethod
    def tree_unflatten(cls, _, children):
        self = object.__new__(cls)
        self.coefficients, self.offset, self.spacing = children
        return self


def _to_u(t: float) -> float:
    return np.log(t) + _RATE * t


def _from_u(u: np.ndarray) -> np.ndarray:
    """Invert ``u = log t + RATE t`` by ``RATE t = W(RATE e^u)``, polished by Newton in log t."""
    t = np.real(lambertw(_RATE * np.exp(u))) / _RATE
    for _ in range(2):
        t *= np.exp((u - _to_u(t)) / (1 + _RATE * t))
    return t
