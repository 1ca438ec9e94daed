"""Reading pickles of persistent objects, as EDM and StyleGAN3 write them, without executing anything.

Such a file is one pickle of its own, not one of ``torch.save``. Each object in it is a record: the name of its class,
its state, and the Python source of a whole module, which the original executes. Here strings of such length are skipped
unread, and a record stays a description. Each tensor's storage is a bytes object that is itself a legacy
``torch.save`` file: it stays where it is until the tensor is read. So the limits count what describes the objects, not
the hundreds of megabytes of numbers between.

EDM's ``training-state-*.pt`` hold the same records in a zip archive of ``torch.save``, whose storages are its entries.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from psld_jax.checkpoints.archive import archive_entries, check_crc
from psld_jax.checkpoints.pickle_names import Opaque, StorageRef, TensorRef, clip
from psld_jax.checkpoints.pickle_vm import MAX_BYTES
from psld_jax.checkpoints.pickle_vm import _Machine as _PickleMachine
from psld_jax.checkpoints.reader import MAX_SHARING, open_legacy, read_view

#: Longer strings are source code, or nothing that is needed; longer bytes are storages.
_MAX_STRING, _MAX_RAW = 1000, 64
#: Bytes of a storage's file that may come before its data.
_MAX_HEAD = 4096
_SCALARS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


class Blob(NamedTuple):
    """A bytes object that stays in the file: ``size`` bytes from ``start`` on."""

    start: int
    size: int


class ScalarType(NamedTuple):
    """A type of numpy's scalars, little-endian; ``code`` as in ``numpy.dtype(code)``."""

    code: str


class Record:
    """An object of the file: the name of its class and its state, a dict."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: str, state: dict[Any, Any]):
        self.kind, self.state = kind, state


class _Window:
    """A file that consists of the bytes ``start`` to ``start + size`` of another file."""

    def __init__(self, file: BufferedReader | _Window, start: int, size: int):
        self._file, self._start, self._size, self._at = file, start, size, 0

    def seek(self, at: int) -> None:
        self._at = at

    def read(self, n: int) -> bytes:
        return self._taken(self._file.read, n)

    def readline(self, n: int) -> bytes:
        return self._taken(self._file.readline, n)

    def _taken(self, read: Callable[[int], bytes], n: int) -> bytes:
        self._file.seek(self._start + self._at)
        data = read(max(0, min(n, self._size - self._at)))
        self._at += len(data)
        return data


class _Machine(_PickleMachine):
    """A pickle machine that leaves long data in its file, and knows persistent records and numpy's scalars."""

    needs = (
        "which a file of networks does not need; nothing was executed. If you trust the file, load it where it was "
        "written and save the state dict of its network with torch.save"
    )

    def __init__(self, file: BufferedReader | _Window, size: int):
        super().__init__(b"", 0)
        self.file, self.end, self.left = file, size, MAX_BYTES
        file.seek(0)

    def take(self, n: int) -> bytes:
        if n > self.end - self.at or n > self.left:
            self.fail(f"it goes on for {n} bytes beyond its end or beyond the limit of {MAX_BYTES} bytes")
        data = self.file.read(n)
        if len(data) != n:
            self.fail("the file became shorter while it was read")
        self.at, self.left = self.at + n, self.left - n
        return data

    def line(self) -> str:
        data = self.file.readline(min(_MAX_STRING, self.left))
        self.at, self.left = self.at + len(data), self.left - len(data)
        if not data.endswith(b"\n"):
            self.fail("a name has no end")
        return self.text(data[:-1])

    def string(self, n: int) -> Any:
        return self.text(self.take(n)) if n <= _MAX_STRING else self.skip(n) and Opaque("a long string")

    def raw(self, n: int) -> Any:
        return self.take(n) if n <= _MAX_RAW else self.skip(n)

    def skip(self, n: int) -> Blob:
        if n > self.end - self.at:
            self.fail(f"it goes on for {n} bytes beyond its end")
        blob = Blob(self.at, n)
        self.at += n
        self.file.seek(self.at)
        return blob

    def build(self) -> None:
        state = self.pop()
        target = self.pop()
        if type(target) is Record and not target.state and type(state) is dict:
            target.state = state
        elif type(target) is ScalarType and type(state) is tuple and len(state) > 1 and state[1] in ("<", "|", "="):
            pass
        elif type(target) not in (dict, Opaque, TensorRef):
            self.fail(f"sets a state that does not fit a {type(target).__name__}")
        self.push(target)

    def record(self, meta: Any = None, *_: Any) -> Record:
        if type(meta) is not dict or meta.get("type") != "class" or type(meta.get("state")) is not dict:
            self.fail("a persistent object is no record of a class with its state")
        if type(name := meta.get("class_name")) is not str:
            self.fail("a persistent object does not name its class")
        return Record(name, meta["state"])

    def container(self, *_: Any) -> Record:
        return Record("ModuleDict", {})

    def scalar_type(self, code: Any = None, *_: Any) -> ScalarType:
        if code not in _SCALARS:
            self.fail(f"a numpy scalar is of type {clip(str(code))}; {', '.join(_SCALARS)} are accepted")
        return ScalarType(code)

    def scalar(self, kind: Any = None, data: Any = None, *_: Any) -> Any:
        if type(kind) is not ScalarType or type(data) is not bytes or len(data) != np.dtype(kind.code).itemsize:
            self.fail("a numpy scalar has not the bytes of its type")
        return np.frombuffer(data, "<" + kind.code)[0].item()

    def encoded(self, data: Any = None, encoding: Any = None, *_: Any) -> bytes:
        if type(data) is not str or encoding != "latin1":
            self.fail("bytes are not written as Python writes them in protocol 2")
        try:
            return data.encode("latin1")
        except UnicodeEncodeError:
            self.fail("bytes hold a character beyond 255")

    def storage(self, data: Any = None, *_: Any) -> StorageRef:
        if type(data) is not Blob:
            self.fail("a storage is not the bytes of a file")
        try:
            content, entries = open_legacy(_Window(self.file, *data), data.size, _MAX_HEAD)
        except ValueError as error:
            self.fail(f"in a storage: {error}")
        finally:
            self.file.seek(self.at)
        if type(content) is not StorageRef or list(entries) != [content.key]:
            self.fail("the file of a storage holds something else")
        if not content.dtype:
            self.fail("a storage is untyped: its tensors' type cannot be known")
        key = str(data.start + entries[content.key].start)  # where its numbers begin, in the whole file
        self.storages[key] = StorageRef(key, content.dtype, content.size)
        return self.storages[key]


_Machine.constructors = {
    **_PickleMachine.constructors,
    "torch_utils.persistence._reconstruct_persistent_obj": _Machine.record,
    "torch.nn.modules.container.ModuleDict": _Machine.container,
    "torch.storage._load_from_bytes": _Machine.storage,
    "_codecs.encode": _Machine.encoded,
    "dnnlib.util.EasyDict": _Machine.ordered_dict,
    "numpy.dtype": _Machine.scalar_type,
    "numpy.core.multiarray.scalar": _Machine.scalar,
    "numpy._core.multiarray.scalar": _Machine.scalar,
}


class _ArchiveMachine(_Machine):
    """A pickle machine for a zip archive, whose storages are entries of the archive."""

    def __init__(self, file: BufferedReader, size: int):
        head, self._archive, self._entries = archive_entries(file, size)
        self._file = file
        super().__init__(_Window(file, head.start, head.size), head.size)

    def persistent(self) -> None:
        super().persistent()
        key, dtype, size = self.pop()
        entry = self._entries.get(key)
        if entry is None or entry.size < size:
            self.fail(f"the storage {clip(key)} is missing or cut off")
        if not dtype:
            self.fail("a storage is untyped: its tensors' type cannot be known")
        start = str(entry.start)
        if start not in self.storages:
            check_crc(self._file, f"{self._archive}/data/{key}", entry)
        self.storages[start] = StorageRef(start, dtype, size)
        self.push(self.storages[start])


class PersistentPickle:
    """What a pickle of persistent objects describes, and the numbers in it. A context manager.

    Attributes:
      path: the file.
      content: dicts, lists, tuples, numbers, strings, :class:`Record` and :class:`TensorRef`.
    """

    def __init__(self, path: Path, file: BufferedReader):
        self.path, self._file = path, file
        size = os.fstat(file.fileno()).st_size
        #: ``"pickle"``, or ``"zip"`` for an archive of ``torch.save``.
        self.format = "zip" if file.read(2) == b"PK" else "pickle"
        machine = (_ArchiveMachine if self.format == "zip" else _Machine)(file, size)
        self.content = machine.run()
        self._left = MAX_SHARING * size

    def read(self, ref: TensorRef) -> np.ndarray:
        """Read the values of a tensor, C-contiguous, of its shape and dtype.

        Raises:
          ValueError: if the tensors read so far share storages without bound, or the file has become shorter.
        """
        dtype = np.dtype(ml_dtypes.bfloat16 if ref.dtype == "bfloat16" else ref.dtype)
        self._left -= math.prod(ref.shape) * dtype.itemsize
        if self._left < 0:
            raise ValueError(f"{self.path}: its tensors take more than {MAX_SHARING} times the file itself")

        def data(start: int, stop: int) -> bytes:
            self._file.seek(int(ref.storage.key) + start)
            raw = self._file.read(stop - start)
            if len(raw) != stop - start:
                raise ValueError(f"{self.path}: the file became shorter while it was read")
            return raw

        return read_view(ref, dtype, data)

    def __enter__(self) -> PersistentPickle:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_persistent(path: str | os.PathLike[str]) -> PersistentPickle:
    """Open a pickle of persistent objects, such as EDM's ``network-snapshot-*.pkl`` or ``training-state-*.pt``.

    Nothing from the file is executed. What describes the objects is bounded by 32 MiB and 2 million opcodes; tensors
    stay in the file until they are read.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: with the file's name and what is wrong, for anything that is damaged, or calls what is not needed.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        try:
            pickle = PersistentPickle(path, file)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        stack.pop_all()
    return pickle


def is_persistent(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file begins as such a pickle does: with the name of what makes persistent objects.

    In an archive of ``torch.save`` the pickle is the first entry.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(_MAX_HEAD)
    except OSError:
        return False
    return (head[:1] == b"\x80" or head[:2] == b"PK") and b"torch_utils.persistence" in head


def walk(record: Record) -> Iterator[tuple[str, Record]]:
    """Yield the modules of a network by dotted name. The network itself comes first, with the empty name.

    Raises:
      ValueError: for something else than a module among its modules, or modules nested more than 16 deep.
    """
    return _walk(record, "", 16)


def _walk(record: Record, name: str, depth: int) -> Iterator[tuple[str, Record]]:
    if type(record) is not Record or depth < 0:
        raise ValueError(f"{clip(name)} is no module, or too deep in others")
    yield name, record
    modules = record.state.get("_modules", {})
    if type(modules) is not dict:
        raise ValueError(f"{clip(name)} has modules that are no dict")
    for key, module in modules.items():
        if type(key) is not str:
            raise ValueError(f"{clip(name)} has a module whose name is no string")
        if module is not None:
            yield from _walk(module, f"{name}.{key}" if name else key, depth - 1)


def field(record: Record, name: str, default: Any = None) -> Any:
    """Return an attribute of an object: from its state, else from the arguments it was made with, else ``default``."""
    arguments = record.state.get("_init_kwargs")
    known = arguments if type(arguments) is dict else {}
    return record.state.get(name, known.get(name, default))
