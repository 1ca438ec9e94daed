"""Writing weights of this package for other libraries, with the names that those read, and reading them back."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from psld_jax import build
from psld_jax._runtime.errors import check_choice
from psld_jax._runtime.journal import check_directory
from psld_jax.checkpoints import directory as saved
from psld_jax.checkpoints.safetensors import SafeTensors
from psld_jax.models import edm, families, source_parameters, unet2d_source
from psld_jax.models.unet2d_structure import UNet2DConfig
from psld_jax.sde import VESDE, Discrete

from . import configs, mapping, ncsnpp, schedules
from .origins import Asked, Converted

NAME = "psld_jax"
ACCEPTS = "a .safetensors that python -m convert --to wrote"

#: What each kind of names can be written for: ``config.model.name``.
KINDS = {"diffusers": ("unet2d",), "edm-state-dict": ("edm",), "torch": ("ncsnpp", "ncsnpp_clf", "unet2d", "edm")}
_CONFIG, _WEIGHTS = "psld_jax", "psld_jax.weights"
_FILE, _JSON = "diffusion_pytorch_model.safetensors", ("config.json", "scheduler_config.json")
#: Of files that are not written; a name with another ending, as ddpm-v1.0 has, is that of a directory.
_ENDINGS = (".bin", ".ckpt", ".pkl", ".pt", ".pth")


def write(
    checkpoint: str | os.PathLike[str],
    to: str,
    output: str | os.PathLike[str],
    *,
    weights: str | None = None,
    overwrite: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Write the weights of a saved network to a ``.safetensors`` file that another library reads.

    Args:
      checkpoint: what ``psld_jax.load`` opens: a directory, or the work directory of a training run.
      to: ``diffusers``, ``edm-state-dict``, or ``torch``: the names in the state dict of the original's network.
      output: a file ``.safetensors``; for ``diffusers`` also a directory to make, with both ``config.json``.
      weights: ``ema`` or ``online``; ``None``: the EMA if it is there.
      overwrite: replace a file that exists.

    Returns:
      The shapes of the tensors that were written, by name.

    Raises:
      ValueError: for a network that the other library does not have, or an output that exists or has another ending.
    """
    check_choice("--to", to, KINDS)
    file = Path(output)
    whole = to == "diffusers" and file.suffix not in (".safetensors", *_ENDINGS)
    if not whole and file.suffix != ".safetensors":
        more = ", or a directory" if to == "diffusers" else ""
        raise ValueError(f"output {file} must be a file that ends in .safetensors{more}")
    check_directory(file.parent, "the directory of the output")
    if file.exists() and not overwrite:
        raise ValueError(f"{file} exists already; choose another output, or --overwrite")
    others = {place.name for place in file.iterdir()} - {*_JSON, _FILE} if whole and file.is_dir() else set()
    if others or (whole and file.is_file()):
        raise ValueError(f"{file} holds something else than what --to diffusers writes: it is not overwritten")
    config, params = build.open_network(str(checkpoint), weights or "")
    name = config.model.name
    if name not in families.available() and config.model.num_labels:
        raise ValueError(f"{checkpoint} takes {config.model.num_labels} labels, which NCSN++ of the original does not")
    if name not in KINDS[to]:
        possible = ", ".join(kind for kind, names in KINDS.items() if name in names)
        raise ValueError(f"{checkpoint} is a network {name!r}, which cannot be written as {to}; --to {possible} can")
    tensors = named(config, params)
    told = build.override(config, {"model.checkpoint": "", "model.weights": "", "data.path": ""})  # of this machine
    metadata = {"format": "pt", _CONFIG: told.to_json(), _WEIGHTS: weights or _first(Path(checkpoint))}
    if whole:
        file.mkdir(parents=True, exist_ok=True)
        for place, content in diffusers_files(config).items():
            _replace(file / place, lambda path, content=content: path.write_text(json.dumps(content, indent=2) + "\n"))
        file = file / _FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    _replace(file, lambda path: save_file(tensors, path, metadata))
    return {key: value.shape for key, value in tensors.items()}


def _first(place: Path) -> str:
    """Return the weights that are taken by default."""
    latest = saved.latest_training(place)
    if latest is not None:
        return saved.choose_weights(latest)
    return next(iter(saved.read_index(place)["parameters"])) if (place / "index.json").is_file() else "ema"


def named(config: Any, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays of a network, ``[...]`` each, by the original's names and layouts, float32, with buffers."""
    flat = {
        tuple(path.split("/")): np.asarray(array, np.float32) for path, array in saved.flatten(dict(params)).items()
    }
    tensors = {parameter.source: parameter.invert(flat[parameter.path]) for parameter in _parameters(config)}
    if config.model.name == "edm":
        tensors |= dict(edm.filters(build.network_options(config)))
    return {key: np.ascontiguousarray(value, np.float32) for key, value in tensors.items()}


def _parameters(config: Any) -> Any:
    """Return the parameters with ``source``, ``source_shape``, ``path``, ``convert`` and ``invert``."""
    options = build.network_options(config)
    if config.model.name == "unet2d":
        return unet2d_source.source_parameters(options)
    if config.model.name == "edm":
        return edm.source_arrays(options)
    return source_parameters(*configs.network(config))


def _replace(file: Path, fill: Any) -> None:
    """Let ``fill(path)`` write a temporary file, which then takes the place of ``file``."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        new = Path(folder) / file.name
        fill(new)
        os.replace(new, file)


def diffusers_files(config: Any) -> dict[str, dict[str, Any]]:
    """Return what stands beside weights in a directory of diffusers: options of the network and its scheduler.

    Raises:
      ValueError: for a diffusion that diffusers has no scheduler for.
    """
    options: UNet2DConfig = build.network_options(config)
    own = ("mid_block", "predicts", "clock", "dtype")
    network = {key: value for key, value in dataclasses.asdict(options).items() if key not in own}
    empty = ("time_embedding_dim", "attention_head_dim", "norm_num_groups", "attn_norm_num_groups", "class_embed_type")
    for key in (*empty, "num_class_embeds", "num_train_timesteps"):
        network[key] = network[key] or None
    height, width = options.sample_size
    network["sample_size"] = height if height == width else [height, width]
    network["mid_block_type"] = "UNetMidBlock2D" if options.mid_block else None
    sde = build.build_sde(config)
    scheduler: dict[str, Any]
    if isinstance(sde, VESDE):
        scheduler = {"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": 2000}
        scheduler |= {"sigma_min": sde.sigma_min, "sigma_max": sde.sigma_max}
    elif isinstance(sde, Discrete) and options.predicts in schedules.PREDICTIONS.values():
        prediction = next(key for key, value in schedules.PREDICTIONS.items() if value == options.predicts)
        levels = np.asarray(sde.alpha(sde.time_of(np.arange(sde.num_steps)))) ** 2
        betas = 1 - levels / np.concatenate([[1.0], levels[:-1]])
        scheduler = {"_class_name": "DDPMScheduler", "num_train_timesteps": sde.num_steps, "clip_sample": False}
        scheduler |= {"trained_betas": [float(beta) for beta in betas], "prediction_type": prediction}
    else:
        raise ValueError(
            f"diffusers has no scheduler for {sde!r} and a network that predicts {options.predicts!r}: write the "
            "weights alone, to a file .safetensors"
        )
    return dict(zip(_JSON, ({"_class_name": "UNet2DModel", **network}, scheduler), strict=True))


def recognises(path: Path) -> bool:
    """Tell whether it is a file that :func:`write` wrote.

    Raises:
      ValueError: for a damaged ``.safetensors``.
    """
    if not path.is_file() or path.suffix != ".safetensors":
        return False
    with SafeTensors(path) as source:
        return _CONFIG in source.metadata


def read(path: Path, asked: Asked) -> Converted:
    """Read the network of such a file, with its whole configuration.

    Raises:
      ValueError: for a file that is damaged, or does not fit the configuration in it.
    """
    with SafeTensors(path) as source:
        try:
            config = build.from_dict(json.loads(source.metadata[_CONFIG]))
        except (ValueError, RecursionError, AttributeError, TypeError) as error:
            raise ValueError(f"the configuration in its metadata is none of this version: {error}") from None
        weights = source.metadata.get(_WEIGHTS, "online")
        if weights not in ncsnpp.WEIGHTS[:2]:
            raise ValueError(f"its weights are said to be {weights!r}; ema and online are accepted")
        asked.only(weights)
        if asked.base != "default":
            raise ValueError(f"it has a whole configuration: leave out --config {asked.config}")
        check_choice("config.model.name", config.model.name, KINDS["torch"])
        parameters = _parameters(config)
        known = {parameter.source for parameter in parameters}
        buffers = dict(edm.filters(build.network_options(config))) if config.model.name == "edm" else {}
        tensors = {name: tensor for name, tensor in source.items() if name in known or name not in buffers}
        pairs = mapping.match(tensors, parameters)
        tree, sources = mapping.fill(asked.tracked(pairs, f"{weights} weights")), mapping.described(pairs)
    name = config.model.name
    section = config.model[name] if name in ("unet2d", "edm") else config.model
    sde = build.build_sde(config)
    options = build.network_options(config)
    shape = options.image_shape if name in ("unet2d", "edm") else (*options.shape, options.in_ch // sde.num_blocks)
    classes = options.n_classes if name in ("unet2d", "edm") else 0
    notes = (f"network: {name}", f"diffusion: {config.sde.name}", f"weights: {weights}", "written by psld_jax itself")
    return Converted(
        NAME,
        {"name": name, "config": dict(section)},
        {weights: tree},
        dict(config.sde),
        shape,
        classes,
        notes,
        config=config,
        sources={weights: sources},
        format="safetensors",
    )
