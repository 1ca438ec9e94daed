"""Reading CIFAR-10 as it is distributed: pickles of Python 2, flat binary files, and archives of either."""

from __future__ import annotations

import gzip
import itertools
import pickletools
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from psld_jax._runtime.errors import why
from psld_jax.data.source import Source, check_labels, register

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}
_FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
_ARCHIVES = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
_PIXELS = 3 * 32 * 32
_MAX_ROWS = 10_000  # of a batch file, and there are that many in each
_MAX_BYTES = 2**25  # of a batch file, which has 31 million
_MAX_OPCODES = 500_000  # of a pickle, which has 40,000


@register("cifar10")
def read_cifar10(path: Path, split: str, labels: bool) -> Source:
    """Read CIFAR-10 from ``cifar-10-batches-py`` or ``-bin``, an archive of one, or a directory that holds them.

    Raises:
      ValueError: with the file's name, for one that is missing or damaged.
    """
    places = [path, *(path / name for name in (*_FOLDERS, *_ARCHIVES))]
    for place in places:
        files = _archived(place, split) if place.is_file() else _in_folder(place, split)
        if files:
            break
    else:
        raise ValueError(
            f"{path} holds no {split} files of CIFAR-10 ({_BATCHES[split][0]}, or with .bin): it must be "
            f"{' or '.join((*_FOLDERS, *_ARCHIVES))}, or a directory with one of them"
        )
    suffix = "" if any(name in files for name in _BATCHES[split]) else ".bin"
    images, numbers = [], []
    for name in _BATCHES[split]:
        where = f"{place}: {name}{suffix}"
        if name + suffix not in files:
            raise ValueError(f"{where} is missing")
        rows, classes = (_parse_binary if suffix else _parse_pickle)(files.pop(name + suffix), where)
        check_labels(classes, len(CLASS_NAMES), where)
        images.append(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        numbers.append(classes)
    return Source(np.concatenate(images), np.concatenate(numbers).astype(np.int32), CLASS_NAMES, True, str(place))


def _in_folder(folder: Path, split: str) -> dict[str, bytes]:
    files = {}
    for name in (batch + suffix for batch in _BATCHES[split] for suffix in ("", ".bin")):
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                files[name] = file.read(_MAX_BYTES)
    return files


def _archived(archive: Path, split: str) -> dict[str, bytes]:
    """Read CIFAR-10 from a .tar.gz, without extracting anything."""
    wanted = {batch + suffix for batch in _BATCHES[split] for suffix in ("", ".bin")}
    files = {}
    try:
        with gzip.open(archive) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    *_, folder, name = ("", *PurePosixPath(member.name).parts)[-2:]
                    if member.isfile() and folder in _FOLDERS and name in wanted and (file := tar.extractfile(member)):
                        files[name] = file.read(_MAX_BYTES)
            while stream.read(2**20):  # the checksum comes last
                pass
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise ValueError(f"{archive} is no .tar.gz of CIFAR-10, or is cut off or damaged: {why(error)}") from None
    return files


def _parse_binary(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    count, rest = divmod(len(content), 1 + _PIXELS)
    if rest or not 0 < count <= _MAX_ROWS:
        raise ValueError(
            f"{where} is cut off or no batch of CIFAR-10: {len(content)} bytes, not {1 + _PIXELS} for each of 1 to "
            f"{_MAX_ROWS} images"
        )
    rows = np.frombuffer(content, np.uint8).reshape(count, 1 + _PIXELS)
    return rows[:, 1:], rows[:, 0]


def _parse_pickle(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _describe(content)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is cut off or no batch of CIFAR-10; nothing in it was executed: {error}") from None
    data, labels = (batch.get(key) if type(batch) is dict else None for key in ("data", "labels"))
    if type(data) is not _Array or data.state is None or type(labels) is not list:
        raise ValueError(f"{where} is no batch of CIFAR-10: it has no array 'data' or no list 'labels'")
    match data.state:
        case (_, (int(count), int(width)), "u1", bool(by_columns), str(raw)):
            pass
        case _:
            raise ValueError(f"{where} is no batch of CIFAR-10: its data are no bytes with two axes")
    if width != _PIXELS or not 0 < count <= _MAX_ROWS or len(raw) != count * width:
        raise ValueError(
            f"{where} has {len(raw)} bytes of data for the shape {(count, width)}; 1 to {_MAX_ROWS} rows of {_PIXELS} "
            "are allowed"
        )
    if len(labels) != count or any(type(label) is not int or not 0 <= label < 2**15 for label in labels):
        raise ValueError(f"{where} has {len(labels)} labels for {count} images, or labels that are no class numbers")
    rows = np.frombuffer(raw.encode("latin-1"), np.uint8).reshape(count, width, order="F" if by_columns else "C")
    return rows, np.array(labels)


class _Name(str):
    """A global that the pickle mentions. Nothing is imported."""


class _Array:
    """An array that is not made yet: its state is ``(version, shape, dtype, whether by columns, data)``."""

    state: tuple[Any, ...] | None = None


_NAMES = ("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype")


def _describe(content: bytes) -> Any:
    """Return what a pickle of Python 2 describes, with arrays as :class:`_Array` and dtypes as their names.

    ``pickletools`` takes the pickle apart and executes nothing. Only the opcodes and names of the files of CIFAR-10 are
    known here, so nothing else can come of it, and no opcode costs more than its own bytes.

    Raises:
      ValueError, IndexError, KeyError, TypeError: for anything else.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        height = marks.pop()
        items = stack[height:]
        del stack[height:]
        return items

    for opcode, argument, _ in itertools.islice(pickletools.genops(content), _MAX_OPCODES):
        value: Any = argument
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                return stack[-1]
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "SHORT_BINSTRING" | "BINSTRING" | "BININT" | "BININT1" | "BININT2":
                stack.append(value)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(opcode.name[-1])
                stack[-n:] = [tuple(stack[-n:])]
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if opcode.name == "APPEND" else since_mark()
                if type(stack[-1]) is not list:
                    raise ValueError("it appends to something else than a list")
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(), stack.pop()][::-1] if opcode.name == "SETITEM" else since_mark()
                if type(stack[-1]) is not dict or any(type(key) is not str for key in items[::2]):
                    raise ValueError("it sets items of something else than a dict with strings as keys")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                if value not in _NAMES:
                    raise ValueError(f"it refers to {value.replace(' ', '.')[:80]}")
                stack.append(_Name(value))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if type(function) is not _Name or type(arguments) is not tuple or not arguments:
                    raise ValueError("it calls something else than a name with arguments")
                stack.append(arguments[0] if function == "numpy dtype" else _Array())
            case "BUILD":
                state, target = stack.pop(), stack[-1]
                if type(target) is _Array:
                    target.state = state
                elif type(target) is not str:  # a dtype: its state is its byte order, and bytes have none
                    raise ValueError("it sets the state of something else than an array")
            case _:
                raise ValueError(f"it uses the opcode {opcode.name}, which Python 2 did not write for it")
    raise ValueError(f"it has more than {_MAX_OPCODES} opcodes")
