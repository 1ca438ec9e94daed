"""Where checkpoints come from: each origin is one module of this package that recognises and reads its files."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from psld_jax._runtime.errors import check_choice
from psld_jax.checkpoints.pointers import check_fetched


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the user says about a file, where the file itself does not tell.

    Attributes:
      config: name or path of a configuration, empty or ``auto`` if none is given.
      overrides: ``FIELD=VALUE`` each, such as ``model.image_size=32``.
      weights: ``ema``, ``online`` or ``both``; ``None`` takes the best of what is there.
      progress: wraps the parameters of each network, with a label, for a progress bar, or ``None``.
    """

    config: str = ""
    overrides: tuple[str, ...] = ()
    weights: str | None = None
    progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None

    @property
    def base(self) -> str:
        """The configuration that has what neither the file nor an override says."""
        return "default" if self.config == "auto" else self.config or "default"

    def only(self, weights: str) -> None:
        """Raise a ``ValueError`` if others than ``weights``, the only ones in a file, are asked for."""
        if self.weights not in (None, weights):
            raise ValueError(f"weights={self.weights!r} are not in this file; {weights!r} are")

    def tracked(self, items: Iterable[Any], label: str) -> Iterable[Any]:
        """Go through the items, with ``progress`` if there is one."""
        return items if self.progress is None else self.progress(items, label)


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
      config: the configuration that the rest is taken from: name, path, or a complete one.
      sources: by set and path (joined by ``/``), a table with ``source``, the tensor's name in the file,
        ``source_shape`` and ``source_dtype``.
      metadata: numbers and short strings that stood beside the weights.
      format: of the file, e.g. ``safetensors``.
      files: what was read, if it is more than the file or directory given; for the digest.
    """

    origin: str
    network: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, Any]]
    sde: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    n_classes: int = 0
    notes: tuple[str, ...] = ()
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: Any = "default"
    sources: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    format: str = ""
    files: tuple[Path, ...] = ()


def origins() -> dict[str, ModuleType]:
    """Return the modules of this package that read files, by name.

    Each has ``NAME``; ``ACCEPTS``, a phrase that says what it reads; ``recognises(path) -> bool``, which looks at no
    more than it needs and raises ``ValueError`` for a file of its kind that is damaged; and
    ``read(path, asked) -> Converted``.
    """
    package = importlib.import_module(__package__ or "psld_jax.convert")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return {module.NAME: module for module in modules if hasattr(module, "recognises")}


def recognise(path: Path, name: str = "") -> ModuleType:
    """Return the one origin of a file or directory, or the origin of this name.

    Raises:
      FileNotFoundError: if there is no such file or directory.
      ValueError: if none recognises it, with what is accepted, or several do; for an unknown name.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or directory")
    known = origins()
    if name:
        check_choice("origin", name, known)
        return known[name]
    found, damaged = [], []
    for origin, module in known.items():
        try:
            found += [origin] if module.recognises(path) else []
        except ValueError as error:
            damaged.append(error)
    if len(found) == 1:
        return known[found[0]]
    if found:
        raise ValueError(f"{path} could be of {' or of '.join(found)}: say which, --origin {found[0]}")
    if damaged:  # it looks like a file of that kind
        raise damaged[0]
    if path.is_file():
        with path.open("rb") as file:
            try:
                check_fetched(file)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
    accepted = "; ".join(f"{name}: {module.ACCEPTS}" for name, module in known.items())
    raise ValueError(f"{path} is no checkpoint that can be read. Accepted are {accepted}")
