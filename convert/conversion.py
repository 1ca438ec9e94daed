"""The conversion from file to directory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psld_jax import build
from psld_jax._runtime.errors import check_kind
from psld_jax.checkpoints import directory as saved
from psld_jax.models import families
from psld_jax.models.structure import image_size
from psld_jax.scores.family import check_clock
from psld_jax.sde import OneBlock

from .configs import apply_overrides, option, set_fields
from .origins import Asked, Converted, recognise


def convert(
    checkpoint: str | os.PathLike[str],
    config: str = "",
    output: str | os.PathLike[str] = "",
    *,
    origin: str = "",
    weights: str | None = None,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
) -> dict[str, Any]:
    """Convert a checkpoint of any known origin; :func:`read_converted` and ``psld_jax.load`` open the result.

    Args:
      checkpoint: the file or directory; what it is, it tells itself (``psld_jax.convert.origins.origins``).
      config: name or path of a configuration, for what the file does not tell; empty or ``auto``: none.
      output: a directory that does not exist or is empty.
      origin: where the file is from, if it could be from several.
      weights: ``ema``, ``online`` or ``both``; ``None`` is what the origin recommends: the EMA, where there is one.
      overwrite: replace an earlier conversion in ``output``.
      overrides: such as ``model.image_size=32``.
      progress: wraps the parameters of each network, for a progress bar.

    Returns:
      The index: source and its SHA-256, what was found, and where each parameter came from.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: whatever else is wrong; the output is then as it was.
    """
    for name, value in (("checkpoint", checkpoint), ("output", output)):
        check_kind(name, value, (str, os.PathLike), "text, or a path")
    if not output:
        raise ValueError("output is empty: name the directory to make")
    saved.check_output(output, overwrite)
    path = Path(checkpoint)
    asked = Asked(config, tuple(overrides), weights, progress)
    module = recognise(path, origin)
    try:
        converted = module.read(path, asked)
        return write(converted, path, output, overwrite=overwrite, overrides=overrides)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if str(path) in message else f"{path}: {message}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a directory, and origin={origin!r} reads {module.ACCEPTS}") from None


def write(
    converted: Converted,
    path: Path,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Write what was read from ``path``, with overrides of its configuration, to ``output``; returns the index.

    Raises:
      ValueError: if the output exists, or configuration and arrays do not belong together, or an override has no
        effect.
    """
    plain = configuration(converted)
    config = apply_overrides(plain, overrides)
    _check_overrides(plain, config, overrides)
    for name, tree in converted.weights.items():
        build.check_weights(config, tree, f"the {name} weights")
    index: dict[str, Any] = {
        "source": {
            "file": path.name,
            "sha256": digest(path, converted.files),
            "origin": converted.origin,
            "format": converted.format,
            "metadata": dict(converted.metadata),
        },
        "notes": list(converted.notes),
        "parameters": {
            name: {
                place: {**converted.sources.get(name, {}).get(place, {}), "shape": list(np.shape(array))}
                for place, array in saved.flatten(dict(tree)).items()
            }
            for name, tree in converted.weights.items()
        },
    }
    with saved.new_directory(output, overwrite) as directory:
        for name, tree in converted.weights.items():
            saved.write_parameters(directory, name, dict(tree))
        saved.write_description(directory, json.loads(config.to_json()), index)
    return index


#: Of a schedule that has a name. Levels that a file gives take its place.
_NAMED = ("schedule", "beta_start", "beta_end", "num_steps", "zero_terminal_snr")
#: Options of a network that do not belong to its weights, or that a file of diffusers leaves to its scheduler.
_OPEN = ("image_size", "sample_size", "label_dropout", "predicts", "clock")


def _check_overrides(plain: Any, config: Any, overrides: Sequence[str]) -> None:
    """Raise a ``ValueError`` for overrides that say nothing of this network, or ask for a path that it cannot go."""
    name, sde = config.model.name, config.sde
    if name not in families.available():
        return
    for field in build.fields(config):
        section, _, key = field.rpartition(".")
        if section == "model" and key not in (*families.SHARED, name) and config.model[key] != plain.model[key]:
            raise ValueError(f"--set {field} says nothing of a network {name!r}: its options are model.{name}.*")
        if section == f"model.{name}" and key not in _OPEN and config.model[name][key] != plain.model[name][key]:
            raise ValueError(
                f"--set {field}={config.model[name][key]} contradicts the file, whose network was made with "
                f"{plain.model[name][key]}"
            )
    levels = len(sde.alphas_cumprod) if sde.name == "discrete" else 0
    for key in _NAMED if levels else ():
        given = option(overrides, f"sde.{key}")
        if given is not None and (key, given) != ("num_steps", levels):
            raise ValueError(
                f"--set sde.{key} does not change the {levels} levels, which the file gives; --set "
                "'sde.alphas_cumprod=()' leaves those out"
            )
    path = build.build_sde(config)
    assert isinstance(path, OneBlock)  # as build_sde says
    check_clock(build.network_options(config).clock, path)


def configuration(converted: Converted) -> Any:
    """Return the complete configuration, locked, of what was read.

    Raises:
      ValueError: for a field that does not exist, or a value of the wrong type.
    """
    given = converted.config
    config = build.load_config(given or "default") if isinstance(given, str) else given
    name, options = converted.network["name"], dict(converted.network["config"])
    values: dict[str, Any] = {f"sde.{key}": value for key, value in converted.sde.items()}
    if name in families.available():
        shared = {key: options.pop(key) for key in families.SHARED if key in options}
        *size, channels = converted.image_shape
        values |= {f"model.{name}.{key}": value for key, value in options.items()}
        values |= {f"model.{key}": value for key, value in shared.items()}
        # The general fields too, which data and training go by.
        values |= {"model.image_size": image_size(size), "model.in_ch": channels, "model.out_ch": channels}
        values |= {"model.num_labels": converted.n_classes, "model.data_std": 0.0}
    else:
        values |= {f"model.{key}": value for key, value in options.items() if key not in families.available()}
    return set_fields(config, {"model.name": name, **values, **converted.fields})


def digest(path: Path, files: Sequence[Path] = ()) -> str:
    """Return the SHA-256 of a file; of several, that of their names and digests in order.

    Raises:
      OSError: if one cannot be read.
    """
    if not files and path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(f"{file.name}\n{digest(file)}\n".encode())
    return total.hexdigest()
