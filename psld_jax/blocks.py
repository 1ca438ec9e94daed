"""States of K blocks, and the K x K matrices that act on them.

A state is a tuple of K pytrees of equal structure (``PhaseState(x, m)``, or ``(x,)`` for VP); a matrix
acts on the block index and treats every number inside a block alike.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = Any
State = tuple


class PhaseState(NamedTuple):
    """Position ``x`` and momentum ``m``: the state of a phase-space diffusion (K = 2), e.g. ``[n, H, W, C]`` each."""

    x: Any
    m: Any


class ThirdOrderState(NamedTuple):
    """Position ``x``, velocity ``v`` and acceleration ``a``: a state of K = 3, e.g. ``[n, H, W, C]`` each."""

    x: Any
    v: Any
    a: Any


def like(template: State, blocks: Any) -> State:
    """Put ``blocks`` of any shapes into a tuple of the same type as ``template`` (named tuples included)."""
    blocks = tuple(blocks)
    return type(template)(*blocks) if hasattr(template, "_fields") else blocks


def apply(matrix: Array, state: State) -> State:
    """Apply a matrix to a state: ``out_k = sum_l matrix[k, l] state_l`` over every leaf.

    ``matrix`` is ``[K', K]``, or ``[n, K', K]`` with one matrix for each entry of the leaves' leading axis.
    """

    def entry(k: int, j: int, leaf: Array) -> Array:
        a = matrix[..., k, j]
        return jnp.reshape(a, a.shape + (1,) * (jnp.ndim(leaf) - a.ndim)) * leaf

    rows = range(matrix.shape[-2])
    out = (
        jax.tree.map(lambda *leaves, k=k: sum(entry(k, j, leaf) for j, leaf in enumerate(leaves)), *state) for k in rows
    )
    return like(state, out) if matrix.shape[-2] == len(state) else tuple(out)


def add(*states: State) -> State:
    """Add states, leaf by leaf: the same shapes, or shapes that broadcast."""
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *states)


def as_pytree(fn: Any) -> Any:
    """Make ``fn`` an argument for ``jax.jit``: a plain function becomes a static ``Partial``, a pytree stays."""
    return jax.tree_util.Partial(fn) if jax.tree_util.all_leaves([fn]) else fn
