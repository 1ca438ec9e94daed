"""CIFAR-10 as Python 2 pickled it, as flat files and as archives; and pickles made to hurt, of which none does."""

import io
import pickle
import struct
import tarfile
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seeds import generator

from psld_jax.data import open_dataset

NAMES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
IMAGES = {name: generator(name).integers(0, 256, (k + 1, 3072), np.uint8) for k, name in enumerate(NAMES)}
LABELS = {name: generator(f"labels of {name}").integers(0, 10, len(rows)).tolist() for name, rows in IMAGES.items()}


def text(value):
    return b"U" + bytes([len(value)]) + value


def array(rows, dtype=b"u1", by_columns=False):
    """The array as numpy 1 and Python 2 pickled it."""
    raw = rows.tobytes("F" if by_columns else "C")
    described = b"cnumpy\ndtype\n" + text(dtype) + b"K\0K\1\x87R(K\3" + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    shape = b"".join(b"M" + struct.pack("<H", n) for n in rows.shape) + b"\x86"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\1cnumpy\nndarray\nq\2K\0\x85" + text(b"b") + b"\x87R(K\1" + shape
        + described + b"K\0tb" + (b"\x88" if by_columns else b"\x89") + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )  # fmt: skip


def batch(data, labels):
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    names = b"](" + text(b"x_1.png") * len(labels) + b"e"
    pairs = {b"batch_label": text(b"batch"), b"labels": numbers, b"data": data, b"filenames": names}
    return b"\x80\2}q\0(" + b"".join(text(key) + value for key, value in pairs.items()) + b"u."


def content(name, kind, **options):
    if kind == "py":
        return batch(array(IMAGES[name], **options), LABELS[name])
    rows = zip(LABELS[name], IMAGES[name], strict=True)
    return b"".join(bytes([label]) + row.tobytes() for label, row in rows)


def write(folder, kind, **options):
    folder = folder / f"cifar-10-batches-{kind}"
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / (name if kind == "py" else f"{name}.bin")).write_bytes(content(name, kind, **options))
    (folder / "readme.html").write_text("hello")
    return folder


def archive(folder, path):
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    return path


def refused(path, **options):
    with pytest.raises(ValueError) as caught:
        open_dataset("cifar10", path, **options)
    return str(caught.value)


def check(path):
    train = np.concatenate([IMAGES[name] for name in NAMES[:5]]).reshape(-1, 3, 32, 32)
    for split, images, labels in (
        ("train", train, sum((LABELS[name] for name in NAMES[:5]), [])),
        ("test", IMAGES["test_batch"].reshape(-1, 3, 32, 32), LABELS["test_batch"]),
    ):
        dataset = open_dataset("cifar10", path, split)
        assert len(dataset) == len(labels) and dataset.image_shape == (32, 32, 3)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            np.testing.assert_array_equal(dataset[i]["image"], image.transpose(1, 2, 0))
            assert dataset[i]["label"] == label
        assert dataset.class_names is not None and dataset.class_names[3] == "cat"


@pytest.mark.parametrize("kind", ["py", "bin"])
def test_every_place_it_may_be_in(tmp_path, kind):
    folder = write(tmp_path / "plain", kind)
    check(folder)
    check(folder.parent)
    check(archive(folder, tmp_path / "any.tar.gz"))
    (tmp_path / "packed").mkdir()
    archive(folder, tmp_path / "packed" / f"cifar-10-{'python' if kind == 'py' else 'binary'}.tar.gz")
    check(tmp_path / "packed")


def test_arrays_stored_by_columns(tmp_path):
    check(write(tmp_path, "py", by_columns=True))


def test_these_pickles_are_what_python_reads():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy tells that the module's name is old
        real = pickle.loads(content("test_batch", "py"), encoding="bytes")
    np.testing.assert_array_equal(real[b"data"], IMAGES["test_batch"])
    assert real[b"labels"] == LABELS["test_batch"]


def test_what_is_missing_or_damaged_is_named(tmp_path):
    message = refused(tmp_path)
    assert str(tmp_path) in message and "cifar-10-batches-py" in message and "cifar-10-binary.tar.gz" in message
    folder = write(tmp_path, "bin")
    packed = archive(folder, tmp_path / "a.tar.gz")
    whole = packed.read_bytes()
    flipped = whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]
    for damaged in (whole[:0], whole[:10], whole[: len(whole) // 2], whole[:-4], flipped, b"hello"):
        packed.write_bytes(damaged)
        assert f"{packed} is no .tar.gz of CIFAR-10, or is cut off or damaged" in refused(packed)
    (folder / "data_batch_4.bin").unlink()
    assert f"{folder}: data_batch_4.bin is missing" in refused(folder)
    file = folder / "test_batch.bin"
    for changed in (b"", file.read_bytes()[:-1], file.read_bytes() + b"x"):
        file.write_bytes(changed)
        assert "test_batch.bin is cut off or no batch" in refused(folder, split="test")
    file.write_bytes(b"\x0a" + bytes(3072))
    assert "test_batch.bin has labels from 10 to 10; 0 to 9 are allowed" in refused(folder, split="test")


ROWS, GOOD = IMAGES["test_batch"], content("test_batch", "py")


def read_pickle(folder, pickled):
    (folder / "test_batch").write_bytes(pickled)
    return open_dataset("cifar10", folder, "test")


@pytest.mark.parametrize(
    ("pickled", "expected"),
    [
        (GOOD[:-1], "cut off"),
        (GOOD[:100], "cut off"),
        (b"", "cut off"),
        (batch(array(ROWS[:, :3071]), [0] * 6), "18426 bytes of data for the shape (6, 3071)"),
        (batch(array(ROWS), [0] * 5), "5 labels for 6 images"),
        (batch(array(ROWS), [0] * 5 + [10]), "labels from 0 to 10"),
        (batch(array(ROWS, dtype=b"f4"), [0] * 6), "its data are no bytes with two axes"),
        (batch(array(ROWS, dtype=b"O8"), [0] * 6), "its data are no bytes with two axes"),
        (batch(text(b"hello"), [0] * 6), "no array 'data'"),
        (batch(array(ROWS).replace(b"\x00\x0c\x86", b"\xff\xff\x86", 1), [0] * 6), "for the shape (6, 65535)"),
        (b"\x80\2].", "no array 'data'"),
        (b"\x80\2" + b"]" * 600_000 + b".", "more than 500000 opcodes"),
        (b"\x80\2" + b"}" + b"}K\0s" + b".", "a dict with strings as keys"),
        (b"\x80\2](K\1u.", "something else than a dict"),
        (b"\x80\2}a.", "cut off"),
        (b"\x80\2t.", "cut off"),
        (b"\x80\2h\5.", "cut off"),
        (b"\x80\2T\xff\xff\xff\x7fabc.", "cut off"),
        (b"\x80\2]K\1b.", "sets the state of something else than an array"),
        (b"\x80\2cnumpy\nndarray\n}U\1xU\1yo.", "opcode OBJ"),
        (b"\x80\2cnumpy\nndarray\n}U\x10__array_struct__U\1ysb.", "sets the state of something else than an array"),
        (b"\x80\2U\x02osU\1x\x85R.", "calls something else than a name"),
        (pickle.dumps({"data": ROWS, "labels": [0] * 6}), "opcode FRAME"),
    ],
)
def test_pickles_that_are_no_batch(tmp_path, pickled, expected):
    with pytest.raises(ValueError) as caught:
        read_pickle(tmp_path, pickled)
    assert f"{tmp_path}: test_batch" in str(caught.value) and expected in str(caught.value)
    assert len(str(caught.value)) < 500


def hostile(path, argument):
    module, _, name = path.rpartition(".")
    call = f"c{module}\n{name}\n".encode() + text(argument) + b"\x85R"
    return [batch(call, LABELS["test_batch"]), GOOD[:-2] + text(b"more") + call + b"u.", b"\x80\2" + call + GOOD]


@pytest.mark.parametrize("path", ["os.system", "builtins.exec", "numpy.load", "numpy.core.multiarray.scalar"])
def test_hostile_pickles_are_named_and_never_executed(tmp_path, path):
    marker = tmp_path / "executed"
    argument = f"open({str(marker)!r}, 'w')" if path.endswith("exec") else f"touch {marker}"
    for pickled in hostile(path, argument.encode()):
        if path in ("os.system", "builtins.exec"):  # the payload works
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pickle.loads(pickled, encoding="bytes")
            marker.unlink()
        with pytest.raises(ValueError, match=f"test_batch.*nothing in it was executed: it refers to {path}"):
            read_pickle(tmp_path, pickled)
        assert not marker.exists()


class Payload:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return exec, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_payloads_of_the_real_pickler(tmp_path, protocol):
    marker = tmp_path / "executed"
    pickled = pickle.dumps({"data": Payload(f"open({str(marker)!r}, 'w')")}, protocol)
    pickle.loads(pickled)
    marker.unlink()
    with pytest.raises(ValueError, match="nothing in it was executed"):
        read_pickle(tmp_path, pickled)
    assert not marker.exists()


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_images_or_a_value_error(tmp_path_factory, changes):
    # The pixels themselves are few, so that the changes hit what is around them.
    pickled = bytearray(batch(array(ROWS[:1]), [7]))
    for place, value in changes:
        pickled[place if place < 250 else place - 401] = value
    folder = tmp_path_factory.getbasetemp()
    try:
        dataset = read_pickle(folder, bytes(pickled))
    except ValueError as error:
        assert "test_batch" in str(error)
    else:
        assert dataset[0]["image"].shape == (32, 32, 3) and 0 <= dataset[0]["label"] < 10


def test_members_of_other_folders_and_links_are_not_read(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("elsewhere/test_batch", "cifar-10-batches-py/more/test_batch"):
            member = tarfile.TarInfo(name)
            member.size = len(GOOD)
            tar.addfile(member, io.BytesIO(GOOD))
        link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    assert "holds no test files of CIFAR-10" in refused(path, split="test")
