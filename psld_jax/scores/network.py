"""Making an ``eps_fn`` on states of a network on images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psld_jax import blocks
from psld_jax._runtime.device import TimeFunction
from psld_jax.sde import PSLD, LinearSDE

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash, and jax.jit asks for one
class NetworkScore:
    """``eps_fn`` of a network; make it with :func:`network`. A pytree whose leaves are the network's arrays.

    Attributes:
      state: the network's arrays; graph: the rest of it, static.
      inputs: function of time, ``Cin [K, K]``, or ``None``.
      predicted: the blocks of eps that the network predicts, in the order of its channels; the others are zero.
      tile: samples that go through the network at a time; 0 for all.
      labels: integers ``[n]`` for a network that takes them, or ``None``.
    """

    state: Any
    inputs: TimeFunction | None
    graph: Any = dataclasses.field(metadata={"static": True})
    predicted: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    tile: int = dataclasses.field(metadata={"static": True})
    labels: Any = None

    def with_labels(self, labels: Array) -> NetworkScore:
        """Return the same score for samples of these classes, integers ``[n]``."""
        return dataclasses.replace(self, labels=jnp.asarray(labels, jnp.int32))

    def __call__(self, z: blocks.State, t: Array) -> blocks.State:
        """Return ``eps(z, t)`` for a state of arrays ``[n, H, W, C]`` and scalar ``t``; same structure and dtype."""
        dtype = z[0].dtype
        t = jnp.asarray(t, dtype)
        fed = z if self.inputs is None else blocks.apply(self.inputs(t), z)
        out = self._run(jnp.concatenate(fed, axis=-1), t).astype(dtype)
        parts = dict(zip(self.predicted, jnp.split(out, len(self.predicted), axis=-1), strict=True))
        return blocks.like(z, (parts.get(k, jnp.zeros_like(leaf)) for k, leaf in enumerate(z)))

    def _run(self, images: Array, t: Array) -> Array:
        net: Any = nnx.merge(self.graph, self.state)

        def run(images: Array, labels: Array | None) -> Array:
            return net(images, t) if labels is None else net(images, t, labels)

        return in_tiles(run, self.tile, images, self.labels)


def in_tiles(run: Callable[..., Array], tile: int, *arrays: Array | None) -> Array:
    """Run ``run(*arrays)`` on ``tile`` samples of arrays ``[n, ...]`` at a time, the last ones padded; 0: on all.

    ``None`` among the arrays is passed on; the result is ``[n, ...]``.
    """
    n = len(jax.tree.leaves(arrays)[0])
    if not 0 < tile < n:
        return run(*arrays)

    def cut(leaf: Array) -> Array:
        padded = jnp.pad(leaf, [(0, -n % tile), *[(0, 0)] * (leaf.ndim - 1)])
        return jnp.reshape(padded, (-1, tile, *leaf.shape[1:]))

    out = jax.lax.map(lambda part: run(*part), jax.tree.map(cut, arrays))
    return jnp.reshape(out, (-1, *out.shape[2:]))[:n]


def predicted_blocks(sde: LinearSDE, in_ch: int, out_ch: int) -> tuple[int, ...]:
    """Return which blocks of eps a network of ``in_ch`` and ``out_ch`` channels predicts for ``sde``.

    All of them; or, preconditioned, one that stands for all; or half of them, where the diffusion needs the score of
    one block only (momentum for ``gamma = 0`` and a lower factor, position for ``nu = 0`` and an upper one).

    Raises:
      ValueError: for channels that fit none of these.
    """
    k = sde.num_blocks
    if in_ch % k:
        raise ValueError(f"in_ch={in_ch} must be divisible by {k}: the network takes {k} blocks side by side")
    if sde.data_std is not None:
        if out_ch * k != in_ch:
            raise ValueError(f"out_ch={out_ch} must be {in_ch // k}: a preconditioned network predicts one block")
        return (0,)
    if out_ch == in_ch:
        return tuple(range(k))
    if isinstance(sde, PSLD) and 2 * out_ch == in_ch:
        if sde.gamma == 0 and sde.decomposition == "lower":
            return (1,)
        if sde.nu == 0 and sde.decomposition == "upper":
            return (0,)
    raise ValueError(
        f"out_ch={out_ch} does not fit in_ch={in_ch}: a network predicts all {in_ch} channels; half of them only with "
        f"gamma = 0 and decomposition 'lower', or nu = 0 and 'upper', or preconditioned ({sde!r} is neither)"
    )


# On a CPU a few samples at a time stay nearer to the cache, and products of one shape make a sample's
# bits independent of its batch. Accelerators want the whole batch.
_CPU_TILE = 8


def tile_size(tile: int | None) -> int:
    """Return the tile that was asked for, or the default of this machine: 8 on a CPU, 0 (all) elsewhere.

    Raises:
      ValueError: for a negative one.
    """
    if tile is None:
        return _CPU_TILE if jax.default_backend() == "cpu" else 0
    if tile < 0:
        raise ValueError(f"tile={tile} must be an integer >= 0")
    return tile


def network(net: nnx.Module, sde: LinearSDE, *, tile: int | None = None) -> NetworkScore:
    """Make an ``eps_fn`` of ``net(z, t)``, e.g. :class:`psld_jax.models.NCSNpp`.

    The network sees the K blocks side by side on the channel axis, through ``Cin`` if ``sde`` is preconditioned. A
    network that predicts half of the blocks is filled up with zeros, see :func:`predicted_blocks`. Networks of the same
    configuration are the same program: other weights do not recompile.

    Args:
      net: the network.
      sde: the diffusion it was trained for.
      tile: samples that go through the network at a time (larger batches are cut up and padded), 0 for all. The default
        is 8 on a CPU and 0 elsewhere.

    Raises:
      ValueError: for channels that do not fit ``sde``, or a negative tile.
    """
    graph, state = nnx.split(net)
    config: Any = getattr(net, "config")  # noqa: B009 (declared by the networks, not by nnx.Module)
    inputs = None if sde.data_std is None else TimeFunction(lambda t: np.asarray(sde.input_matrix(t)), knots=sde.knots)
    return NetworkScore(state, inputs, graph, predicted_blocks(sde, config.in_ch, config.returned_ch), tile_size(tile))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash, and jax.jit asks for one
class NetworkLogits:
    """``logits(z, t)`` of a classifier network; make it with :func:`classifier`. A pytree, like the score's."""

    state: Any
    graph: Any = dataclasses.field(metadata={"static": True})

    def __call__(self, z: blocks.State, t: Array) -> Array:
        """Return logits of ``p(y | z, t)``, float32 ``[n, n_classes]``, for a state of arrays ``[n, H, W, C]``."""
        return nnx.merge(self.graph, self.state)(jnp.concatenate(z, axis=-1), t)


def classifier(net: nnx.Module) -> NetworkLogits:
    """Make a ``logits(z, t)`` of ``net(z, t)``, e.g. :class:`psld_jax.models.NCSNppClassifier`."""
    graph, state = nnx.split(net)
    return NetworkLogits(state, graph)
