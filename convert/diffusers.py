"""Reading directories of diffusers with a ``UNet2DModel``: alone, beside its scheduler, or in a pipeline."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psld_jax.checkpoints.pickle_names import clip
from psld_jax.checkpoints.reader import read_checkpoint
from psld_jax.checkpoints.safetensors import SafeTensors
from psld_jax.models.unet2d_source import source_parameters
from psld_jax.models.unet2d_structure import UNet2DConfig

from . import mapping, naming, schedules
from .configs import option
from .origins import Asked, Converted

NAME = "diffusers"
ACCEPTS = "a directory of diffusers with a UNet2DModel: config.json and weights, or unet/ and scheduler/"

_WEIGHTS = "diffusion_pytorch_model"
_ENDS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
_SUPPORTED = (
    "UNet2DModel (unconditional, or told a class) is supported; text-to-image U-Nets, transformers and VAEs are not"
)
#: The folder that diffusers' trainers write the averages into, beside ``unet``.
_AVERAGES = "unet_ema"
#: What they say of the averaging, among the options of the network.
_AVERAGING = ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")
_MAX_JSON = 16 * 2**20
_MAX_LAYERS, _MAX_LEVELS, _MAX_NUMBER = 100, 12, 2**24
#: Attention before diffusers 0.12, and now.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(.*\battentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")


def recognises(path: Path) -> bool:
    """Tell whether it is such a directory, or a file of weights with its ``config.json`` beside it.

    Raises:
      ValueError: for a ``config.json`` that cannot be read.
    """
    directory = path if path.is_dir() else path.parent
    if path.is_file() and not path.name.startswith(_WEIGHTS):
        return False
    for place in ("config.json", "model_index.json", "unet/config.json", f"{_AVERAGES}/config.json"):
        if (directory / place).is_file() and "_class_name" in _json(directory / place):
            return True
    return False


def read(path: Path, asked: Asked) -> Converted:
    """Read the network, and the diffusion of its scheduler.

    Raises:
      ValueError: for a model or a scheduler that is not supported, by name; for weights that are damaged, not finite,
        or do not fit the configuration; if there is no scheduler, and none was asked for.
    """
    root = path if path.is_dir() else path.parent
    unet, found = _unet(root, asked.weights)
    stored = _json(unet / "config.json")
    options, unknown = _options(stored)
    scheduler_file = next((place for place in _scheduler_places(root, unet) if place.is_file()), None)
    given = option(asked.overrides, "sde.name")
    if scheduler_file is not None:
        scheduler = _json(scheduler_file)
        sde, predicts, clock = schedules.diffusion(scheduler)
    elif given:
        scheduler, sde = {}, {"name": given}
        predicts, clock = ("score", "sigma") if given == "vesde" else ("eps", "index")
    else:
        raise ValueError(
            f"{root} has no scheduler_config.json, so its diffusion cannot be known. Add --set sde.name=discrete (with "
            "sde.schedule, sde.beta_start, ... if it is not DDPM's) or --set sde.name=vesde, and --set "
            "model.unet2d.predicts=eps, velocity, data or score"
        )
    predicts = option(asked.overrides, "model.unet2d.predicts") or predicts
    clock = option(asked.overrides, "model.unet2d.clock") or clock
    config = UNet2DConfig(**options, predicts=predicts, clock=clock)
    parameters = source_parameters(config)
    with contextlib.ExitStack() as stack:
        files, tensors, weights = _open(unet, path, stack, asked.weights)
        weights = "ema" if unet.name == _AVERAGES or {"decay", "optimization_step"} <= stored.keys() else weights
        asked.only(weights)
        renamed, left_out = _names(tensors, {parameter.source for parameter in parameters})
        pairs = mapping.match(renamed, parameters)
        tree = mapping.fill(asked.tracked(pairs, f"{weights} weights"))
        sources = mapping.described(pairs)
    size = sum(math.prod(parameter.shape) for parameter in parameters)
    height, width, channels = config.image_shape
    learned = f", of which the first {channels} are the image's" if config.out_channels > channels else ""
    labels = {"index": f"{config.n_classes} classes", "timestep": "numbers", "identity": "vectors", "": "none"}
    said = "the average (EMA)" if weights == "ema" else "whether they are an average (EMA), the file does not say"
    notes = [
        f"network: {found}, {size:,} parameters, {config.time_embedding_type} embedding of the time, "
        f"{config.out_channels} channels returned{learned}",
        f"diffusion: {_told(sde)} of {scheduler.get('_class_name', 'nobody: as asked for')}",
        f"the network predicts {predicts} and is told {'the number of the level' if clock == 'index' else 'sigma'}",
        f"images: {height} x {width} x {channels}",
        f"labels: {labels[config.labels]}",
        f"weights: {', '.join(file.relative_to(root).as_posix() for file in files)}; {said}",
        *_decoders(root),
        *([f"left out, no part of the network: {', '.join(left_out)}"] if left_out else []),
        *([f"options that UNet2DModel does not have, left out: {', '.join(unknown)}"] if unknown else []),
        *_scheduler_notes(scheduler),
    ]
    beside = [unet / "config.json", *([scheduler_file] if scheduler_file else [])]
    return Converted(
        NAME,
        {"name": "unet2d", "config": dataclasses.asdict(config)},
        {weights: tree},
        sde,
        config.image_shape,
        config.n_classes,
        tuple(notes),
        config=asked.base,
        sources={weights: sources},
        format="safetensors" if files[-1].suffix == ".safetensors" else "torch",
        files=(*files, *beside),
    )


def _told(sde: Mapping[str, Any]) -> str:
    levels = sde.get("alphas_cumprod", ())
    if levels:
        return f"{len(levels)} levels, alphas_cumprod {levels[0]:.6g} to {levels[-1]:.3g},"
    return ", ".join(str(value) if key == "name" else f"{key}={value}" for key, value in sde.items())


def _unet(root: Path, wanted: str | None) -> tuple[Path, str]:
    """Return the folder of the network, and the name of its class: of its averages, unless ``online`` is wanted."""
    index = root / "model_index.json"
    folders = ("", "unet", _AVERAGES) if wanted == "online" else ("", _AVERAGES, "unet")
    unet = next((root / name for name in folders if (root / name / "config.json").is_file()), root / "unet")
    if (unet / "config.json").is_file():
        name = _json(unet / "config.json").get("_class_name")
        if name == "UNet2DModel":
            return unet, name
        raise ValueError(f"{unet / 'config.json'} is of {clip(str(name))}. {_SUPPORTED}")
    parts = _json(index) if index.is_file() else {}
    classes = [str(value[1]) for value in parts.values() if type(value) is list and len(value) == 2]
    raise ValueError(f"{root} holds {', '.join(classes) or 'no model'}, and no folder unet with it. {_SUPPORTED}")


def _decoders(root: Path) -> list[str]:
    """Say that what the network draws are no images yet, if the pipeline has a decoder."""
    index = root / "model_index.json"
    parts = _json(index) if index.is_file() else {}
    classes = {key: value[1] for key, value in parts.items() if type(value) is list and len(value) == 2}
    found = [f"{key} ({name})" for key, name in classes.items() if str(name).startswith(("Autoencoder", "VQModel"))]
    return [f"left out, without which samples are latents and no images: {', '.join(found)}"] if found else []


def _scheduler_places(root: Path, unet: Path) -> list[Path]:
    name = "scheduler_config.json"
    # Of "." too; links lead to other neighbours. A trainer leaves RUN/checkpoint-500/unet beside RUN/scheduler.
    around = [Path(os.path.abspath(place)).parent for place in (unet, root)]
    return [unet / name, root / name, *(place / "scheduler" / name for place in (root, *around))]


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_JSON:
        raise ValueError(f"{path} has more than {_MAX_JSON} bytes, too many for a configuration")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {clip(str(error), 200)}") from None
    if type(content) is not dict:
        raise ValueError(f"{path} holds no table of options")
    return content


#: Types of the options by name; a tuple of names or whole numbers where they are lists.
_FIELDS = {field.name: field for field in dataclasses.fields(UNet2DConfig)}
#: What stands for ``null``.
_EMPTY: dict[type, Any] = {int: 0, float: 0.0, str: "", bool: False, tuple: ()}
#: The original takes its default for these where it says ``null``.
_NULL_IS_DEFAULT = ("downsample_type", "upsample_type")
_OWN = ("predicts", "clock", "dtype", "mid_block")


def _options(stored: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Read the options of a ``config.json``, and the names of those that ``UNet2DModel`` does not have."""
    options: dict[str, Any] = {}
    unknown = []
    layers = stored.get("layers_per_block")
    if isinstance(layers, (int, float)) and layers > _MAX_LAYERS:
        raise ValueError(f"layers_per_block={layers} in its config.json must be at most {_MAX_LAYERS}")
    for key, value in stored.items():
        if key.startswith("_") or key in _AVERAGING:
            continue
        if key == "mid_block_type":
            options["mid_block"] = value is not None
            continue
        if key not in _FIELDS or key in _OWN:
            unknown.append(key)
            continue
        default = _FIELDS[key].default
        if key == "sample_size" and type(value) is int:
            value = [value, value]
        if value is None:
            options[key] = default if key in _NULL_IS_DEFAULT else _EMPTY[type(default)]
            continue
        if key in ("down_block_types", "up_block_types") and type(value) is list:
            value = [str(name).removeprefix("UNetRes") for name in value]
        options[key] = _value(key, value, default)
    if not options.get("sample_size"):
        raise ValueError(
            "its sample_size is null, so the size of the images cannot be known: write it into config.json"
        )
    return options, unknown


def _value(key: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple):
        kind = type(default[0])
        few = type(value) is list and len(value) <= _MAX_LEVELS and all(type(part) is kind for part in value)
        if few and (kind is str or all(abs(part) <= _MAX_NUMBER for part in value)):
            return tuple(value)
    elif isinstance(default, float):
        if type(value) in (int, float) and abs(value) < math.inf:
            return float(value)
    elif isinstance(default, int) and not isinstance(default, bool) and type(value) is float and value.is_integer():
        return _value(key, int(value), default)
    elif type(value) is type(default) and not (type(value) is int and abs(value) > _MAX_NUMBER):
        return value
    raise ValueError(f"{key}={clip(str(value))} in its config.json must be of the kind of {default!r}")


def _open(
    unet: Path, path: Path, stack: contextlib.ExitStack, wanted: str | None
) -> tuple[list[Path], dict[str, mapping.Tensor], str]:
    """Open files of weights: their tensors by name, and whether they are averages (``online`` or ``ema``)."""
    file = path if path.is_file() else _choose(unet)
    weights = "online"
    if file.suffix != ".json":
        tensors, average = _tensors(file, stack, wanted)
        return [file], tensors, "ema" if average else weights
    shards = _json(file).get("weight_map")
    if type(shards) is not dict or not shards or not all(type(shard) is str for shard in shards.values()):
        raise ValueError(f"{file} has no weight_map, a table of the files that hold the tensors")
    names = sorted(set(shards.values()))
    outside = [name for name in names if Path(name).name != name or not (unet / name).is_file()]
    if outside:
        raise ValueError(f"{file} names {clip(outside[0])}, which is no file beside it")
    merged: dict[str, mapping.Tensor] = {}
    for name in names:
        for key, tensor in _tensors(unet / name, stack)[0].items():
            if shards.get(key) != name or key in merged:
                raise ValueError(f"{clip(key)} is in {name}, and {file.name} does not say so")
            merged[key] = tensor
    if missing := sorted(set(shards) - set(merged)):
        raise ValueError(f"{clip(missing[0])} is not in the file that {file.name} names for it")
    return [file, *(unet / name for name in names)], merged, weights


def _choose(unet: Path) -> Path:
    """Choose the file of weights in a folder: the plain one before a variant, ``.safetensors`` before ``.bin``."""
    for end in _ENDS:
        if (plain := unet / f"{_WEIGHTS}{end}").is_file():
            return plain
    for end in _ENDS:
        variants = [file for file in unet.glob(f"{_WEIGHTS}.*") if f"{_WEIGHTS}{end}" in _without_variant(file.name)]
        variants = [file for file in variants if not re.search(r"-\d{5}-of-\d{5}", file.name)]
        if len(variants) > 1:
            listed = ", ".join(sorted(file.name for file in variants))
            raise ValueError(f"{unet} has several variants of its weights, {listed}: give one of these files")
        if variants:
            return variants[0]
    raise ValueError(f"{unet} holds no weights: {_WEIGHTS}.safetensors or .bin, or an index of several files")


def _without_variant(name: str) -> list[str]:
    """Return what a name may be without the variant, whose place in the name of an index has changed over time."""
    parts = name.split(".")
    return [".".join(parts[:i] + parts[i + 1 :]) for i in range(1, len(parts) - 1)]


def _tensors(
    file: Path, stack: contextlib.ExitStack, wanted: str | None = None
) -> tuple[dict[str, mapping.Tensor], bool]:
    """Return the tensors by name without a wrapper's prefix, and whether they are averages.

    Where there are both, the averages are taken, unless ``online`` weights are wanted. Counters and measures keep their
    whole names.
    """
    source = stack.enter_context(SafeTensors(file) if file.suffix == ".safetensors" else read_checkpoint(file))
    found: dict[bool, dict[str, mapping.Tensor]] = {}
    beside: dict[str, mapping.Tensor] = {}
    for name, tensor in source.items():
        prefix, rest = naming.split(name)
        if naming.is_buffer(name):
            beside[name] = tensor
        else:
            found.setdefault(naming.is_average(prefix), {})[rest] = tensor
    average = True in found and not (wanted == "online" and False in found)
    return {**found.get(average, {}), **beside}, average


def _names(tensors: Mapping[str, mapping.Tensor], known: set[str]) -> tuple[dict[str, mapping.Tensor], list[str]]:
    """Return the tensors by today's names, and the names of counters and measures, which are left out."""
    renamed: dict[str, mapping.Tensor] = {}
    left_out = []
    for name, tensor in tensors.items():
        old = _OLD_NAME.fullmatch(name)
        new = f"{old[1]}.{_OLD[old[2]]}.{old[3]}" if old else name
        if new not in known and naming.is_buffer(new):
            left_out.append(name)
        elif new in renamed:
            raise ValueError(f"it has {clip(name)} twice, by an old name and by today's")
        else:
            renamed[new] = tensor
    return renamed, sorted(left_out)


def _scheduler_notes(scheduler: dict[str, Any]) -> list[str]:
    """Say how to clip as the scheduler does, and what it is told in vain."""
    name, notes = str(scheduler.get("_class_name")), []
    if schedules.leaves_snr(scheduler):
        notes.append(f"rescale_betas_zero_snr has no effect, since {name} does not know it")
    wanted = ""
    if scheduler.get("thresholding"):
        ratio = schedules.number(scheduler, "dynamic_thresholding_ratio", 0.995)
        above = schedules.number(scheduler, "sample_max_value", 1.0) > 1
        wanted = "config.steer.clip=1" + f" and config.steer.clip_percentile={100 * ratio:g}" * above
    elif scheduler.get("clip_sample", name.startswith(("DDPM", "DDIM", "RePaint"))):
        limit = schedules.number(scheduler, "clip_sample_range", 1.0) if scheduler.get("clip_sample_range") else 1.0
        wanted = f"config.steer.clip={limit:g}"
    if wanted:
        what = "thresholding" if scheduler.get("thresholding") else "clip_sample"
        wanted += " and config.steer.clip_noise=old" * name.startswith(("DDIM", "RePaint"))
        notes.append(f"the scheduler clips x_0 ({what}); samplers here do so with {wanted}")
    return notes
