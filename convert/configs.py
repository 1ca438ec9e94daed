"""The configuration of a conversion. It is given, or built from the file and ``--set``, and checked with the file."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence
from typing import Any

from psld_jax import build
from psld_jax._runtime.errors import check_choice
from psld_jax.checkpoints.pickle_names import clip
from psld_jax.models import NCSNppConfig, families
from psld_jax.models.structure import image_size
from psld_jax.sde import named

from .structure import Structure

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(NCSNppConfig)}
_SECTIONS = tuple(f"model.{name}" for name in families.available())
_NAMES = {False: "ncsnpp", True: "ncsnpp_clf"}


def network(config: Any) -> tuple[NCSNppConfig, int | None]:
    """Return the network that ``config.model`` describes, and the number of classes if it is a classifier.

    Raises:
      ValueError: if ``config.model.name`` is neither ``ncsnpp`` nor ``ncsnpp_clf``, or for values out of range.
    """
    model = config.model
    check_choice("config.model.name", model.name, _NAMES.values())
    return build.network_options(config), model.n_classes if model.name == _NAMES[True] else None


def resolve(name: str, overrides: Sequence[str], structure: Structure) -> Any:
    """Return the configuration by name or path (or ``auto``) with overrides ``field=value``, checked with the file.

    Args:
      name: of a configuration; ``auto`` takes from the file what it tells.
      overrides: such as ``model.image_size=32``.
      structure: what the file implies.

    Raises:
      ValueError: for an unknown field or a value of the wrong type; with ``auto``, for what the file cannot tell,
        listed with the flags that give it; where the configuration and the file disagree, with both values.
    """
    values = dict(_parse(override) for override in overrides)
    config = build.load_config("default" if name == "auto" else name)
    if name == "auto":
        _update(config, "model", {"name": _NAMES[structure.n_classes is not None], **_DEFAULTS, **structure.fields})
        if structure.n_classes is not None:
            _update(config, "model", {"n_classes": structure.n_classes})
        if structure.sde:
            _update(config, "sde", {"name": structure.sde})
        _ask(structure, values)
    for field, value in values.items():
        section, _, key = field.partition(".")
        _update(config, section, {key: _cast(config, field, value)})
    if name == "auto" and "model.attn_resolutions" not in values:
        _update(config, "model", {"attn_resolutions": structure.attn_resolutions(config.model.image_size)})
    _compare(config, structure)
    return config


def option(overrides: Sequence[str], field: str) -> Any:
    """Return the value that the overrides ``field=value`` give a field, or ``None``.

    Raises:
      ValueError: for an override that is none.
    """
    return dict(_parse(override) for override in overrides).get(field)


def _parse(override: str) -> tuple[str, Any]:
    field, equals, text = override.partition("=")
    if not equals or not text:
        raise ValueError(f"--set {clip(override)}: FIELD=VALUE is expected, for example model.image_size=32")
    try:
        return field, ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return field, text


def _cast(config: Any, field: str, value: Any) -> Any:
    """Return the value in the type of the field."""
    section = field.rpartition(".")[0]
    section = section if section in _SECTIONS else ""  # options of a network that has a section are not all listed
    known = [name for name in build.fields(config) if name not in _SECTIONS and name.count(".") == 1]
    known = [name for name in build.fields(config) if name.startswith(f"{section}.")] if section else known
    check_choice("field", field, known)
    default = config
    for key in field.split("."):
        default = default[key]
    if field.endswith(".image_size") and isinstance(value, (tuple, list)):
        return image_size(value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, (tuple, list)) and isinstance(value, (tuple, list, int)):
        return (value,) if isinstance(value, int) else tuple(value)
    if type(value) is not type(default):
        raise ValueError(
            f"--set {field}={clip(str(value))}: a {type(default).__name__} is expected, for example {default!r}"
        )
    return value


def _update(config: Any, section: str, values: dict[str, Any]) -> None:
    with config.unlocked():
        for key, value in values.items():
            if key in config[section]:
                del config[section][key]  # or its type could not change, from list to tuple
            config[section][key] = value


def set_fields(config: Any, values: dict[str, Any]) -> Any:
    """Return a locked copy of a configuration with these values of fields, by dotted name. Lists become tuples.

    Raises:
      ValueError: for a field that does not exist, with the nearest that does.
    """
    config, known = config.copy_and_resolve_references(), build.fields(config)
    for field, value in values.items():
        check_choice("config field", field, known)
        *sections, key = field.split(".")
        section = config
        for name in sections:
            section = section[name]
        value = tuple(value) if isinstance(value, list) else value
        if isinstance(section[key], float) and type(value) is int:
            value = float(value)
        with config.unlocked():
            del section[key]  # or its type could not change, from list to tuple
            section[key] = value
    return config.lock()


def apply_overrides(config: Any, overrides: Sequence[str]) -> Any:
    """Return a locked copy of a configuration with the overrides ``field=value`` of the command line.

    Raises:
      ValueError: for an unknown field or a value of the wrong type.
    """
    values = dict(_parse(override) for override in overrides)
    return set_fields(config, {field: _cast(config, field, value) for field, value in values.items()})


def _ask(structure: Structure, values: dict[str, Any]) -> None:
    """Refuse to guess what the shapes do not tell."""
    needed = [f"model.{field}" for field in structure.open]
    if structure.n_classes is None:
        sde = values.get("sde.name", structure.sde)
        needed += [] if structure.sde else ["sde.name"]
        known = sde if sde in named.available() else "psld"
        needed += [f"sde.{field}" for field in named.parameters(known) if field not in structure.fixed]
    if values.get("model.fir") is False and "model.fir_kernel" in needed:
        needed.remove("model.fir_kernel")
    missing = [field for field in needed if field not in values]
    if missing:
        told = ", ".join(f"{field}={value}" for field, value in structure.fields.items())
        told += f", attention at levels {structure.attention} (0 is full resolution)"
        flags = " ".join(f"--set {field}=VALUE" for field in missing)
        raise ValueError(f"the file tells {told}; it cannot tell {', '.join(missing)}. Add: {flags}")


def _compare(config: Any, structure: Structure) -> None:
    """Raise if the configuration contradicts the file."""
    options, n_classes = network(config)
    kind = {"name": _NAMES[structure.n_classes is not None], "n_classes": structure.n_classes}
    implied: dict[str, Any] = kind | structure.fields
    given = {"name": config.model.name, "n_classes": n_classes}
    given |= {name: getattr(options, name) for name in structure.fields}
    if "image_size" in implied and options.area(0) == implied["image_size"] ** 2:
        implied["image_size"] = options.image_size  # the file tells how many pixels there are
    attention = structure.attn_resolutions(options.image_size)
    sizes = [options.size(level) for level in range(len(structure.fields["ch_mult"]))]
    if {size for size in sizes if size in options.attn_resolutions} != set(attention):
        given["attn_resolutions"], implied["attn_resolutions"] = options.attn_resolutions, attention
    differences = [
        f"model.{name} is {given[name]!r}, the file implies {implied[name]!r}"
        for name in implied
        if given[name] != implied[name]
    ]
    if structure.sde and config.sde.name != structure.sde:
        differences.append(f"sde.name is {config.sde.name!r}, the file implies {structure.sde!r}")
    if differences:
        raise ValueError("the configuration disagrees with the file: " + "; ".join(differences))
