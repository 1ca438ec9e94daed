"""Files of safetensors, and configurations of diffusers, that nobody wrote in earnest: an error in one line."""

import json
import shutil
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from psld_jax.convert import diffusers
from psld_jax.convert.origins import Asked, recognise
from safetensors.numpy import save_file

from psld_jax.checkpoints import safetensors as reader
from psld_jax.checkpoints.safetensors import SafeTensors

FLAT = Path(__file__).parent / "golden_neighbours" / "diffusers_ddpm_flat"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def written(path, header, data=b"", size=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if size is None else size) + raw + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_every_type_is_read_as_it_was_saved(tmp_path, rng):
    kinds = (
        np.float64,
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        np.int64,
        np.int32,
        np.int16,
        np.int8,
        np.uint8,
        bool,
    )
    arrays = {np.dtype(kind).name: (5 * rng.standard_normal((2, 3))).astype(kind) for kind in kinds}
    arrays |= {"scalar": np.array(3.0), "none": np.zeros((0, 4), np.float32)}
    save_file(arrays, tmp_path / "f.safetensors", {"format": "pt"})
    with SafeTensors(tmp_path / "f.safetensors") as source:
        assert source.metadata == {"format": "pt"} and source.keys() == arrays.keys()
        for name, array in arrays.items():
            tensor = source[name]
            assert (tensor.shape, tensor.dtype, tensor.nbytes) == (array.shape, array.dtype, array.nbytes)
            np.testing.assert_array_equal(tensor.read(), array)


BAD = {
    "empty": (b"", b"", 0, "its header is no JSON"),
    "not a table": ([], b"", None, "its header is no table"),
    "not JSON": (b"{", b"", None, "its header is no JSON"),
    "deep": (b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", b"", None, "nested too deeply"),
    "header beyond the end": ({}, b"", 100, "says that its header has 100 bytes"),
    "huge header": ({}, b"", 2**62, "says that its header has"),
    "twice": (b'{"a":{},"a":{}}', b"", None, "has a name twice"),
    "metadata": ({"__metadata__": {"a": 1}}, b"", None, "__metadata__ is not a table of strings"),
    "no entry": ({"a": 3}, b"", None, "is not described by dtype"),
    "more in it": ({"a": {**entry(), "x": 1}}, bytes(8), None, "is not described by dtype"),
    "dtype": ({"a": entry("F8_E4M3")}, bytes(8), None, "has dtype 'F8_E4M3'; F64"),
    "shape": ({"a": entry(shape=(-1,))}, bytes(8), None, "a shape or data_offsets"),
    "axes": ({"a": entry(shape=(1,) * 17)}, bytes(8), None, "a shape or data_offsets"),
    "real shape": ({"a": entry(shape=(2.0,))}, bytes(8), None, "a shape or data_offsets"),
    "one offset": ({"a": entry(offsets=(0,))}, bytes(8), None, "data_offsets that are not two"),
    "cut off": ({"a": entry()}, bytes(7), None, "the file is damaged or cut off"),
    "backwards": ({"a": entry(offsets=(8, 0))}, bytes(8), None, "the file is damaged"),
    "size": ({"a": entry(shape=(3,))}, bytes(8), None, "the file is damaged"),
    "huge": ({"a": entry(shape=(2**40, 2**40))}, bytes(8), None, "the file is damaged"),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12), None, "two of its tensors overlap"),
    "name": ({"a" * 501: entry()}, bytes(8), None, "has more than 500 characters"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused(tmp_path, kind):
    header, data, size, message = BAD[kind]
    path = written(tmp_path / "f.safetensors", header, data, size)
    with pytest.raises(ValueError, match=message) as caught:
        SafeTensors(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_file_over_the_limits_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MAX_HEADER", 50)
    with pytest.raises(ValueError, match="at most 50 are read"):
        SafeTensors(written(tmp_path / "f.safetensors", {"a": entry()}, bytes(8)))
    monkeypatch.setattr(reader, "MAX_HEADER", 10_000)
    monkeypatch.setattr(reader, "MAX_TENSORS", 1)
    with pytest.raises(ValueError, match="has 2 tensors; at most 1"):
        SafeTensors(written(tmp_path / "f.safetensors", {"a": entry(), "b": entry(offsets=(8, 16))}, bytes(16)))


def test_a_file_that_shrinks_is_noticed(tmp_path):
    size = 2**20  # more than what is read ahead
    path = written(tmp_path / "f.safetensors", {"a": entry(shape=(size // 4,), offsets=(0, size))}, bytes(size))
    with SafeTensors(path) as source:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 1)
        with pytest.raises(ValueError, match="became shorter"):
            source["a"].read()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers_per_block", 10**9),
        ("block_out_channels", [8, 16, 2**40]),
        ("block_out_channels", [8] * 1000),
        ("norm_eps", float("nan")),
        ("sample_size", True),
        ("num_class_embeds", 2**60),
    ],
)
def test_options_beyond_all_measure_are_refused(key, value):
    stored = json.loads((FLAT / "config.json").read_text())
    with pytest.raises(ValueError, match=key):
        diffusers._options({**stored, key: value})


def mutate(rng, raw):
    raw = bytearray(raw)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(raw)))
        match rng.integers(4):
            case 0:
                raw[at] = rng.integers(256)
            case 1:
                raw[at] ^= 1 << int(rng.integers(8))
            case 2:
                del raw[at : at + int(rng.integers(1, 9))]
            case _:
                raw[at:at] = rng.bytes(int(rng.integers(1, 9)))
        if not raw:
            break
    return bytes(raw)


def opens_or_is_refused(path):
    try:
        if recognise(path).NAME == "diffusers":
            diffusers.read(path, Asked())
    except ValueError as error:
        assert "\n" not in str(error) or "does not fit the network" in str(error)
        return 1
    return 0


def fuzz(tmp_path, rng, name, count):
    """Mutated copies of one file in a directory of diffusers, the others as they are."""
    path = tmp_path / "in"
    shutil.copytree(FLAT, path)
    original = (path / name).read_bytes()
    # Numbers are numbers whatever they are: of the weights, the header is what can be wrong.
    head = len(original) if name != WEIGHTS else 8 + int.from_bytes(original[:8], "little")
    refused = 0
    for _ in range(count):
        (path / name).write_bytes(mutate(rng, original[:head]) + original[head:])
        refused += opens_or_is_refused(path)
    return refused


NAMES = (WEIGHTS, "config.json", "scheduler_config.json")


@pytest.mark.parametrize("name", NAMES)
def test_fuzz(tmp_path, rng, name):
    assert fuzz(tmp_path, rng, name, 20) > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_fuzz_long(tmp_path, rng, name):
    assert fuzz(tmp_path, rng, name, 10_000) > 1000


@pytest.mark.slow
def test_fuzz_of_the_reader_long(tmp_path, rng):
    save_file({"a": np.ones((3, 2), np.float32), "b.c": np.arange(4)}, tmp_path / "f.safetensors", {"format": "pt"})
    original, path, refused = (tmp_path / "f.safetensors").read_bytes(), tmp_path / "g.safetensors", 0
    for _ in range(10_000):
        path.write_bytes(mutate(rng, original))
        try:
            with SafeTensors(path) as source:
                assert sum(tensor.read().nbytes for tensor in source.values()) <= path.stat().st_size
        except ValueError:
            refused += 1
    assert refused > 1000
