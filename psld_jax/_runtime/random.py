"""Random numbers that depend on (seed, sample index, draw number) and on nothing else.

Sample ``i`` owns the key ``fold_in(key, i)``; its draw ``d`` comes from ``fold_in(key_i, d)``. How samples
are split into batches, over devices or over restarted runs therefore cannot change a single bit of noise.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax._runtime.device import wide
from psld_jax._runtime.errors import shown

Array = Any

#: Draw number of the prior. Steps of a sampler count 0, 1, 2, ..., so one key serves both.
PRIOR_DRAW = 2**32 - 1


def sample_keys(key: Array, indices: Array) -> Array:
    """Make one key for each sample: ``fold_in(key, i)`` for ``i`` in ``indices`` (integers ``[n]``).

    Raises:
      ValueError: for what is no random key, and for indices that are no integers of at least 0.
    """
    check_random_key(key)
    if not isinstance(indices, jax.Array):  # those on a device are not waited for
        indices = np.asarray(indices)
        if indices.ndim != 1 or indices.dtype.kind not in "iu" or (indices.size and indices.min() < 0):
            raise ValueError(f"indices={shown(indices)} must be integers >= 0, [n]")
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(indices, jnp.uint32))


def is_batch(key: Array) -> bool:
    """Tell whether ``key`` is already one key per sample (``[n]`` typed keys, or ``[n, 2]`` raw ones)."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key.ndim == (1 if typed else 2)


def per_sample(key: Array, n: int) -> Array:
    """Return ``key`` if it holds one key per sample, else ``sample_keys(key, 0..n-1)``; ``[n]``.

    Raises:
      ValueError: as :func:`check_key`.
    """
    check_key(key, n)
    return key if is_batch(key) else sample_keys(key, jnp.arange(n))


def check_random_key(key: Any) -> None:
    """Raise a ``ValueError`` unless ``key`` is one of JAX's or several, typed or raw: ``[]``, ``[n]``, ``[n, 2]``."""
    known = isinstance(key, (jax.Array, np.ndarray))
    if known and not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        known = key.dtype == np.uint32 and key.ndim > 0 and key.shape[-1] >= 2
    if not known:
        raise ValueError(f"key={shown(key)} is not a random key; make one with jax.random.key(seed)")


def check_key(key: Array, n: int) -> None:
    """Raise a ``ValueError`` if ``key`` is no random key, or holds another number of them, ``[n]``, than ``n``."""
    check_random_key(key)
    if is_batch(key) and len(key) != n:
        raise ValueError(f"got {len(key)} random keys for a batch of {n}; pass one key, or one per sample")


@functools.lru_cache(maxsize=16)
def unused(n: int) -> Array:
    """Return keys ``[n]`` for a program that draws nothing from them. They are made once, also while JAX traces."""
    with jax.ensure_compile_time_eval():
        return sample_keys(jax.random.key(0), jnp.arange(n))


def normal_like(keys: Array, draw: Array, state: Any) -> Any:
    """Draw standard normal numbers shaped like ``state`` (leaves ``[n, ...]``): draw number ``draw`` of ``keys``.

    Those in half precision are those of float32, rounded.
    """
    leaves, structure = jax.tree.flatten(state)

    def numbers(key: Array, leaf: Array) -> Array:
        # In bfloat16 JAX has 128 of them, with a mean of -0.012.
        return jax.random.normal(key, leaf.shape[1:], wide(leaf.dtype)).astype(leaf.dtype)

    def one(key: Array) -> list[Array]:
        key = jax.random.fold_in(key, draw)
        return [numbers(jax.random.fold_in(key, i), leaf) for i, leaf in enumerate(leaves)]

    return jax.tree.unflatten(structure, jax.vmap(one)(keys))
