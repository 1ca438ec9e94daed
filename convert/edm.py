"""Reading EDM's ``network-snapshot-*.pkl``, ``edm-*.pkl``, ``training-state-*.pt`` (Karras et al., 2022)."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from psld_jax.checkpoints.directory import flatten, unflatten
from psld_jax.checkpoints.persistent import PersistentPickle, Record, field, is_persistent, read_persistent, walk
from psld_jax.checkpoints.pickle_names import TensorRef, clip
from psld_jax.models.edm import SourceArray, filters, source_arrays
from psld_jax.models.edm_plan import EDMConfig, plan

from .origins import Asked, Converted

NAME = "edm"
ACCEPTS = "network-snapshot-*.pkl and training-state-*.pt of NVlabs/edm, and its released edm-*.pkl"
#: Where a file has its network: the average, or, in the state of a training run, the network in training.
_SETS = {"ema": "ema", "net": "online"}

_PRECONDITIONS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}
_ARCHITECTURES = {"SongUNet": "song", "DhariwalUNet": "dhariwal"}
#: The arguments of both networks in their order, by our names; the original's defaults of each.
_ARGUMENTS = {
    "img_resolution": "image_size",
    "in_channels": "channels",
    "out_channels": "",
    "label_dim": "label_dim",
    "augment_dim": "augment_dim",
    **{name: name for name in ("model_channels", "channel_mult", "channel_mult_emb", "num_blocks", "attn_resolutions")},
    **{name: name for name in ("dropout", "label_dropout", "embedding_type", "channel_mult_noise")},
    **{name: name for name in ("encoder_type", "decoder_type", "resample_filter")},
}
_DEFAULTS = {
    "song": {"channel_mult": (1, 2, 2, 2), "dropout": 0.1},
    "dhariwal": {
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "num_blocks": 3,
        "attn_resolutions": (32, 16, 8),
        "dropout": 0.1,
    },
}
_ATTRIBUTES = {"sigma_data": "sigma_data", "beta_d": "beta_d", "beta_min": "beta_min", "M": "num_steps"}
_ATTRIBUTES |= {"C_1": "c_1", "C_2": "c_2", "sigma_min": "sigma_min", "sigma_max": "sigma_max"}
#: Where EDM's samplers begin and end, unless the network was made for less.
_SIGMA_MIN, _SIGMA_MAX = 0.002, 80.0
_MAX_ITEMS = 4096


def recognises(path: Path) -> bool:
    """Tell whether it is a pickle of persistent objects."""
    return path.is_file() and is_persistent(path)


def read(path: Path, asked: Asked) -> Converted:
    """Read the network of the file as the family ``edm``: the average, or the one in training of a training state.

    Nothing in the file is executed. Its configuration is taken from the arguments and attributes of its objects, and
    compared with what the objects say of their parts.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: with the file's name, for a file that is damaged, holds another network, or has weights that are not
        finite.
    """
    with read_persistent(path) as file:
        try:
            return _convert(file, asked)
        except ValueError as error:
            message = str(error)
            raise ValueError(message if str(path) in message else f"{path}: {message}") from None


def _convert(file: PersistentPickle, asked: Asked) -> Converted:
    network, chosen, beside = _network(file.content)
    asked.only(chosen)
    config = configuration(network)
    weights, sources, notes = _weights(file, network, config)
    low, high = max(_SIGMA_MIN, config.sigma_min), min(_SIGMA_MAX, config.sigma_max)
    size = sum(math.prod(ref.shape) for ref in _tensors(network, "_parameters").values())
    found = [
        f"network: {network.kind} around {network.state['_modules']['model'].kind}, {size:,} parameters",
        f"diffusion: that of EDM, noise levels {low:g} to {high:g}; the network was made for {config.sigma_min:g} to "
        f"{config.sigma_max:g}",
        f"images: {' x '.join(map(str, config.image_shape))}",
        f"weights: {chosen}, which alone is in such files",
        f"labels: {config.label_dim} classes" if config.label_dim else "labels: none",
    ]
    if field(network, "use_fp16"):
        found.append("the original runs it in half precision on a GPU; here it runs as config.model.dtype says")
    if beside:
        found.append(f"left out, no part of the network: {', '.join(beside)}")
    found += notes
    options = dataclasses.asdict(config)
    return Converted(
        origin=NAME,
        network={"name": "edm", "config": options},
        weights={chosen: weights},
        sde={"name": "edm", "sigma_min": low, "sigma_max": high, "data_std": config.sigma_data},
        image_shape=config.image_shape,
        n_classes=config.label_dim,
        notes=tuple(found),
        config=asked.base,
        sources={chosen: sources},
        format=file.format,
    )


def _network(content: Any) -> tuple[Record, str, list[str]]:
    """Return the preconditioned network in a file, its set of weights, and the names of what stands beside it."""
    beside: list[str] = []
    where = "ema"
    if type(content) is dict:
        where = next((key for key in _SETS if key in content), "ema")
        beside = [clip(str(key), 40).strip("'") for key in content if key != where]
        if type(content.get(where)) is not Record:
            raise ValueError(f"it has no network under {where!r}; its keys are {', '.join(beside[:10]) or 'missing'}")
        content = content[where]
    if type(content) is not Record or content.kind not in _PRECONDITIONS:
        what = clip(content.kind) if type(content) is Record else f"a {type(content).__name__}"
        raise ValueError(f"its network is {what}; {', '.join(_PRECONDITIONS)} are accepted")
    return content, _SETS[where], beside


def configuration(network: Record) -> EDMConfig:
    """Return the options of a preconditioned network, from its arguments and attributes.

    Raises:
      ValueError: for another network inside, values of a wrong type or out of range, or parts that these options do
        not describe.
    """
    modules = network.state.get("_modules")
    inner = modules.get("model") if type(modules) is dict else None
    if type(inner) is not Record or inner.kind not in _ARCHITECTURES:
        what = clip(inner.kind) if type(inner) is Record else "missing"
        raise ValueError(f"the network inside {network.kind} is {what}; {', '.join(_ARCHITECTURES)} are accepted")
    architecture = _ARCHITECTURES[inner.kind]
    positional, named = inner.state.get("_init_args", ()), inner.state.get("_init_kwargs", {})
    if type(positional) is not tuple or type(named) is not dict or len(positional) > len(_ARGUMENTS):
        raise ValueError(f"{inner.kind} does not say what it was made with (_init_args, _init_kwargs)")
    given = {**dict(zip(_ARGUMENTS, positional, strict=False)), **named}
    unknown = [clip(str(name), 40) for name in given if name not in _ARGUMENTS]
    if unknown:
        raise ValueError(f"{inner.kind} was made with {', '.join(unknown[:5])}, which no version of it here knows")
    values: dict[str, Any] = dict(_DEFAULTS[architecture])
    values |= {_ARGUMENTS[name]: value for name, value in given.items() if _ARGUMENTS[name]}
    values |= {ours: network.state[name] for name, ours in _ATTRIBUTES.items() if name in network.state}
    if architecture == "dhariwal":
        values["channels_per_head"] = _channels_per_head(inner)
    types = {item.name: type(item.default) for item in dataclasses.fields(EDMConfig)}
    typed = {name: _typed(name, value, types[name]) for name, value in values.items()}
    config = EDMConfig(precondition=_PRECONDITIONS[network.kind], architecture=architecture, **typed)
    blocks = [
        (f"model.{way}.{piece.name}", piece)
        for way, pieces in zip(("enc", "dec"), plan(config), strict=True)
        for piece in pieces
        if piece.kind == "block"
    ]
    records = _records(network)
    missing = [name for name, _ in blocks if name not in records]
    if missing:
        raise ValueError(f"its arguments describe a network with {missing[0]}, which the file has not")
    heads = [_typed(f"num_heads of {name}", field(records[name], "num_heads", 0), int) for name, _ in blocks]
    if heads != [piece.heads for _, piece in blocks]:
        config = dataclasses.replace(config, num_heads=tuple(heads))
    _check_parts(records, config)
    return config


def _records(network: Record) -> dict[str, Record]:
    records: dict[str, Record] = {}
    for name, record in walk(network):
        records[name] = record
        if len(records) > 100_000:
            raise ValueError("its network has more than 100,000 modules")
    return records


def _channels_per_head(inner: Record) -> int:
    """Return the channels per head that the blocks were made with. The original's default is 64."""
    for _, record in walk(inner):
        if record.kind == "UNetBlock":
            arguments = record.state.get("_init_kwargs")
            return arguments.get("channels_per_head", 64) if type(arguments) is dict else 64
    return 64


def _typed(name: str, value: Any, kind: type) -> Any:
    """Return the value in the type of the option."""
    if kind is tuple and type(value) in (list, tuple) and len(value) <= _MAX_ITEMS:
        return tuple(_typed(name, item, float if type(item) is float else int) for item in value)
    if kind is float and type(value) in (int, float) and abs(value) < 2**63 or value in (math.inf,):
        return float(value)
    if type(value) is kind and (kind is not int or abs(value) < 2**31):
        return value
    raise ValueError(f"{name} is {clip(str(value))}; a {kind.__name__} is expected")


def _check_parts(records: dict[str, Record], config: EDMConfig) -> None:
    """Raise if a module says something of itself that the options do not mean."""
    song = config.architecture == "song"
    block = {"skip_scale": math.sqrt(0.5) if song else 1.0, "adaptive_scale": not song}
    expected: dict[str, dict[str, Any]] = {
        "UNetBlock": block,
        "GroupNorm": {"eps": 1e-6 if song else 1e-5},
        "PositionalEmbedding": {"max_positions": 10000, "endpoint": song},
    }
    for name, record in records.items():
        for key, wanted in expected.get(record.kind, {}).items():
            found = record.state.get(key, wanted)
            close = type(found) in (int, float, bool) and math.isclose(found, wanted, rel_tol=1e-6)
            if not close:
                raise ValueError(f"{key} of {name} is {clip(str(found))}; this network has {wanted}")


def _weights(
    file: PersistentPickle, network: Record, config: EDMConfig
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return the arrays as a nested dict, where each came from, and notes for the user."""
    parameters, buffers = _tensors(network, "_parameters"), _tensors(network, "_buffers")
    expected = {array.source: array for array in source_arrays(config)}
    found = parameters | {name: ref for name, ref in buffers.items() if name in expected}
    unfilled = [f"{name} {array.source_shape}" for name, array in expected.items() if name not in found]
    unused = [f"{name} {ref.shape}" for name, ref in parameters.items() if name not in expected]
    unequal = [
        f"{name} {found[name].shape} for {array.source_shape}"
        for name, array in expected.items()
        if name in found and found[name].shape != array.source_shape
    ]
    for what, names in (
        ("lacks", unfilled),
        ("has, without a place for it,", unused),
        ("has another shape of", unequal),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ValueError(f"the file does not fit its own arguments: it {what} {', '.join(names[:5])}{more}")
    kernels = dict(filters(config))
    for name, kernel in kernels.items():
        if name not in buffers or not np.allclose(file.read(buffers[name]), kernel, rtol=1e-6, atol=0):
            raise ValueError(f"{name} is not the filter resample_filter={config.taps} of its arguments")
    left = [name for name in buffers if name not in expected and name not in kernels]
    notes = [f"buffers left out: {', '.join(left[:10])}"] if left else []
    arrays = [(array, found[name]) for name, array in expected.items()]
    weights = unflatten((array.path, _values(file, array, ref)) for array, ref in arrays)
    sources = {
        "/".join(array.path): {
            "source": array.source,
            "source_shape": list(array.source_shape),
            "source_dtype": ref.dtype,
            "shape": list(array.shape),
        }
        for array, ref in arrays
    }
    return weights, sources, notes


def _values(file: PersistentPickle, array: SourceArray, ref: TensorRef) -> np.ndarray:
    if ref.dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise ValueError(f"{array.source} holds {ref.dtype}, no floating-point numbers")
    values = np.ascontiguousarray(array.convert(file.read(ref)), np.float32)
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{array.source} holds numbers that are not finite: the file is damaged, or training diverged")
    return values


def _tensors(network: Record, kind: str) -> dict[str, TensorRef]:
    """Return the parameters or buffers of a network by name, without those that are ``None``."""
    found: dict[str, TensorRef] = {}
    for name, record in _records(network).items():
        tensors = record.state.get(kind, {})
        if type(tensors) is not dict:
            raise ValueError(f"{kind} of {clip(name)} is no dict")
        for key, ref in tensors.items():
            if ref is None:
                continue
            path = f"{name}.{key}" if name else str(key)
            if type(key) is not str or type(ref) is not TensorRef:
                raise ValueError(f"{kind} of {clip(name)} holds {clip(str(key))}, which is no tensor")
            found[path] = ref
    return found


def state_dict(config: EDMConfig, weights: dict[str, Any]) -> dict[str, np.ndarray]:
    """Make the float32 state dict that the original's network loads, of weights as :class:`Converted` has them.

    Names are those of the preconditioned network, such as ``model.enc.32x32_conv.weight``, shaped ``[out, in, 3, 3]``.
    Filters of resampling are among them.
    """
    flat = flatten(weights)
    state = {array.source: array.invert(np.asarray(flat["/".join(array.path)])) for array in source_arrays(config)}
    state |= dict(filters(config))
    return {name: np.ascontiguousarray(array, np.float32) for name, array in state.items()}
