"""Reading NCSN++ and its classifier from the state dicts of the authors' trainers, for several origins."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from psld_jax import build
from psld_jax.checkpoints.reader import Checkpoint
from psld_jax.models import source_parameters

from . import configs, mapping, naming
from .origins import Asked, Converted
from .structure import infer

WEIGHTS = ("ema", "online", "both")


def read(origin: str, source: Checkpoint, asked: Asked, **known: Any) -> Converted:
    """Read a state dict of NCSN++.

    Args:
      origin: its name.
      source: the open file.
      asked: the configuration, or what the file cannot tell.
      known: what the origin tells about the diffusion and the network: ``sde``, and fields of the network.

    Raises:
      ValueError: for a state dict that fits no NCSN++ or not the configuration; for weights that are not there; with
        what has to be given, where the file does not say enough.
    """
    found = mapping.networks(source)
    some = found.get("online") or found["ema"]
    structure = infer({name: tensor.shape for name, tensor in some.items()})
    sde = known.pop("sde", structure.sde)
    structure = dataclasses.replace(structure, sde=sde, fields=structure.fields | known)
    classifier = structure.n_classes is not None
    chosen = choose(asked.weights, list(found), classifier)
    config = configs.resolve(asked.config or "auto", asked.overrides, structure)
    options, n_classes = configs.network(config)
    parameters = source_parameters(options, n_classes)
    pairs = {name: mapping.match(found[name], parameters) for name in chosen}  # all checks before the first byte
    left_out = [*source.left_out, *(name for name in source if not naming.split(name)[1].startswith("all_modules."))]
    (h, w), channels = options.shape, options.in_ch // build.build_sde(config).num_blocks
    size = sum(math.prod(tensor.shape) for tensor in some.values())
    notes = [
        f"network: {'classifier' if classifier else 'NCSN++'}, {size:,} parameters, {options.embedding_type} embedding",
        f"diffusion: {config.sde.name}",
        f"images: {h} x {w} x {channels}",
        f"weights: {' and '.join(found)}, of which {' and '.join(chosen)} taken",
        f"labels: {n_classes} classes, told apart" if classifier else "labels: none",
    ]
    if left_out:
        notes.append(f"left out, no part of the network: {', '.join(left_out)}")
    return Converted(
        origin,
        {"name": config.model.name, "config": dict(config.model)},
        {name: mapping.fill(asked.tracked(network, f"{name} weights")) for name, network in pairs.items()},
        dict(config.sde),
        (h, w, channels),
        n_classes or 0,
        tuple(notes),
        config=config,
        sources={name: mapping.described(network) for name, network in pairs.items()},
        metadata=source.metadata,
        format=source.format,
    )


def choose(weights: str | None, found: list[str], classifier: bool) -> list[str]:
    """Return the sets of weights to convert, the EMA first.

    Raises:
      ValueError: for an unknown choice, or weights that the file does not have.
    """
    if weights is None:
        weights = "online" if classifier else "ema"
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r} is unknown; {', '.join(WEIGHTS)} are accepted")
    chosen = ["ema", "online"] if weights == "both" else [weights]
    missing = [name for name in chosen if name not in found]
    if missing:
        raise ValueError(f"the file has no {' and no '.join(missing)} weights: use --weights {found[0]}")
    return chosen
