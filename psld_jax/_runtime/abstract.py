"""Modules with shapes in place of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from flax import nnx

Module = TypeVar("Module", bound=nnx.Module)


def shapes_of(make: Callable[[nnx.Rngs], Module]) -> Module:
    """Return the module that ``make(rngs)`` makes, with shapes in place of arrays. Nothing is allocated.

    It is ``nnx.eval_shape``, with keys that are counted outside of the trace. Flax asks a traced count for its
    sharding, which JAX answers with an error that has the trace so far in its message: with hundreds of arrays that
    takes three times as long as all else.
    """

    def made() -> Module:
        rngs, zero = nnx.Rngs(0), np.zeros((), np.uint32)
        rngs.default.count = nnx.RngCount(cast(Any, zero), tag="default")
        return make(rngs)

    return nnx.eval_shape(made)
