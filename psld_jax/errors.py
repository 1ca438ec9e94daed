"""Error messages that name the value, what is allowed, and the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, value: object, allowed: Iterable[str]) -> ValueError:
    """A ``ValueError`` for a name that is not in ``allowed``, suggesting the nearest one that is."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {what} {value!r}.{hint} Allowed: {', '.join(allowed)}")
