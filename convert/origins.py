"""Where checkpoints come from: each origin is one module of this package that recognises and reads its files."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the user says about a file, for what the file cannot tell.

    Attributes:
      config: name or path of a configuration, empty or ``auto`` if none is given.
      overrides: ``FIELD=VALUE`` each, such as ``model.image_size=32``.
      weights: ``ema``, ``online`` or ``both``; ``None`` takes the best of what is there.
    """

    config: str = ""
    overrides: tuple[str, ...] = ()
    weights: str | None = None


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a file holds, in the terms of this package: a configuration and arrays, nothing else.

    Attributes:
      origin: name of the origin, e.g. ``edm``.
      network: ``{"name": family, "config": options by name}``; options that are missing have their default. For NCSN++
        the options are fields of ``config.model``.
      weights: by set, ``ema`` or ``online``, the best first: nested dict of float32 numpy arrays, as
        ``nnx.to_pure_dict(nnx.state(network))`` has them.
      sde: ``{"name": diffusion, ...}`` with its parameters by name.
      image_shape: ``(H, W, C)`` of an image.
      n_classes: classes that the network is told; 0: none.
      notes: sentences, in the order to print them: what was found, what was left out, what could not be known.
      fields: other fields of the configuration by dotted name, e.g. ``sampler.t_end``.
      config: name or path of the configuration that the rest is taken from.
      sources: by set and path (joined by ``/``), the name of the tensor in the file and its shape and dtype there.
      metadata: numbers and short strings that stood beside the weights.
    """

    origin: str
    network: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, Any]]
    sde: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    n_classes: int = 0
    notes: tuple[str, ...] = ()
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: str = "default"
    sources: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def origins() -> dict[str, ModuleType]:
    """The modules of this package that read files, by name.

    Each has ``NAME``; ``ACCEPTS``, a phrase that says what it reads; ``recognises(path) -> bool``, which looks at no
    more than it needs and never raises ``ValueError``; and ``read(path, asked) -> Converted``.
    """
    package = importlib.import_module(__package__ or "psld_jax.convert")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return {module.NAME: module for module in modules if hasattr(module, "recognises")}


def recognise(path: Path) -> ModuleType:
    """The one origin of a file or directory.

    Raises:
      FileNotFoundError: if there is no such file or directory.
      ValueError: if none recognises it, with what is accepted, or several do.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or directory")
    known = origins()
    found = [name for name, module in known.items() if module.recognises(path)]
    if len(found) == 1:
        return known[found[0]]
    if found:
        raise ValueError(f"{path} could be of {' and of '.join(found)}: say which, --origin {found[0]}")
    accepted = "; ".join(f"{name}: {module.ACCEPTS}" for name, module in known.items())
    raise ValueError(f"{path} is no checkpoint that can be read. Accepted are {accepted}")
