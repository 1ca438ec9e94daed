"""Checkpoints of CLD-SGM (Dockhorn et al., 2022): ``{model, ema, optimizer, step}``, without a configuration."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from psld_jax.checkpoints.persistent import is_persistent
from psld_jax.checkpoints.reader import Checkpoint, is_checkpoint, read_checkpoint
from psld_jax.models import source_parameters
from psld_jax.sde import named

from . import configs, mapping, naming, ncsnpp
from .origins import Asked, Converted
from .structure import Structure, infer

NAME = "cld-sgm"
ACCEPTS = "checkpoint_*.pth of nv-tlabs/CLD-SGM"


def recognises(path: Path) -> bool:
    """Tell whether it is a file of ``torch.save`` with averages in a list and a model without a table of noise levels.

    Raises:
      ValueError: for a file of that kind that cannot be read.
    """
    if not is_checkpoint(path) or is_persistent(path):
        return False
    with read_checkpoint(path) as source:
        return source.layout == "score_sde" and not any(name.endswith("sigmas") for name in source.left_out)


def read(path: Path, asked: Asked) -> Converted:
    """Read the network of the file as NCSN++ with the diffusion ``cld``, or ``vpsde`` if it takes no velocity.

    The configuration is not in the file: it is that of ``asked``, such as ``cld_cifar10``, and must fit the file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: with the file's name, for a file that is damaged or does not fit; listing what is missing, if no
        configuration is given.
    """
    with read_checkpoint(path) as checkpoint:
        try:
            return _convert(checkpoint, asked)
        except ValueError as error:
            message = str(error)
            raise ValueError(message if str(path) in message else f"{path}: {message}") from None


def _convert(source: Checkpoint, asked: Asked) -> Converted:
    found = _split(source)
    chosen = ncsnpp.choose(asked.weights, list(found), False)
    structure = _structure(found)
    auto = asked.config in ("", "auto")
    # Without a velocity it adds nothing to variances; the default is that of phase space.
    own = ("sde.jitter=0.0",) if auto and structure.sde == "vpsde" else ()
    try:
        config = configs.resolve("auto" if auto else asked.config, (*own, *asked.overrides), structure)
    except ValueError as error:
        raise ValueError(f"{error} (a configuration of CLD-SGM: --config cld_cifar10)") from None
    options, _ = configs.network(config)
    parameters = source_parameters(options)
    pairs = {name: mapping.match(found[name], parameters) for name in chosen}
    velocity = structure.sde == "cld"
    (h, w), channels = options.shape, options.in_ch // (2 if velocity else 1)
    size = sum(math.prod(parameter.shape) for parameter in parameters)
    notes = (
        f"network: NCSN++ of CLD-SGM, {size:,} parameters, {options.embedding_type} embedding",
        f"diffusion: {config.sde.name}, "
        + ("with a velocity, whose score the network predicts" if velocity else "without a velocity"),
        f"images: {h} x {w} x {channels}",
        f"weights: {' and '.join(found)}, of which {' and '.join(chosen)} taken",
        "labels: none",
        "not in the file, so as configured: the diffusion's rates and mass, mixed score, objective, activations",
    )
    return Converted(
        NAME,
        {"name": config.model.name, "config": dataclasses.asdict(options)},
        {name: mapping.fill(asked.tracked(network, f"{name} weights")) for name, network in pairs.items()},
        {name: config.sde[name] for name in ("name", *named.parameters(config.sde.name))},
        (h, w, channels),
        notes=notes,
        fields={"train.objective": config.sde.objective} if velocity else {},  # so that training goes on as it was
        config=config,
        sources={name: mapping.described(network) for name, network in pairs.items()},
        metadata=source.metadata,
        format=source.format,
    )


def _split(source: Checkpoint) -> dict[str, dict[str, mapping.Tensor]]:
    """Return the tensors of the two networks by name. Averages lack the frequencies, which never change."""
    found: dict[str, dict[str, mapping.Tensor]] = {"online": {}, "ema": {}}
    for name, tensor in source.items():
        prefix, rest = naming.split(name)
        found["ema" if naming.is_average(prefix) else "online"][rest] = tensor
    return {"ema": found["online"] | found["ema"], "online": found["online"]}


def _structure(found: dict[str, dict[str, mapping.Tensor]]) -> Structure:
    """Infer the structure from the shapes. The network is given the time itself."""
    structure = infer({name: tensor.shape for name, tensor in found["online"].items()})
    if structure.n_classes is not None:
        raise ValueError("its network is a classifier, which CLD-SGM has none of")
    fields: dict[str, Any] = structure.fields | {"time_scale": 1.0}
    velocity = 2 * fields.get("out_ch", fields["in_ch"]) == fields["in_ch"]
    fixed = ("decomposition",) if velocity else ("jitter",)
    return dataclasses.replace(structure, fields=fields, sde="cld" if velocity else "vpsde", fixed=fixed)
