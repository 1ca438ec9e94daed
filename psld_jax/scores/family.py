"""From a network of a family (:mod:`psld_jax.models.families`) to an ``eps_fn`` on states."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from psld_jax import blocks
from psld_jax.models.families import Options
from psld_jax.scores.function import FunctionScore, function
from psld_jax.scores.network import in_tiles, tile_size
from psld_jax.sde import LinearSDE

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FamilyNetwork:
    """The network as a function of images and times, a pytree whose leaves are its arrays.

    Attributes:
      state: the network's arrays; graph: the rest of it, static.
      tile: samples that go through the network at a time; 0 for all.
      labels: integers ``[n]``, or ``None``.
    """

    state: Any
    graph: Any = dataclasses.field(metadata={"static": True})
    tile: int = dataclasses.field(metadata={"static": True})
    labels: Any = None

    def __call__(self, images: Array, times: Array) -> Array:
        """``[n, H, W, C]`` and ``[n]`` to ``[n, H, W, C]``, in the dtype of the images."""
        net: Any = nnx.merge(self.graph, self.state)

        def run(images: Array, times: Array, labels: Array | None) -> Array:
            return net(images, times, labels)

        return in_tiles(run, self.tile, images, times, self.labels).astype(images.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FamilyScore:
    """``eps_fn`` of a network of a family; make it with :func:`family`. A pytree whose leaves are its arrays."""

    function: FunctionScore

    def with_labels(self, labels: Array) -> FamilyScore:
        """The same for samples of these classes, integers ``[n]``."""
        told = dataclasses.replace(self.function.predict, labels=jnp.asarray(labels, jnp.int32))
        return FamilyScore(dataclasses.replace(self.function, predict=told))

    def __call__(self, z: blocks.State, t: Array) -> blocks.State:
        """``eps(z, t)`` for a state of arrays ``[n, H, W, C]`` and scalar ``t``; same structure and dtype."""
        return self.function(z, t)


def family(net: nnx.Module, sde: LinearSDE, options: Options, *, tile: int | None = None) -> FamilyScore:
    """Make an ``eps_fn`` of a network of a family: its options tell what it predicts and what clock it goes by.

    Args:
      net: the network.
      sde: the diffusion it was trained for.
      options: of the network.
      tile: as in :func:`psld_jax.scores.network`.

    Raises:
      ValueError: for a diffusion without the clock that the network goes by, or a negative tile.
    """
    graph, state = nnx.split(net)
    predict = FamilyNetwork(state, graph, tile_size(tile))
    return FamilyScore(function(predict, sde, predicts=options.predicts, times=_clock(options.clock, sde)))


def _clock(name: str, sde: LinearSDE) -> Any:
    """From the time of the diffusion to that of the network; ``None`` where they are one."""
    if name == "time":
        return None
    raise ValueError(f"{sde!r} has no {name!r} for the network to go by")
