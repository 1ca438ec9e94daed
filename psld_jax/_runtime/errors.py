"""Checks of arguments, and messages that name the value, what is allowed, and the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np


def unknown(what: str, value: object, allowed: Iterable[str]) -> ValueError:
    """A ``ValueError`` for a name that is not in ``allowed``, suggesting the nearest one that is."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {what} {value!r}.{hint} Allowed: {', '.join(allowed)}")


def check_choice(what: str, value: object, allowed: Collection[Any]) -> None:
    """Raise that ``ValueError`` unless ``value`` is in ``allowed``."""
    if value not in allowed:
        raise unknown(what, value, allowed)


def is_count(value: Any, least: int = 1) -> bool:
    """Whether ``value`` is a whole number of at least ``least``; 10.0 is one, ``True`` and ``"10"`` are not."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return bool(number and value >= least and float(value).is_integer())


def check_counts(least: int = 1, **counts: Any) -> None:
    """Raise a ``ValueError`` for the first of the named values that is no whole number of at least ``least``."""
    for name, value in counts.items():
        if not is_count(value, least):
            raise ValueError(f"{name}={value!r} must be an integer >= {least}")


def check_images(what: str, images: Any, image_shape: tuple[int, ...]) -> None:
    """Raise a ``ValueError`` unless ``images`` are one or more of shape ``(H, W, C)``."""
    if np.shape(images)[1:] != tuple(image_shape) or not len(images):
        raise ValueError(f"{what} have shape {np.shape(images)}, expected [n, {', '.join(map(str, image_shape))}]")
