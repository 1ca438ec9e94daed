"""Files made to hurt the reader: only ValueError comes out, nothing is executed, time and memory stay bounded."""

import io
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import convert_files as files
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psld_jax.convert import read_checkpoint

GOLDEN = Path(__file__).parent / "golden"
DATA = np.arange(24, dtype=np.float32)
STORED = files.storage("0", 24)
TENSOR = files.tensor(STORED, (24,))


def read_all(path):
    with read_checkpoint(path) as checkpoint:
        return [tensor.read() for tensor in checkpoint.values()]


def refuse(tmp_path, content, match=None):
    """The file is refused with its name and a short reason, in little time and memory."""
    path = tmp_path / "hostile.ckpt"
    path.write_bytes(content)
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(ValueError, match=match) as caught:
            read_all(path)
        assert tracemalloc.get_traced_memory()[1] < 400e6
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 60
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1500


def as_files(pickled):
    yield files.zip_file(pickled, {"0": DATA.tobytes()})
    yield files.legacy_file(pickled, {"0": DATA})


# Payloads.


class Payload:
    """What unpickling this does depends on the reader: a real one runs the command."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [os.system, eval, subprocess.getoutput])
def test_payloads_of_the_real_pickler(tmp_path, function, protocol):
    marker = tmp_path / "executed"
    command = f"open({str(marker)!r}, 'w')" if function is eval else f"touch {marker}"
    nested = {"state_dict": {"a": [({"b": Payload(function, command)},)]}, "callbacks": Payload(function, command)}
    pickled = pickle.dumps(nested, protocol)
    pickle.loads(pickled)
    assert marker.exists()  # the payload works
    marker.unlink()
    for content in (pickled, *as_files(pickled)):
        refuse(tmp_path, content)
        assert not marker.exists()


NAMES = [
    "os.system",
    "posix.system",
    "nt.system",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "builtins.getattr",
    "builtins.__import__",
    "__builtin__.apply",
    "builtins.dict.__init_subclass__",
    "importlib.import_module",
    "runpy._run_code",
    "operator.attrgetter",
    "functools.partial",
    "numpy.load",
    "torch.load",
    "torch.hub.load",
    "torch.storage._load_from_bytes",
    "torch._utils._rebuild_tensor_v2.__globals__",
    "collections.OrderedDict.fromkeys",
    "omegaconf_.x",
    "psld_jax.convert.read_checkpoint",
]


@pytest.mark.parametrize("path", NAMES)
def test_names_that_no_state_dict_needs(tmp_path, path):
    for place in (files.call(path, files.text("x")), files.name(path)):
        pickled = files.checkpoint({"a": TENSOR}, callbacks=place)
        for content in as_files(pickled):
            refuse(tmp_path, content, match="nothing was executed")


ARGUMENTS = files.sequence(files.text("touch MARKER"))
STYLES = {
    "reduce": files.name("os.system") + ARGUMENTS + b"R",
    "stack_global": files.text("os") + files.text("system") + b"\x93" + ARGUMENTS + b"R",
    "inst": b"(" + files.text("touch MARKER") + b"ios\nsystem\n",
    "obj": b"(" + files.name("os.system") + files.text("touch MARKER") + b"o",
    "newobj": files.name("os.system") + ARGUMENTS + b"\x81",
    "newobj_ex": files.name("os.system") + ARGUMENTS + b"}\x92",
    "extension": b"\x82\x01" + ARGUMENTS + b"R",
    "build": files.name("argparse.Namespace")
    + b")\x81"
    + files.mapping({"__setstate__": files.name("os.system")})
    + b"b",
    "call of an object": files.call("argparse.Namespace") + ARGUMENTS + b"R",
    "call of a string": files.text("os.system") + ARGUMENTS + b"R",
    "call without tuple": files.name("argparse.Namespace") + files.integer(1) + b"R",
    "text persistent id": b"Pos.system\n",
    "persistent id": ARGUMENTS + b"Q",
    "persistent id of a class": files.sequence(
        files.text("storage"), files.name("os.system"), files.text("0"), files.text("cpu"), files.integer(1)
    )
    + b"Q",
    "out-of-band buffer": b"\x97",
}


@pytest.mark.parametrize("style", STYLES)
def test_every_way_to_call(tmp_path, style, monkeypatch):
    monkeypatch.chdir(tmp_path)
    payload = STYLES[style].replace(b"MARKER", str(tmp_path / "x")[:6].encode())
    hook = files.call(
        "torch._utils._rebuild_tensor_v2",
        STORED,
        files.integer(0),
        files.integers(24),
        files.integers(1),
        files.FALSE,
        payload,
    )
    places = [
        files.checkpoint({"a": TENSOR, "b": payload}),
        files.checkpoint({"a": TENSOR}, other=payload),
        files.checkpoint({"a": hook}),
        files.program(payload),
        files.program(files.mapping({"a": TENSOR}, ordered=True) + payload + b"b"),
    ]
    before = set(tmp_path.iterdir())
    for pickled in places:
        for content in as_files(pickled):
            refuse(tmp_path, content)
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "hostile.ckpt"}


def test_a_name_that_is_read_is_not_imported(tmp_path):
    """Even an accepted name only labels a placeholder."""
    package = tmp_path / "omegaconf"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    path = tmp_path / "file.ckpt"
    path.write_bytes(
        files.zip_file(files.checkpoint({"a": TENSOR}, x=files.call("omegaconf.f")), {"0": DATA.tobytes()})
    )
    sys.path.insert(0, str(tmp_path))
    try:
        read_all(path)
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "imported").exists() and "omegaconf" not in sys.modules


# Tensors and storages.

BAD_TENSORS = {
    "storage too short": files.tensor(STORED, (25,)),
    "view beyond its end": files.tensor(STORED, (2, 3), (20, 3)),
    "offset beyond its end": files.tensor(STORED, (4,), (1,), 21),
    "negative offset": files.tensor(STORED, (4,), (1,), -1),
    "negative stride": files.tensor(STORED, (4,), (-1,), 8),
    "negative size": files.tensor(STORED, (-4,), (1,)),
    "negative sizes": files.tensor(STORED, (-2, -2), (1, 1)),
    "overflowing size": files.tensor(STORED, (2**62, 2**62), (0, 0)),
    "overflowing stride": files.tensor(STORED, (2,), (2**64 - 1,)),
    "expanded to any size": files.tensor(STORED, (2**40,), (0,)),
    "zero times anything": files.tensor(STORED, (0, -1), (1, 1)),
    "too many axes": files.tensor(STORED, (1,) * 65, (1,) * 65),
    "strides missing": files.tensor(STORED, (4, 6), (1,)),
    "size not an integer": files.call(
        "torch._utils._rebuild_tensor_v2", STORED, files.integer(0), files.sequence(files.text("4")), files.integers(1)
    ),
    "no storage": files.call("torch._utils._rebuild_tensor_v2", files.NONE, files.integer(0)),
    "no arguments": files.call("torch._utils._rebuild_tensor_v2"),
    "negative of its data": files.call(
        "torch._utils._rebuild_tensor_v2",
        *[STORED, files.integer(0), files.integers(24), files.integers(1), files.FALSE, files.NONE],
        files.mapping({"neg": files.TRUE}),
    ),
    "absurd storage": files.tensor(files.storage("0", 2**62), (4,)),
    "negative storage": files.tensor(files.storage("0", -1), (0,)),
    "storage that is not there": files.tensor(files.storage("../../0", 4), (4,)),
    "storage of the wrong type": files.tensor(files.storage("0", 24, "torch.DoubleStorage"), (24,)),
    "storage class unknown": files.tensor(files.storage("0", 24, "torch.device"), (24,)),
    "dtype unknown": files.call(
        "torch._utils._rebuild_tensor_v3",
        *[files.storage("0", 96, "torch.storage.UntypedStorage"), files.integer(0), files.integers(24)],
        *[files.integers(1), files.FALSE, files.NONE, files.name("torch.device"), files.NONE],
    ),
    "not a tensor": files.text("weights"),
    "an object": files.call("numpy.core.multiarray.scalar"),
    "a storage": STORED,
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_bad_tensors(tmp_path, kind):
    for content in as_files(files.checkpoint({"good": TENSOR, "bad": BAD_TENSORS[kind]})):
        refuse(tmp_path, content)


BAD_CONTENTS = {
    "duplicate key": files.checkpoint([("a", TENSOR), ("a", TENSOR)]),
    "duplicate state dict": files.program(files.mapping([("state_dict", files.mapping({"a": TENSOR}))] * 2)),
    "key that is no string": files.program(files.mapping({"state_dict": b"}" + files.integer(1) + TENSOR + b"s"})),
    "very long key": files.checkpoint({"a" * 100_000: TENSOR}),
    "no state dict": files.program(files.mapping({"model": files.mapping({"a": TENSOR})})),
    "empty state dict": files.checkpoint({}),
    "state dict that is a list": files.program(files.mapping({"state_dict": b"]"})),
    "a tensor": files.program(TENSOR),
    "model without averages": files.program(files.mapping({"model": files.mapping({"a": TENSOR}), "ema": b"}"})),
    "averages without a model": files.score_sde({}, []),
    "averages that are no list": files.score_sde({"a": TENSOR}, [], ema=files.mapping({"shadow_params": TENSOR})),
    "averages in themselves": files.program(
        files.mapping({"model": files.mapping({"a": TENSOR}), "ema": files.mapping({"shadow_params": b"]q\0h\0a"})})
    ),
    "averages of another number": files.score_sde({"a": TENSOR}, [TENSOR, TENSOR]),
    "averages of another shape": files.score_sde({"a": TENSOR}, [files.tensor(STORED, (4, 6))]),
    "an average that is no tensor": files.score_sde({"a": TENSOR}, [STORED]),
    "a parameter that is no tensor": files.score_sde({"a": STORED}, [TENSOR]),
    "parameters without names": files.program(
        files.mapping(
            {
                "model": b"}" + files.integer(1) + TENSOR + b"s",
                "ema": files.mapping({"shadow_params": files.listing(TENSOR)}),
            }
        )
    ),
    "nothing": b"",
    "only a stop": b".",
    "stack underflow": b"\x80\x02}s.",
    "mark missing": b"\x80\x02}u.",
    "pop below the mark": b"\x80\x02}(0000.",
    "key without value": b"\x80\x02}(NNNu.",
    "no stop": files.checkpoint({"a": TENSOR})[:-1],
    "protocol unknown": b"\x80\x7f.",
    "memo missing": b"\x80\x02h\x07.",
    "append to a dict": b"\x80\x02}Na.",
    "item of a list": b"\x80\x02]NNs.",
    "state of a number": b"\x80\x02K\x01Nb.",
    "string not UTF-8": b"\x80\x02X\x01\0\0\0\xff.",
    "huge string": b"\x80\x02X\xff\xff\xff\x7f.",
    "huge string, protocol 4": b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".",
    "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b".",
    "huge integer": b"\x80\x02\x8b" + struct.pack("<i", 2**30) + b"\1" * 1000 + b".",
    "negative length": b"\x80\x02\x8b" + struct.pack("<i", -5) + b".",
    "name without end": b"\x80\x02c" + b"a" * 5000 + b".",
    "name that is a number": b"\x80\x04K\x01K\x02\x93.",
    "long name": b"\x80\x04" + files.text("omegaconf") + files.text("a" * 10**6) + b"\x93.",
}


@pytest.mark.parametrize("kind", BAD_CONTENTS)
def test_bad_contents(tmp_path, kind):
    for content in as_files(BAD_CONTENTS[kind]):
        refuse(tmp_path, content)


def bombs():
    doubled = b"N" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(200))
    deep = 50_000
    shape = files.integers(*[1] * 10_000) + b"q\x000"
    call = files.name("torch._utils._rebuild_tensor_v2") + b"(" + STORED + b"K\0h\0h\0tR0"
    name = files.text("omegaconf") + b"q\x000" + files.text("a" * 10**6) + b"q\x010"
    return {
        "2 to the power of 200 in a tuple": doubled,
        "the same as a key": b"}" + doubled + b"Ns",
        "deep lists": b"]" * deep + b"a" * (deep - 1),
        "deep tuples": b")" + b"\x85" * deep,
        "deep tuple as a key": b"})" + b"\x85" * deep + b"Ns",
        "deep dicts": b"}" + b"}N" * deep + b"s" * deep,
        "a list in itself": b"]q\0h\0a",
        "many dicts": b"}" * 200_000,
        "long shapes over and over": shape + call * 5_000,
        "long names over and over": name + b"h\x00h\x01\x930" * 50_000,
        "colliding keys": b"}("
        + b"".join(b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little") + b"N" for i in range(50_000))
        + b"u",
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", bombs())
def test_bombs(tmp_path, kind):
    bomb = bombs()[kind]
    for pickled in (files.program(bomb), files.program(bomb + b"0" + files.text("x"))):
        refuse(tmp_path, files.zip_file(pickled, {"0": DATA.tobytes()}))


@pytest.mark.parametrize("bomb", [b"N0", b"}"])
def test_too_many_opcodes(tmp_path, bomb, monkeypatch):
    monkeypatch.setattr("psld_jax.checkpoints.pickle_vm.MAX_OPCODES", 20_000)
    refuse(tmp_path, files.zip_file(files.program(bomb * 20_000)), match="more than 20000 opcodes")


def test_a_bomb_beside_the_state_dict_is_harmless(tmp_path):
    pickled = files.checkpoint({"a": TENSOR}, x=bombs()["2 to the power of 200 in a tuple"], y=bombs()["deep lists"])
    path = tmp_path / "file.ckpt"
    path.write_bytes(files.zip_file(pickled, {"0": DATA.tobytes()}))
    np.testing.assert_array_equal(read_all(path)[0], DATA)


def test_one_storage_under_many_names(tmp_path):
    large = np.zeros(10**6, np.float32)
    many = {str(i): files.tensor(files.storage("0", large.size), (large.size,)) for i in range(50)}
    refuse(tmp_path, files.zip_file(files.checkpoint(many), {"0": large.tobytes()}), match="times the file")


# The container.

GOOD = files.checkpoint({"a": TENSOR})


def zip_with(*entries, **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", GOOD)
        archive.writestr("archive/data/0", DATA.tobytes())
        for name, raw in entries:
            archive.writestr(name, raw, **options)
    return buffer.getvalue()


def patched(content, signature, offset, raw, occurrence=0):
    """Bytes at ``offset`` after an occurrence of a zip signature replaced."""
    at = -1
    for _ in range(occurrence + 1):
        at = content.index(signature, at + 1)
    return content[: at + offset] + raw + content[at + offset + len(raw) :]


PLAIN = zip_with()
CENTRAL, LOCAL, END = b"PK\1\2", b"PK\3\4", b"PK\5\6"
BAD_ZIPS = {
    "parent folder": zip_with(("archive/../../evil", b"x")),
    "absolute path": zip_with(("/etc/evil", b"x")),
    "backslash": zip_with(("archive\\evil", b"x")),
    "empty part": zip_with(("archive//evil", b"x")),
    "two programs": zip_with(("other/data.pkl", GOOD)),
    "TorchScript": zip_with(("archive/constants.pkl", GOOD)),
    "big-endian": zip_with(("archive/byteorder", b"big")),
    "long byte order": zip_with(("archive/byteorder", b"little" * 10)),
    "compressed": zip_with(("archive/data/1", bytes(10**6)), compress_type=zipfile.ZIP_DEFLATED),
    "compressed by xz": zip_with(("archive/data/1", bytes(10**6)), compress_type=zipfile.ZIP_LZMA),
    "encrypted": patched(PLAIN, CENTRAL, 8, b"\1\0"),
    "unknown flags": patched(PLAIN, CENTRAL, 8, b"\0\x20", 1),
    "size beyond the file": patched(PLAIN, CENTRAL, 20, struct.pack("<2I", 2**31, 2**31), 1),
    "zip64 without field": patched(PLAIN, CENTRAL, 20, b"\xff" * 8, 1),
    "overlap": patched(PLAIN, CENTRAL, 42, struct.pack("<I", 0), 1),
    "header elsewhere": patched(PLAIN, CENTRAL, 42, struct.pack("<I", 2**31), 1),
    "name disagrees": patched(PLAIN, LOCAL, 30, b"X"),
    "name not UTF-8": patched(patched(PLAIN, CENTRAL, 46, b"\xff"), LOCAL, 30, b"\xff"),
    "a million entries": patched(PLAIN, END, 8, struct.pack("<2H", 65535, 65535)),
    "fewer entries": patched(PLAIN, END, 8, struct.pack("<2H", 1, 1)),
    "directory elsewhere": patched(PLAIN, END, 16, struct.pack("<I", 5)),
    "several disks": patched(PLAIN, END, 4, b"\1\0"),
    "data changed": PLAIN.replace(DATA.tobytes(), (DATA + 1).tobytes()),
    "pickle changed": PLAIN.replace(b"state_dict", b"state_dicT"),
    "prefixed": b"#!/bin/sh\n" + PLAIN,
    "followed": PLAIN + b"x",
    "no program": files.zip_file(GOOD, root="a/b"),
    "a gzip file": b"\x1f\x8b" + PLAIN,
    "an empty zip": b"PK\5\6" + bytes(18),
    "text": b"state_dict",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "empty": b"",
}


@pytest.mark.parametrize("kind", BAD_ZIPS)
def test_bad_containers(tmp_path, kind):
    refuse(tmp_path, BAD_ZIPS[kind])


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_names_in_the_archive(tmp_path):
    refuse(tmp_path, zip_with(("archive/data/0", bytes(96))), match="occurs twice")
    refuse(tmp_path, zip_with(("archive/data.pkl", GOOD)), match="occurs twice")


def test_a_pickle_beyond_the_limit(tmp_path):
    refuse(tmp_path, files.zip_file(GOOD + bytes(33 * 2**20)), match="at most")


SIZED = {"0": DATA}
BAD_LEGACY = {
    "wrong magic": files.program(files.integer(17)) + files.legacy_file(GOOD, SIZED),
    "wrong protocol": files.legacy_file(GOOD, SIZED).replace(files.integer(1001), files.integer(1002), 1),
    "big-endian": files.legacy_file(GOOD, SIZED).replace(files.TRUE, files.FALSE, 1),
    "no keys": files.legacy_file(GOOD, SIZED, keys=[]),
    "key twice": files.legacy_file(GOOD, SIZED, keys=["0", "0"]),
    "key unknown": files.legacy_file(GOOD, SIZED, keys=["0", "1"]),
    "other size": files.legacy_file(GOOD, {"0": DATA[:-1]}),
    "negative size": files.legacy_file(GOOD, SIZED).replace(struct.pack("<q", 24), struct.pack("<q", -24)),
    "followed": files.legacy_file(GOOD, SIZED) + b"x",
    "view of a storage": files.legacy_file(
        files.checkpoint({"a": files.tensor(files.storage("0", 24, "torch.FloatStorage", "cpu", TENSOR), (24,))}), SIZED
    ),
}


@pytest.mark.parametrize("kind", BAD_LEGACY)
def test_bad_legacy_files(tmp_path, kind):
    refuse(tmp_path, BAD_LEGACY[kind])


@pytest.mark.parametrize("name", ["torch_state_zip", "torch_state_legacy"])
def test_cut_off_anywhere(tmp_path, name):
    content = (GOLDEN / f"{name}.ckpt").read_bytes()
    for length in range(0, len(content), 41):
        refuse(tmp_path, content[:length])


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = tmp_path / "file.ckpt"
    large = np.zeros(10**6, np.float32)
    stored = files.storage("0", large.size)
    content = files.legacy_file(files.checkpoint({"a": files.tensor(stored, large.shape)}), {"0": large})
    path.write_bytes(content)
    with read_checkpoint(path) as checkpoint:
        path.write_bytes(content[:-8])
        with pytest.raises(ValueError, match="shorter"):
            checkpoint["a"].read()


# Fuzzing.

BASES = [(GOLDEN / f"torch_state_{form}.ckpt").read_bytes() for form in ("zip", "legacy")]
BASES += list(as_files(files.score_sde({"module.a": TENSOR, "module.sigmas": TENSOR}, [TENSOR])))
PIECES = [
    *[bytes([i]) for i in range(256)],
    *[TENSOR, STORED, GOOD[:-1], files.LEGACY_HEAD, files.call("torch.Size"), files.call("collections.OrderedDict")],
    *[files.name(path) for path in ("torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter", "os.system")],
    *[files.integer(value) for value in (-1, 2**31, 2**63, 2**100)],
    *[b"\xff" * 4, b"\xff" * 8, b"h\0", b"q\0", b"(", b"t", b"u", b"R", b"b", b"PK\1\2", b"PK\5\6"],
]


@st.composite
def mutations(draw, content):
    """The content with a few bytes flipped, pieces inserted, stretches dropped, moved or repeated."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content)))
        stretch = draw(st.integers(0, 64))
        kind = draw(st.integers(0, 4))
        if kind == 0 and at < len(content):
            content[at] = draw(st.integers(0, 255))
        elif kind == 1:
            content[at:at] = draw(st.sampled_from(PIECES))
        elif kind == 2:
            del content[at : at + stretch]
        elif kind == 3:
            source = draw(st.integers(0, len(content)))
            content[at : at + stretch] = content[source : source + stretch]
        else:
            content[at : at + stretch] = draw(st.binary(max_size=stretch))
    return bytes(content)


def survive(directory, content):
    """Reading either works or raises ValueError, quickly."""
    path = directory / "fuzzed.ckpt"
    path.write_bytes(content)
    start = time.perf_counter()
    try:
        read_all(path)
    except ValueError as error:
        assert str(path) in str(error) and len(str(error)) < 3000
    assert time.perf_counter() - start < 20


def fuzz(examples, **options):
    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, suppress_health_check=health, database=None, **options)


def check_mutated_files(directory, data):
    survive(directory, data.draw(mutations(data.draw(st.sampled_from(BASES)))))


def check_mutated_pickles(directory, data):
    """The archive is sound, so that the mutated pickle gets past the checksum."""
    with zipfile.ZipFile(io.BytesIO(data.draw(st.sampled_from(BASES[::2])))) as archive:
        root = archive.namelist()[0].partition("/")[0]
        pickled = archive.read(f"{root}/data.pkl")
        storages = {
            name.rpartition("/")[2]: archive.read(name)
            for name in archive.namelist()
            if name.startswith(f"{root}/data/")
        }
    survive(directory, files.zip_file(data.draw(mutations(pickled)), storages))


def check_random_programs(directory, data):
    pieces = b"".join(data.draw(st.lists(st.sampled_from(PIECES), max_size=30)))
    survive(directory, data.draw(st.sampled_from([*as_files(files.program(pieces)), files.LEGACY_HEAD + pieces])))


CHECKS = [check_mutated_files, check_mutated_pickles, check_random_programs]


@pytest.mark.parametrize("check", CHECKS)
def test_fuzz(tmp_path, check):
    fuzz(300)(given(data=st.data())(lambda data: check(tmp_path, data)))()


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_fuzz_long(tmp_path, check):
    fuzz(20_000, derandomize=False)(given(data=st.data())(lambda data: check(tmp_path, data)))()
