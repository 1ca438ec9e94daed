"""Making an ``eps_fn`` on states of a network of a family (:mod:`psld_jax.models.families`)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psld_jax import blocks
from psld_jax._runtime.device import TimeFunction
from psld_jax.models.families import Options
from psld_jax.scores.clocks import LinearClock
from psld_jax.scores.network import in_tiles, tile_size
from psld_jax.sde import EDM, VESDE, Discrete, LinearSDE, OneBlock

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash, and jax.jit asks for one
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
        """Run the network: ``[n, H, W, C]`` and ``[n]`` to ``[n, H, W, C]``, in the dtype of the images."""
        net: Any = nnx.merge(self.graph, self.state)

        def run(images: Array, times: Array, labels: Array | None) -> Array:
            return net(images, times, labels)

        return in_tiles(run, self.tile, images, times, self.labels).astype(images.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash, and jax.jit asks for one
class FamilyScore:
    """``eps_fn`` of a network of a family; make it with :func:`family`. A pytree whose leaves are its arrays.

    Attributes:
      network: the network as a function.
      clock: function of time: what the network is told.
      scale: function of time, by which images are multiplied first, or ``None``.
      needs_labels: whether the network has no label for "any".
    """

    network: FamilyNetwork
    clock: Any
    scale: TimeFunction | None = None
    needs_labels: bool = dataclasses.field(default=False, metadata={"static": True})

    def with_labels(self, labels: Array) -> FamilyScore:
        """Return the same score for samples of these classes, integers ``[n]``, or other labels that it takes."""
        return dataclasses.replace(self, network=dataclasses.replace(self.network, labels=jnp.asarray(labels)))

    def bind(self, eps_fn: Any, own: dict[str, Array]) -> Any:
        """Return another ``eps_fn`` with the classes ``own["labels"]``, integers ``[n]``: guidance of strength 1."""
        return eps_fn.with_labels(own["labels"])

    def __call__(self, z: blocks.State, t: Array) -> blocks.State:
        """Return what the network predicts at ``(z, t)``, for a state of one array ``[n, H, W, C]`` and scalar ``t``.

        Same structure and dtype. Of more channels than the image, the first are taken: behind them is a learned
        variance.
        """
        (images,) = z
        t = jnp.asarray(t, images.dtype)
        time = jnp.asarray(self.clock(t), images.dtype)
        images = images if self.scale is None else self.scale(t) * images
        out = self.network(images, jnp.broadcast_to(time, (len(images),)))
        return blocks.like(z, (out[..., : images.shape[-1]],))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IndexClock:
    """The clock that gives the number of a level in a schedule of ``steps``: ``steps t - 1``, a real number."""

    steps: int = dataclasses.field(metadata={"static": True})

    def __call__(self, t: Array) -> Array:
        """Map ``t``, of any shape, to an array of the same shape."""
        index = self.steps * t - 1
        level = jnp.round(index)
        # The time of a level is a rounded number. The network is told of that level, not of one a little beside it.
        return jnp.where(jnp.abs(index - level) <= 2 * jnp.finfo(t.dtype).eps * self.steps, level, index)


def family(net: nnx.Module, sde: LinearSDE, options: Options, *, tile: int | None = None) -> FamilyScore:
    """Make an ``eps_fn`` of a network of a family, which goes by the clock that its options name.

    What it returns is what ``options.predicts`` says, so the diffusion must be one of that prediction:
    :meth:`psld_jax.sde.OneBlock.predicting`.

    Args:
      net: the network.
      sde: the diffusion it was trained for.
      options: of the network.
      tile: as in :func:`psld_jax.scores.network`.

    Raises:
      ValueError: for a diffusion of several blocks or of another prediction, or without the clock that the network goes
        by; for a negative tile.
    """
    if not isinstance(sde, OneBlock):
        raise ValueError(f"{sde!r} is no path of one block, which a network of images is trained for")
    if sde.prediction != options.predicts or sde.data_std is not None:
        raise ValueError(f"the network predicts {options.predicts!r}: use sde.predicting({options.predicts!r})")
    graph, state = nnx.split(net)
    network = FamilyNetwork(state, graph, tile_size(tile))
    # A network that is told a noise level means that of data which keep their size.
    scaled = options.clock == "sigma" and not isinstance(sde, (EDM, VESDE))
    scale = TimeFunction(lambda t: 1 / sde.alpha(t), knots=sde.knots) if scaled else None
    return FamilyScore(network, _clock(options.clock, sde), scale, bool(getattr(options, "needs_labels", False)))


def check_clock(clock: str, sde: OneBlock) -> None:
    """Raise a ``ValueError`` unless a network of that clock can go along ``sde``, as :func:`family` does."""
    _clock(clock, sde)


def told(clock: str, sde: OneBlock, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what a network of that clock is told at times ``t [n]``, and the factor of its input, ``[n]`` each.

    The same as :func:`family` does, on the host in float64, for training.

    Raises:
      ValueError: for a diffusion without that clock.
    """
    if clock == "sigma":
        return sde.sigma(t), 1 / sde.alpha(t)
    if clock == "index" and isinstance(sde, Discrete):
        return sde.num_steps * t - 1, np.ones_like(t)
    if clock == "time":
        return t, np.ones_like(t)
    raise ValueError(_without(clock, sde))


def _without(clock: str, sde: LinearSDE) -> str:
    return f"{sde!r} has no {clock!r}, which the network goes by: it was trained for another diffusion"


def _clock(name: str, sde: OneBlock) -> Any:
    """Return the function from the time of the diffusion to that of the network."""
    if name == "time":
        return jax.tree_util.Partial(jnp.asarray)
    if name == "sigma" and isinstance(sde, EDM):
        return LinearClock(np.float64(sde.sigma_max), np.float64(0.0))  # exact, where a spline is not
    if name == "sigma" and np.isfinite(sde.sigma(np.float64(1.0))):
        return TimeFunction(sde.sigma, knots=sde.knots)
    if name == "index" and isinstance(sde, Discrete):
        return IndexClock(sde.num_steps)
    raise ValueError(_without(name, sde))
