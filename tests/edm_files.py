"""Files as EDM writes them, made opcode by opcode, without PyTorch: a tiny network, whole or wrong in one place."""

import struct

import convert_files as files
import numpy as np

from psld_jax.models.edm import filters, source_arrays
from psld_jax.models.edm_plan import EDMConfig, plan

SOURCE = "import os  # never read\n" * 100
TINY = EDMConfig(
    image_size=2, channels=1, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(), channel_mult_emb=1
)


def raw(value):
    """Push a bytes object."""
    return b"B" + struct.pack("<I", len(value)) + value


def number(value):
    return b"G" + struct.pack(">d", value)


def scalar(value, code="f8", order="<"):
    """A numpy scalar."""
    state = files.sequence(
        files.integer(3), files.text(order), *[files.NONE] * 3, *[files.integer(n) for n in (-1, -1, 0)]
    )
    kind = files.call("numpy.dtype", files.text(code), files.FALSE, files.TRUE) + state + b"b"
    return files.call("numpy.core.multiarray.scalar", kind, raw(np.array(value, code).tobytes()))


def stored(array, kind="torch.FloatStorage"):
    """A storage: a bytes object that is a file of torch.save."""
    pickled = files.program(files.storage("94215190169168", array.size, kind, "cpu", files.NONE))
    return files.call("torch.storage._load_from_bytes", raw(files.legacy_file(pickled, {"94215190169168": array})))


def parameter(array):
    hooks = files.call("collections.OrderedDict")
    return files.call("torch._utils._rebuild_parameter", files.tensor(stored(array), array.shape), files.TRUE, hooks)


def record(kind, state, source=SOURCE):
    """A persistent object."""
    meta = {"type": files.text("class"), "version": files.integer(6), "module_src": files.text(source)}
    meta |= {"class_name": files.text(kind), "state": state}
    return files.call("torch_utils.persistence._reconstruct_persistent_obj", files.mapping(meta))


def module(kind, parameters=None, modules=None, **attributes):
    """A module's record; ``attributes`` are pushed values."""
    state = {"training": files.FALSE, "_parameters": files.mapping(parameters or {}, ordered=True)}
    state |= {"_buffers": attributes.pop("_buffers", files.mapping({}))}
    state |= {"_modules": files.mapping(modules or {}, ordered=True), **attributes}
    if kind == "ModuleDict":
        return (
            files.name("torch.nn.modules.container.ModuleDict")
            + files.EMPTY_TUPLE
            + b"\x81"
            + files.mapping(state)
            + b"b"
        )
    return record(kind, files.mapping(state))


def arguments(config):
    """``_init_kwargs`` of the network inside."""
    return {
        "img_resolution": files.integer(config.image_size),
        "in_channels": files.integer(config.channels),
        "out_channels": files.integer(config.channels),
        "model_channels": files.integer(config.model_channels),
        "channel_mult": files.listing(*map(files.integer, config.channel_mult)),
        "channel_mult_emb": files.integer(config.channel_mult_emb),
        "num_blocks": files.integer(config.num_blocks),
        "attn_resolutions": files.listing(),
        "dropout": scalar(config.dropout),
    }


def arrays(config, rng):
    return {array.source: rng.standard_normal(array.source_shape).astype(np.float32) for array in source_arrays(config)}


def network(config, values, change=lambda name, parts: None, **outer):
    """The preconditioned network with these arrays. ``change(name, parts)`` edits what becomes of a module in place."""
    blocks = {f"model.{way}.{p.name}": p for way, ps in zip(("enc", "dec"), plan(config), strict=True) for p in ps}
    known = dict(filters(config))

    def build(name):
        under = {key.removeprefix(f"{name}.") for key in (*values, *known) if key.startswith(f"{name}.") or not name}
        parts = {"kind": "Conv2d", "parameters": {}, "modules": {}, "attributes": {}}
        last = name.rpartition(".")[2]
        for key in sorted(under, key=list((*values, *known)).index if not name else None):
            head, dot, _ = key.partition(".")
            full = f"{name}.{head}" if name else head
            if not dot:
                parts["parameters"][head] = parameter(values[full])
            elif head not in parts["modules"]:
                parts["modules"][head] = build(full)
        if name in blocks and blocks[name].kind == "block":
            parts["kind"] = "UNetBlock"
            parts["attributes"] = {"num_heads": files.integer(blocks[name].heads), "skip_scale": scalar(np.sqrt(0.5))}
            parts["attributes"] |= {"adaptive_scale": files.FALSE}
        elif last.startswith("norm") or last.endswith("_norm"):
            parts["kind"], parts["attributes"] = "GroupNorm", {"eps": number(1e-6)}
        elif last in ("enc", "dec"):
            parts["kind"] = "ModuleDict"
        elif last == "affine" or last.startswith("map_"):
            parts["kind"] = "Linear"
        elif name == "model":
            parts["kind"], parts["attributes"] = "SongUNet", {"_init_kwargs": files.mapping(arguments(config))}
        elif not name:
            parts["kind"] = "EDMPrecond"
            parts["attributes"] = {
                "sigma_min": files.integer(0),
                "sigma_max": number(np.inf),
                "sigma_data": number(0.5),
            }
            parts["attributes"] |= outer
        change(name, parts)
        return module(parts["kind"], parts["parameters"], parts["modules"], **parts["attributes"])

    return build("")


def write(path, ema, **beside):
    """The file ``{"ema": ema, ...}``, of pushed values."""
    path.write_bytes(b"\x80\x04" + files.mapping({"ema": ema, **beside}) + b".")
    return path
