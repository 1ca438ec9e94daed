"""Checks of the state that a sampler takes, and the call of the network on a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from psld_jax import blocks

Array = Any
EpsFn = Callable[[blocks.State, Array], blocks.State]


def check_state(z: Any, num_blocks: int) -> tuple[int, Any]:
    """Check a state, leaves ``[n, ...]``, and return its batch size ``n`` and its dtype.

    Raises:
      ValueError: for what is no state of ``num_blocks`` blocks, or has leaves that do not fit together.
    """
    if not isinstance(z, tuple):
        raise ValueError(f"a state is a tuple of {num_blocks} blocks, got {type(z).__name__}")
    if len(z) != num_blocks:
        raise ValueError(f"the state has {len(z)} blocks, the sampler's SDE has {num_blocks}")
    structures = {str(jax.tree.structure(block)) for block in z}
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(block)] for block in z]
    if len(structures) > 1 or any(s != shapes[0] for s in shapes):
        raise ValueError(f"all blocks of a state must have the same structure and shapes, got {shapes}")
    leaves = jax.tree.leaves(z)
    dtypes = {jnp.result_type(leaf) for leaf in leaves}
    if len(dtypes) != 1 or not jnp.issubdtype(next(iter(dtypes)), jnp.floating):
        raise ValueError(f"all leaves of a state must share one floating dtype, got {sorted(map(str, dtypes))}")
    if any(jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != jnp.shape(leaves[0])[0] for leaf in leaves):
        raise ValueError(f"all leaves of a state need the same leading batch axis, got shapes {shapes[0]}")
    return jnp.shape(leaves[0])[0], dtypes.pop()


def evaluate(eps_fn: EpsFn, z: blocks.State, t: Array) -> blocks.State:
    """Evaluate ``eps_fn(z, t)``, as a state of the type and dtype of ``z``.

    Leaves ``[n, ...]`` and a scalar ``t``.

    Raises:
      ValueError: when it is traced, if what ``eps_fn`` returns has not the shapes of ``z``.
    """
    eps = eps_fn(z, t)
    if not isinstance(eps, tuple) or jax.tree.map(jnp.shape, tuple(eps)) != jax.tree.map(jnp.shape, tuple(z)):
        raise ValueError(
            f"eps_fn returned {jax.tree.map(jnp.shape, eps)}; it must return a state like its input, "
            f"{jax.tree.map(jnp.shape, z)}"
        )
    return blocks.like(z, jax.tree.map(lambda out, leaf: jnp.asarray(out, leaf.dtype), tuple(eps), tuple(z)))
