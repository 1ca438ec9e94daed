"""Checks of values that enter or leave the package: they report what is not finite or out of range."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from jax.core import Tracer

from psld_jax._runtime.errors import check_images, shown

Array = Any

#: The smallest time for which coefficients are made on the device; grids and solves end no earlier. The splines in time
#: that hold them cover [MIN_TIME, 1].
MIN_TIME = 1e-9
#: Times are rounded to float32 on the device, which may lead so far beyond the last one.
TIME_SLACK = 1e-5

#: Images lie in [-1, 1]. What is dequantised, decoded or noisy lies a little outside; levels of 0 to 255 lie far.
FARTHEST = 2.0
#: A measurement with more noise says nothing of images, and float32 does not hold the squares of its squares.
_MOST_NOISE = 1e6


class NotFinite(ValueError):
    """Samples, codes or measures hold NaN or infinite values."""


def count_not_finite(arrays: Iterable[Array]) -> int:
    """Count the entries of the leading axis of arrays ``[n, ...]`` with a NaN or infinite value in any of them."""
    bad: set[Any] = set()
    for array in map(np.asarray, arrays):
        # One sum checks a whole array: it is finite unless an entry is not.
        if not np.isfinite(np.sum(array, dtype=np.float64)):
            bad |= set(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1)))
    return len(bad)


def check_finite(what: str, arrays: Iterable[Array], count: int, hint: str) -> None:
    """Check that arrays ``[n, ...]`` are finite.

    Raises:
      NotFinite: if entries of the leading axis are not: how many of ``count``, and ``hint``.
    """
    bad = count_not_finite(arrays)
    if bad:
        raise NotFinite(f"{what}: {bad} of {count} are not finite (NaN or infinite). {hint}")


def check_array(what: str, values: Array) -> None:
    """Raise a ``ValueError`` unless all ``values``, of any shape, are finite numbers."""
    values = np.asarray(values)
    if values.dtype.kind not in "fiub" and values.dtype.name != "bfloat16":
        raise ValueError(f"{what} must be numbers, got dtype {values.dtype}")
    bad = values.size - int(np.isfinite(values.astype(np.float32) if values.dtype.kind == "V" else values).sum())
    if bad:
        raise ValueError(f"{what}: {bad} of {values.size} values are not finite (NaN or infinite)")


def check_known(what: str, values: Any) -> None:
    """Raise a ``ValueError`` for ``values`` that JAX traces, whose numbers nobody knows yet."""
    if isinstance(values, Tracer):
        raise ValueError(
            f"{what} must be known numbers, and here JAX traces them (jit, vmap or grad): call this outside of it; "
            "psld_jax.sample and sample_ode may be traced"
        )


def check_seed(seed: Any, name: str = "seed") -> int:
    """Return ``seed`` as an integer; raise a ``ValueError`` unless it is one from 0 to 2**32 - 1."""
    try:
        number = -1 if isinstance(seed, (bool, np.bool_)) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**32:
        raise ValueError(f"{name}={seed!r} must be an integer from 0 to 2**32 - 1")
    return number


def check_number(name: str, value: Any, low: float = -np.inf, high: float = np.inf, *, strict: bool = False) -> float:
    """Return ``value`` as a float; raise a ``ValueError`` unless it is in ``[low, high]``, above ``low`` if strict."""
    check_known(name, value)
    # A number of numpy or JAX may be an array without axes.
    scalar = np.asarray(value)[()] if hasattr(value, "__array__") and np.shape(value) == () else value
    known = isinstance(scalar, (int, float, np.integer, np.floating)) and not isinstance(scalar, bool)
    try:
        number = float(scalar) if known else np.nan
    except OverflowError:  # of an integer beyond all floats
        number = np.nan
    above = number > low if strict else number >= low
    if not (np.isfinite(number) and above and number <= high):
        bounds = [f"{'>' if strict else '>='} {low:g}"] if low > -np.inf else []
        bounds += [f"<= {high:g}"] if high < np.inf else []
        raise ValueError(f"{name}={shown(value)} must be a finite number {' and '.join(bounds)}".rstrip())
    return number


def check_flag(name: str, value: Any) -> bool:
    """Return ``value`` if it is True or False; raise a ``ValueError`` otherwise."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}={shown(value)} must be True or False")
    return bool(value)


def as_pixels(what: str, images: Array, image_shape: tuple[int, ...], *, levels: bool = True) -> np.ndarray:
    """Check that ``images`` are floating ``[n, H, W, C]`` in [-1, 1], and return them.

    Levels 0 to 255 as uint8 are understood, where ``levels`` allows it: ``level / 127.5 - 1``.

    Raises:
      ValueError: for another shape or type, values that are not finite or lie far outside of [-1, 1].
    """
    check_known(what, images)
    try:
        values = np.asarray(images)
    except ValueError:
        raise ValueError(f"{what} must be one array [n, {', '.join(map(str, image_shape))}]") from None
    check_images(what, values, image_shape)
    if values.dtype == np.uint8:
        if not levels:
            raise ValueError(f"{what} are levels 0 to 255; psld_jax.dequantize makes images of them")
        return (values / np.float32(127.5) - 1).astype(np.float32)
    return _check_range(what, values)


def check_measurement(what: str, values: Array) -> np.ndarray:
    """Return ``values [n, ...]`` as an array, a single number as one of ``[1]``.

    Raises:
      ValueError: for what is not one array, not floating or not finite, or holds nothing.
    """
    check_known(what, values)
    try:
        values = np.atleast_1d(np.asarray(values))
    except ValueError:
        raise ValueError(f"{what} must be one array [n, ...]") from None
    if values.dtype == np.uint8:
        raise ValueError(f"{what} is uint8: measure images in [-1, 1], see psld_jax.normalise")
    if not _is_floating(values):
        hint = ": give real and imaginary parts as numbers of their own" if values.dtype.kind == "c" else ""
        raise ValueError(f"{what} has dtype {values.dtype}, and must be floating{hint}")
    check_array(what, values)
    if not values.size:
        raise ValueError(f"{what} has shape {values.shape}, which holds nothing")
    return values


def _is_floating(values: np.ndarray) -> bool:
    """Tell whether values are floating, of numpy or of JAX."""
    return values.dtype.kind == "f" or values.dtype.name == "bfloat16"


def check_noise(value: Any, *, strict: bool = False) -> float:
    """Return ``noise_std`` as a float; raise a ``ValueError`` unless it is from 0 to a million, above 0 if strict."""
    return check_number("noise_std", value, 0, _MOST_NOISE, strict=strict)


def _check_range(what: str, values: np.ndarray) -> np.ndarray:
    if not _is_floating(values):
        raise ValueError(
            f"{what} have dtype {values.dtype}: they must be floating, in [-1, 1]; psld_jax.normalise makes them so"
        )
    check_array(what, values)
    if not values.size:
        raise ValueError(f"{what} have shape {values.shape}, which holds nothing")
    low, high = float(values.min()), float(values.max())
    if max(-low, high) > FARTHEST:
        raise ValueError(
            f"{what} lie in {low:.4g} to {high:.4g}, not in [-1, 1]: psld_jax.normalise(images, low=0, high=255) makes "
            "them so (psld_jax.dequantize for likelihoods)"
        )
    if low >= 0 and high > 0.5 and values.size > 16:
        warnings.warn(
            f"{what} lie in {low:.4g} to {high:.4g}: if that is a range of 0 to 1, psld_jax.normalise(images, low=0, "
            "high=1) takes it to [-1, 1]",
            stacklevel=4,
        )
    return values


def normalise(images: Array, *, low: float = 0.0, high: float = 255.0) -> np.ndarray:
    """Map images of any shape from ``[low, high]`` to [-1, 1], float32: ``2 (x - low) / (high - low) - 1``.

    Example: ``psld_jax.normalise(levels)`` for levels 0 to 255, ``normalise(images, high=1)`` for 0 to 1.

    Raises:
      ValueError: for values outside of the range, or not finite, or a range that is empty.
    """
    low, high = check_number("low", low), check_number("high", high)
    if not low < high:
        raise ValueError(f"need low < high, got low={low}, high={high}")
    check_known("images", images)
    values = np.asarray(images)
    check_array("images", values)
    if values.size and (values.min() < low or values.max() > high):
        raise ValueError(f"images lie in {values.min()} to {values.max()}, outside of low={low:g} to high={high:g}")
    return (2 * (values.astype(np.float64) - low) / (high - low) - 1).astype(np.float32)
