"""A path made of two functions of your own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from psld_jax._runtime.checks import check_number
from psld_jax._runtime.errors import why
from psld_jax.sde._noise_levels import as_times
from psld_jax.sde._quadrature import NODES, WEIGHTS
from psld_jax.sde.one_block import OneBlock

Array = Any
Function = Callable[[Any], Any]

# Steps shorter than this are integrals of the slopes: a difference of two values would lose its digits.
_SHORT = 1e-2
# A ratio of signal to noise at t = 1 that counts as none: the noise that a network predicts there says nothing.
_NO_SIGNAL = 1e-6
# The signal-to-noise ratio is looked at here: at equal distances in t, and ever closer to both ends.
_CHECKED = np.unique(
    np.concatenate([np.linspace(0.0, 1.0, 2001), np.logspace(-6, -1, 101), 1 - np.logspace(-6, -1, 101)])
)


class Path(OneBlock):
    """``x_t = alpha(t) x_0 + sigma(t) eps`` for functions ``alpha`` and ``sigma``; :func:`path` makes it.

    Raises:
      ValueError: as :func:`path`.
    """

    def __init__(self, alpha: Function, sigma: Function, t_end: float):
        self._alpha, self._sigma = _checked("alpha", alpha), _checked("sigma", sigma)
        self._alpha_rate, self._sigma_rate = _derivative("alpha", self._alpha), _derivative("sigma", self._sigma)
        a, s = self._alpha(_CHECKED), self._sigma(_CHECKED)
        _check_values("alpha", a, _CHECKED < 1)
        _check_values("sigma", s, _CHECKED > 0)
        falls = s[1:] * a[:-1] > a[1:] * s[:-1]
        if not np.all(falls):
            i = int(np.argmin(falls))
            raise ValueError(
                f"alpha / sigma must fall as t grows, but it does not from t={_CHECKED[i]:.6g} to "
                f"{_CHECKED[i + 1]:.6g} ({a[i] / s[i] if s[i] else np.inf:.6g} to {a[i + 1] / s[i + 1]:.6g})"
            )
        self.t_end = check_number("t_end", t_end)
        if not 0 < self.t_end < 1:
            raise ValueError(f"t_end={t_end} must lie in (0, 1)")
        self.name = f"{_name(alpha)}, {_name(sigma)}"
        if a[-1] < _NO_SIGNAL * s[-1]:
            self.prediction = "velocity"
        super().__init__()

    def __repr__(self) -> str:
        return f"path({self.name})"

    def alpha(self, t: Array) -> np.ndarray:
        return self._extended(self._alpha, self._alpha_rate, t)

    def std(self, t: Array) -> np.ndarray:
        return self._extended(self._sigma, self._sigma_rate, t)

    def alpha_rate(self, t: Array) -> np.ndarray:
        return self._alpha_rate(np.minimum(t, 1.0))

    def std_rate(self, t: Array) -> np.ndarray:
        return self._sigma_rate(np.minimum(t, 1.0))

    @staticmethod
    def _extended(value: Function, rate: Function, t: Array) -> np.ndarray:
        """Extend the function by its tangent beyond ``t = 1``, where the rounding of a time may lead."""
        t = as_times(t)
        beyond = np.maximum(t - 1, 0.0)
        return value(np.minimum(t, 1.0)) + (rate(np.ones(())) * beyond if np.any(beyond > 0) else 0.0)

    def gain(self, t: Array, s: Array) -> np.ndarray:
        t, s = np.broadcast_arrays(np.asarray(t, np.float64), np.asarray(s, np.float64))
        alpha_s, std_s = self.alpha(s), self.std(s)
        long = self.std(t) * alpha_s - self.alpha(t) * std_s
        short = (np.abs(t - s) < _SHORT * s) & (np.abs(t - s) < _SHORT * (1 - s))
        if not np.any(short):
            return long
        # d gain / dt = sigma'_t alpha_s - alpha'_t sigma_s, a sum of positive terms.
        at = s[..., None] + (t - s)[..., None] * NODES
        slope = self.std_rate(at) * alpha_s[..., None] - self.alpha_rate(at) * std_s[..., None]
        return np.where(short, (t - s) * (slope @ WEIGHTS), long)


def path(alpha: Function, sigma: Function, *, t_end: float = 1e-3) -> Path:
    """The diffusion ``x_t = alpha(t) x_0 + sigma(t) eps`` of two functions of your own, ``t`` in [0, 1].

    ``pj.sde.path(lambda t: 1 - t, lambda t: t)`` is rectified flow. Slopes are taken on the host in float64: by a
    complex step where the functions take complex times, which loses nothing, else by differences of high order, exact
    to about 1e-11. The prior is ``N(0, sigma(1)^2)``.

    Args:
      alpha, sigma: smooth functions of a time, or of an array of times, by numpy or JAX, in float64.
        ``alpha`` may vanish at 1, ``sigma`` at 0.
      t_end: where grids end unless told otherwise.

    Raises:
      ValueError: for values that are negative, not finite, or zero elsewhere; for ``alpha / sigma`` that does not
        fall all the way; for a slope that is not finite at ``t = 1``; for values in float32 or less. The message names
        the time and the value.
    """
    return Path(alpha, sigma, t_end)


def _name(fn: Function) -> str:
    return getattr(fn, "__qualname__", repr(fn)).split(".<locals>.")[-1]


_COARSE = ("bfloat16", "float16", "float32", "complex64")


def _checked(name: str, fn: Function) -> Function:
    """Let ``fn`` take times ``[...]``, float64, even if it takes one number at a time or returns a constant."""
    if not callable(fn):
        raise ValueError(f"{name}={fn!r} must be a function of time, from [0, 1] to a number")

    def call(t: Array) -> np.ndarray:
        t = np.asarray(t)
        # Functions made with JAX compute in float64 here, as those of numpy do.
        with np.errstate(all="ignore"), jax.enable_x64(True):
            try:
                value = np.asarray(fn(t))
            except (TypeError, ValueError):
                value = np.array([fn(u.item()) for u in t.ravel()]).reshape(t.shape)
        if value.ndim and value.dtype.name in _COARSE:
            raise ValueError(f"it gives {value.dtype}, which loses the digits of short steps; compute it in float64")
        dtype = np.complex128 if np.iscomplexobj(value) or np.iscomplexobj(t) else np.float64
        return np.array(np.broadcast_to(value, t.shape), dtype)

    try:
        together, alone = call(np.array([0.25, 0.5])), [call(np.float64(0.25)), call(np.float64(0.5))]
        if not np.allclose(together, alone, equal_nan=True):
            raise ValueError(f"of both 0.25 and 0.5 it gives {together}, of each alone {np.array(alone)}")
    except Exception as error:
        raise ValueError(f"{name} failed for times of [0, 1]: {type(error).__name__}: {why(error)}") from error
    return call


def _check_values(name: str, values: np.ndarray, positive: np.ndarray) -> None:
    wrong = ~np.isfinite(values) | (values < 0) | (positive & (values == 0))
    if np.any(wrong):
        i = int(np.argmax(wrong))
        end = "it may vanish at t = 1 only" if name == "alpha" else "it may vanish at t = 0 only"
        raise ValueError(f"{name}({_CHECKED[i]:.6g}) = {values[i]:.6g} must be finite and > 0; {end}")


# Central differences of order 10: five points on each side.
_WEIGHTS = np.array([5 / 6, -5 / 21, 5 / 84, -5 / 504, 1 / 1260])


def _derivative(name: str, fn: Function) -> Function:
    """``d fn / dt`` for times in [0, 1]."""

    def by_complex_step(t: Array) -> np.ndarray:
        return fn(np.asarray(t, np.float64) + 1e-30j).imag / 1e-30

    def by_differences(t: Array) -> np.ndarray:
        # The steps shrink towards both ends, beyond which the function need not exist.
        t = np.asarray(t, np.float64)
        inner = np.clip(t, 1e-6, 1 - 1e-6)
        h = np.minimum(1e-2, np.minimum(inner, 1 - inner) / 5.5)
        at = fn(inner[..., None] + h[..., None] * np.arange(1, 6)) - fn(
            inner[..., None] - h[..., None] * np.arange(1, 6)
        )
        return at @ _WEIGHTS / h

    inside = np.linspace(0.1, 0.9, 25)
    expected = by_differences(inside)
    if not np.all(np.isfinite(expected)):
        return by_differences  # what is wrong with the values is said where they are looked at
    try:
        exact = by_complex_step(inside)
        smooth = np.allclose(exact, expected, rtol=1e-5, atol=1e-7 * np.abs(expected).max())
    except (TypeError, ValueError):
        smooth = False
    slope = by_complex_step if smooth else by_differences
    with np.errstate(all="ignore"):
        before, end = slope(np.array([1 - 1e-3, 1.0]))
    # Differences cannot see that a slope is infinite, but that it grows without end.
    if not np.isfinite(end) or abs(end) > 1e9 or abs(end) > 100 + 5 * abs(before):
        raise ValueError(
            f"the slope of {name} is not finite at t = 1 (here {end:.3g}), as it must be; use another clock"
        )
    return slope
