"""Checkpoint files made opcode by opcode, without PyTorch: what torch.save writes, and what it never would."""

import io
import struct
import zipfile

import numpy as np

NONE, TRUE, FALSE, EMPTY_TUPLE = b"N", b"\x88", b"\x89", b")"


def name(path):
    """Push a name by GLOBAL."""
    module, _, attribute = path.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value):
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + struct.pack("<B", len(raw)) + raw


def integers(*values):
    return sequence(*map(integer, values))


def sequence(*parts):
    return b"(" + b"".join(parts) + b"t"


def mapping(items, ordered=False):
    """A dict from strings to pushed values; ``items`` may be pairs, with repeated keys."""
    pairs = items.items() if isinstance(items, dict) else items
    start = call("collections.OrderedDict") if ordered else b"}"
    return start + b"(" + b"".join(text(key) + value for key, value in pairs) + b"u"


def listing(*parts):
    return b"](" + b"".join(parts) + b"e"


def call(path, *arguments):
    return name(path) + sequence(*arguments) + b"R"


def storage(key, numel, kind="torch.FloatStorage", location="cpu", *rest):
    return sequence(text("storage"), name(kind), text(key), text(location), integer(numel), *rest) + b"Q"


def tensor(stored, shape, strides=None, offset=0):
    """A tensor over a pushed storage; C-contiguous unless ``strides`` says otherwise."""
    if strides is None:
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    hooks = call("collections.OrderedDict")
    return call(
        "torch._utils._rebuild_tensor_v2", stored, integer(offset), integers(*shape), integers(*strides), FALSE, hooks
    )


def program(value):
    return b"\x80\x02" + value + b"."


def checkpoint(tensors, **beside):
    """The pickle of ``{"state_dict": tensors, ...}``."""
    return program(mapping({"state_dict": mapping(tensors, ordered=True), **beside}))


def score_sde(model, averages, **beside):
    """The pickle of a checkpoint of score_sde_pytorch: state dict of the model, and averages without names."""
    ema = {"decay": b"G" + struct.pack(">d", 0.9999), "num_updates": integer(7), "shadow_params": listing(*averages)}
    content = {"optimizer": mapping({"state": b"}"}), "model": mapping(model, ordered=True), "ema": mapping(ema)}
    return program(mapping({**content, "step": integer(7), **beside}))


def zip_file(pickled, storages=None, root="archive", **options):
    """A checkpoint in the format since torch 1.6; ``storages`` are bytes by key."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        archive.writestr(f"{root}/data.pkl", pickled)
        for key, raw in (storages or {}).items():
            archive.writestr(f"{root}/data/{key}", raw)
        archive.writestr(f"{root}/version", "3\n")
    return buffer.getvalue()


LEGACY_HEAD = (
    program(integer(0x1950A86A20F9469CFC6C))
    + program(integer(1001))
    + program(mapping({"protocol_version": integer(1001), "little_endian": TRUE}))
)


def legacy_file(pickled, storages=None, keys=None):
    """A checkpoint in the format before torch 1.6; ``storages`` are arrays by key."""
    storages = storages or {}
    names = b"]" + b"(" + b"".join(map(text, storages if keys is None else keys)) + b"e"
    data = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in storages.values())
    return LEGACY_HEAD + pickled + program(names) + data
