"""The conversion from file to directory."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from psld_jax.checkpoints import directory as saved
from psld_jax.checkpoints.reader import Checkpoint, read_checkpoint
from psld_jax.models import source_parameters

from . import configs, mapping
from .structure import infer

WEIGHTS = ("ema", "online", "both")


def convert(
    checkpoint: str | os.PathLike[str],
    config: str,
    output: str | os.PathLike[str],
    *,
    weights: str | None = None,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    progress: Callable[[Iterable[Any], str], Iterable[Any]] = lambda items, _: items,
) -> dict[str, Any]:
    """Convert a PyTorch checkpoint of NCSN++ or its classifier; :func:`read_converted` and ``psld_jax.load`` open it.

    Args:
      checkpoint: the file, see :func:`read_checkpoint`; its layout is recognised.
      config: name or path of a configuration, or ``auto``: what the file tells, and the rest from ``overrides``.
      output: a directory that does not exist or is empty.
      weights: ``ema``, ``online`` or ``both``. ``None`` is ``ema`` for a score network, and ``online`` for a
        classifier, which has no EMA.
      overwrite: replace an earlier conversion in ``output``.
      overrides: such as ``model.image_size=32``.
      progress: wraps the parameters of each network, for a progress bar.

    Returns:
      The index: source and its SHA-256, and where each parameter came from.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: whatever else is wrong; the output is then as it was.
    """
    saved.check_output(output, overwrite)
    with read_checkpoint(checkpoint) as source:
        try:
            return _convert(source, config, Path(output), weights, overwrite, overrides, progress)
        except ValueError as error:
            message = str(error)
            raise ValueError(message if str(source.path) in message else f"{source.path}: {message}") from None


def _convert(
    source: Checkpoint,
    config_name: str,
    output: Path,
    weights: str | None,
    overwrite: bool,
    overrides: Sequence[str],
    progress: Callable[[Iterable[Any], str], Iterable[Any]],
) -> dict[str, Any]:
    found = mapping.networks(source)
    some = found.get("online") or found["ema"]
    structure = infer({name: tensor.shape for name, tensor in some.items()})
    if source.layout == "score_sde":  # all of its VP networks are given 999 t
        structure = dataclasses.replace(structure, sde="vpsde", fields=structure.fields | {"time_scale": 999.0})
    chosen = _choose(weights, list(found), structure.n_classes is not None)
    config = configs.resolve(config_name, overrides, structure)
    parameters = source_parameters(*configs.network(config))
    pairs = {name: mapping.match(found[name], parameters) for name in chosen}  # all checks before the first byte
    index: dict[str, Any] = {
        "source": {
            "file": source.path.name,
            "sha256": source.sha256(),
            "format": source.format,
            "metadata": source.metadata,
        },
        "parameters": {
            name: {
                "/".join(parameter.path): {
                    "source": tensor.name,
                    "source_shape": list(tensor.shape),
                    "source_dtype": str(tensor.dtype),
                    "shape": list(parameter.shape),
                }
                for tensor, parameter in network
            }
            for name, network in pairs.items()
        },
    }
    with saved.new_directory(output, overwrite) as directory:
        for name, network in pairs.items():
            saved.write_parameters(directory, name, mapping.fill(progress(network, f"{name} weights")))
        saved.write_description(directory, json.loads(config.to_json()), index)
    return index


def _choose(weights: str | None, found: list[str], classifier: bool) -> list[str]:
    """The networks to convert, the EMA first."""
    if weights is None:
        weights = "online" if classifier else "ema"
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r} is unknown; {', '.join(WEIGHTS)} are accepted")
    chosen = ["ema", "online"] if weights == "both" else [weights]
    missing = [name for name in chosen if name not in found]
    if missing:
        raise ValueError(f"the file has no {' and no '.join(missing)} weights: use --weights {found[0]}")
    return chosen
