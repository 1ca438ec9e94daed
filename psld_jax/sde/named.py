"""Diffusions by name: the values of ``config.sde.name``, and the fields of ``config.sde``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from psld_jax._runtime.errors import check_choice
from psld_jax._runtime.registry import Registry
from psld_jax.sde.base import LinearSDE


def _check_defaults(name: str, cls: type[LinearSDE]) -> None:
    missing = [key for key, default in _arguments(cls).items() if default is inspect.Parameter.empty]
    if missing:
        raise ValueError(f"diffusion {name!r} needs defaults for {', '.join(missing)}: configurations have them")


_REGISTRY: Registry[type[LinearSDE]] = Registry("diffusion", "psld_jax.sde", _check_defaults)

Class = TypeVar("Class", bound=type[LinearSDE])


def register(name: str) -> Callable[[Class], Class]:
    """Decorator that makes a subclass of :class:`LinearSDE` available as ``config.sde.name``.

    The arguments of its constructor become fields of ``config.sde``, with its defaults; where another diffusion has
    another default for the same name, a field that is not set (``None``) stands for that of the diffusion.

    Raises:
      ValueError: when decorating, if the name is taken, or an argument has no default.
    """
    return _REGISTRY.register(name)


def available() -> tuple[str, ...]:
    """Return the names of all diffusions, sorted."""
    return _REGISTRY.names()


def parameters(name: str) -> dict[str, Any]:
    """Return the arguments of the diffusion ``name``, and their defaults.

    Raises:
      ValueError: for an unknown name.
    """
    return _arguments(_REGISTRY[name])


def get(name: str, **values: Any) -> LinearSDE:
    """Make the diffusion ``name`` with these arguments, and defaults for the others.

    Raises:
      ValueError: for an unknown name or argument (with the nearest known one), or as the diffusion itself does.
    """
    for key in values:
        check_choice(f"argument of the diffusion {name!r}", key, _arguments(_REGISTRY[name]))
    return _REGISTRY[name](**values)


def _arguments(cls: type[LinearSDE]) -> dict[str, Any]:
    return {key: parameter.default for key, parameter in inspect.signature(cls).parameters.items()}
