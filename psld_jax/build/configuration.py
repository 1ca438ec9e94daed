"""Configurations: they are found by name, overridden field by field, and read back from JSON."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from psld_jax._runtime.errors import check_choice, shown, unknown
from psld_jax.checkpoints import directory as checkpoint

#: Fields that are a whole number or two of them.
_PAIRS = ("model.image_size", "model.edm.image_size")
#: Fields that need not be set.
_OPEN = "sampler.hyper."

_KINDS = {
    bool: "True or False",
    int: "a whole number (int)",
    float: "a number (float)",
    str: "text (str)",
    tuple: "a tuple",
    object: "a whole number, or a tuple of two: (H, W)",
}

_PACKAGE = Path(__file__).resolve().parents[1]


def config_directory() -> Path:
    """Return where the configurations are: beside the package in a checkout, inside it when installed."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def find_config(name: str) -> Path:
    """Find the file of a configuration: ``"digits"`` or ``"pj:digits"`` ships; a path is one of your own.

    Raises:
      ValueError: for an unknown name, which lists those that ship, and a path where there is no file.
    """
    shipped = {path.stem: path for path in config_directory().glob("*.py")}
    ours, _, own = name.rpartition("pj:")
    if not ours and own in shipped:
        return shipped[own]
    if name.startswith("pj:") or not name.endswith(".py"):
        raise unknown("config", name, shipped)
    path = Path(name)
    if path.is_file():
        return path
    if path.stem in shipped:
        raise ValueError(f"there is no file {name!r} here; the configuration that ships is {path.stem!r}, without .py")
    raise unknown("configuration file", name, [f"configs/{stem}.py" for stem in shipped])


def load_config(name: str) -> Any:
    """Load the configuration of that name (``"digits"``) or path; a ``ValueError`` lists the names if unknown."""
    path = find_config(name)
    spec = importlib.util.spec_from_file_location(f"psld_jax_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def fields(config: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of every field of a configuration, sections included."""
    names = []
    for key, value in config.items():
        names.append(prefix + key)
        if isinstance(value, ConfigDict):
            names += fields(value, f"{prefix}{key}.")
    return names


def override(config: Any, values: dict[str, Any]) -> Any:
    """Return a locked copy of ``config`` with the given fields (dotted names) replaced.

    Raises:
      ValueError: for an unknown field (with the nearest known one), or a value of the wrong type.
    """
    config, known = config.copy_and_resolve_references(), fields(config)
    for name, value in values.items():
        check_choice("config field", name, known)
        try:
            _check_kind(config, name, value)
            with config.ignore_type() if name in _PAIRS and _is_size(value) else contextlib.nullcontext():
                config.update_from_flattened_dict({name: value})
        except TypeError:
            raise ValueError(
                f"config.{name}={shown(value)} has the wrong type {type(value).__name__}: {_wanted(config, name)}"
            ) from None
    return config.lock()


def _check_kind(config: Any, name: str, value: Any) -> None:
    """Raise a ``TypeError`` for values that ml_collections accepts for every field, or for a number."""
    if value is None and not name.startswith(_OPEN) and _value(config, name) is not None:
        raise TypeError
    if isinstance(value, bool) and _kind(config, name) in (int, float):
        raise TypeError


def _value(config: Any, name: str) -> Any:
    for key in name.split("."):
        config = config[key]
    return config


def _kind(config: Any, name: str) -> type:
    *sections, key = name.split(".")
    for section in sections:
        config = config[section]
    return config.get_type(key)


def _wanted(config: Any, name: str) -> str:
    """Say in words what a field takes."""
    kind, value = _kind(config, name), _value(config, name)
    if isinstance(value, ConfigDict):
        return f"it is a section; set its fields, such as config.{name}.{next(iter(value), 'NAME')}"
    default = "" if value is None else f", such as {shown(value)}"
    return f"it must be {_KINDS.get(kind, kind.__name__)}{default}"


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, tuple) else (value,)
    return all(isinstance(side, int) and not isinstance(side, bool) for side in sides)


def check_overrides(argv: list[str]) -> None:
    """Raise a ``ValueError`` for the first ``--config.FIELD`` of a command line that does not exist."""
    arguments = dict(re.findall(r"^--?(config[\w.]*)=?(.*)$", "\n".join(argv), re.MULTILINE))
    position = [i for i, argument in enumerate(argv) if argument in ("--config", "-config")]
    path = arguments.pop("config", "") or (argv[position[-1] + 1] if position and position[-1] + 1 < len(argv) else "")
    known = fields(load_config(path))
    for name in arguments:
        check_choice("config field", name.removeprefix("config."), known)


def from_dict(values: dict[str, Any]) -> Any:
    """Return the default configuration with the values of one that was stored as JSON.

    Raises:
      ValueError: for a field that does not exist (with the nearest that does), or a value of the wrong type.
    """
    flat = checkpoint.flatten(values, separator=".")
    flat = {name: tuple(value) if isinstance(value, list) else value for name, value in flat.items()}
    return override(load_config("default"), flat)
