"""Checks of arguments, and messages that name the value, what is allowed, and the nearest match."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

#: Of more names than this, only the nearest are told.
_MANY = 40
_NEAREST = 5
#: Counts are below it, so that they fit an integer of the machine.
_TOO_MANY = 2**63
_ADDRESS = re.compile(r"\s*\bat 0x[0-9a-fA-F]+")


def unknown(what: str, value: object, allowed: Iterable[Any]) -> ValueError:
    """Make a ``ValueError`` for a name that is not in ``allowed``. It suggests the nearest one, or five of many."""
    names = sorted(map(str, allowed))
    name = str(value) if isinstance(value, str) else ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    told = f"Allowed: {', '.join(names)}"
    if len(names) > _MANY:
        near = nearest(name, names)
        told = f"The nearest of {len(names)}: {', '.join(near)}"
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {what} {shown(value)}.{hint} {told}")


def nearest(name: str, names: Collection[str], n: int = _NEAREST) -> list[str]:
    """Return the ``n`` of ``names`` that are most like it, as a whole or in their last parts (``sampler.nfe``)."""
    last = name.rpartition(".")[2]

    def likeness(other: str) -> float:
        pairs = ((name, other, 1.0), (last, other.rpartition(".")[2], 0.99))
        return max(weight * difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio() for a, b, weight in pairs)

    return sorted(names, key=lambda other: (-likeness(other), other))[:n]


def shown(value: Any, most: int = 80) -> str:
    """Return ``repr(value)`` on one line, cut off, and without addresses in memory, which differ each time."""
    if hasattr(value, "__array__") and hasattr(value, "shape") and not isinstance(value, np.generic):
        return f"an array of shape {value.shape}"
    text = _ADDRESS.sub("", " ".join(repr(value).split()))
    return text if len(text) <= most else f"{text[:most]}..."


def why(error: BaseException) -> str:
    """Return the message of another library's error in the words of this one.

    The result has no addresses in memory, and no advice on arguments that cannot be given here.
    """
    text = _ADDRESS.sub("", " ".join(str(error).split()))
    if "allow_pickle" in text:  # numpy advises to execute what the file says
        return "it holds Python objects, or is no file of numpy; save arrays of numbers with numpy.save or numpy.savez"
    if isinstance(error, json.JSONDecodeError):
        return "it is empty" if not error.doc.strip() else f"it is no JSON, or cut off, at line {error.lineno}"
    if isinstance(error, UnicodeDecodeError):
        return "it is no text"
    if isinstance(error, KeyError):
        return f"it has no {text}"
    return text or type(error).__name__


def check_choice(what: str, value: object, allowed: Collection[Any]) -> None:
    """Raise the ``ValueError`` of :func:`unknown` unless ``value`` is in ``allowed``."""
    try:
        known = not isinstance(value, np.ndarray) and value in allowed
    except TypeError:  # of what has no hash
        known = False
    if not known:
        raise unknown(what, value, allowed)


def is_count(value: Any, least: int = 1) -> bool:
    """Tell whether ``value`` is a whole number of at least ``least``: 10.0 is one, ``True`` and ``"10"`` are not."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return bool(number and least <= value < _TOO_MANY and float(value).is_integer())


def check_counts(least: int = 1, **counts: Any) -> None:
    """Raise a ``ValueError`` for the first of the named values that is no whole number of at least ``least``."""
    for name, value in counts.items():
        if not is_count(value, least):
            raise not_a_count(name, value, least)


def not_a_count(name: str, value: Any, least: int) -> ValueError:
    """Make the ``ValueError`` for what :func:`is_count` refuses."""
    array = hasattr(value, "__array__") and getattr(value, "shape", None) == ()
    hint = f", and no array: give int({name})" if array and not isinstance(value, np.generic) else ""
    if isinstance(value, int) and value >= _TOO_MANY:
        hint = " and below 2**63"
    return ValueError(f"{name}={shown(value)} must be an integer >= {least}{hint}")


def check_kind(name: str, value: Any, kind: type | tuple[type, ...], what: str) -> None:
    """Raise a ``ValueError`` unless ``value`` is an instance of ``kind``; ``what`` says what is meant."""
    if not isinstance(value, kind):
        raise ValueError(f"{name}={shown(value)} must be {what}")


def check_callable(name: str, value: Any, what: str = "a function") -> None:
    """Raise a ``ValueError`` unless ``value`` can be called; ``what`` says what is meant."""
    if not callable(value):
        raise ValueError(f"{name}={shown(value)} must be {what}")


def check_images(what: str, images: Any, image_shape: tuple[int, ...]) -> None:
    """Raise a ``ValueError`` unless ``images`` are one or more of shape ``(H, W, C)``."""
    if np.ndim(images) == 0 or np.shape(images)[1:] != tuple(image_shape) or not len(images):
        raise ValueError(f"{what} have shape {np.shape(images)}, expected [n, {', '.join(map(str, image_shape))}]")
