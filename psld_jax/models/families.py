"""Families of networks by name: the values of ``config.model.name`` besides NCSN++, and their sections.

A family is one file of ``psld_jax/models``: a frozen dataclass of options and a module that is made of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from flax import nnx

from psld_jax._runtime.abstract import shapes_of
from psld_jax._runtime.errors import check_choice
from psld_jax._runtime.registry import Registry

#: Options that every network may have: they stand in ``config.model`` itself, not in the family's section.
SHARED = ("dtype", "dropout")


class Options(Protocol):
    """What the options of a family tell about its networks: a frozen dataclass, in which every field has a default."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(H, W, C)`` of an image, one block of the state."""
        ...

    @property
    def n_classes(self) -> int:
        """Number of classes that the network is told; 0: none."""
        ...

    @property
    def predicts(self) -> str:
        """What the network returns: one of the predictions of :meth:`psld_jax.sde.OneBlock.predicting`."""
        ...

    @property
    def clock(self) -> str:
        """What the network takes for the time: ``"time"`` of the diffusion, ``"index"`` of its level, ``"sigma"``."""
        ...


_REGISTRY: Registry[type[nnx.Module]] = Registry("network", "psld_jax.models")

Class = TypeVar("Class", bound=type[nnx.Module])


def register(name: str) -> Callable[[Class], Class]:
    """Decorator that makes a network available as ``config.model.name``, with its options in ``config.model.NAME``.

    The class has its dataclass of options as the attribute ``options``, and is made as ``cls(options, rngs=rngs)``. It
    is called as ``network(images, time, labels, deterministic=True, rngs=None)``: images ``[n, H, W, C]``, time a
    scalar or ``[n]``, labels ``None`` or as the family defines them; it returns ``[n, H, W, C]``.

    Raises:
      ValueError: when decorating, if the name is taken.
    """
    return _REGISTRY.register(name)


def available() -> tuple[str, ...]:
    """Return the names of all families, sorted."""
    return _REGISTRY.names()


def get(name: str) -> Any:
    """Return the class of a family's networks; a ``ValueError`` for an unknown name shows the nearest known one."""
    return _REGISTRY[name]


def defaults(name: str) -> dict[str, Any]:
    """Return the options of a family that stand in its section of ``config.model``, with their defaults.

    Raises:
      ValueError: for an unknown name.
    """
    return {field.name: field.default for field in dataclasses.fields(get(name).options) if field.name not in SHARED}


def options(name: str, values: Mapping[str, Any]) -> Any:
    """Make the options of a family from ``values`` by name. What is missing has its default.

    Raises:
      ValueError: for an unknown family or option (with the nearest known one), or as the options themselves do.
    """
    cls = get(name).options
    known = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        check_choice(f"option of {name}", key, known)
    return cls(**values)


def abstract(name: str, chosen: Any) -> nnx.Module:
    """Make the network of a family with these options, with shapes in place of arrays. Nothing is allocated."""
    return shapes_of(lambda rngs: get(name)(chosen, rngs=rngs))
