"""Reading the tensors of a checkpoint written by torch.save, zip (since 1.6) or legacy, one at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from psld_jax._runtime.errors import why
from psld_jax.checkpoints.archive import Entry, archive_entries, check_crc, read_entry
from psld_jax.checkpoints.pickle_names import ITEM_SIZES, Opaque, TensorRef, clip
from psld_jax.checkpoints.pickle_vm import MAX_BYTES, unpickle
from psld_jax.checkpoints.pointers import check_fetched

_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
#: Tensors may share storages, but their bytes together are at most so many times the file's.
MAX_SHARING, _MAX_NAME = 8, 500
#: Names of state dicts one level down, of the weights and of their averages.
_ONLINE = ("model_state_dict", "model", "net", "network", "params", "module", "unet")
_EMA = ("ema", "ema_model", "ema_state_dict", "model_ema", "ema_params")
_PLAIN = (int, float, bool)
#: Of these score_sde_pytorch keeps no average: the table of noise levels, which VP does not use; fixed frequencies.
_SIGMAS, _FIXED = re.compile(r"(module\.)?sigmas"), re.compile(r"(module\.)?all_modules\.0\.W")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a state dict, still in the file.

    Attributes:
      name: its key in the state dict.
      shape, dtype: as saved.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    _ref: TensorRef = dataclasses.field(repr=False)
    _checkpoint: Checkpoint = dataclasses.field(repr=False)

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes, once read."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Read the values in the tensor's shape, C-contiguous and read-only, in the dtype of the file.

        Raises:
          ValueError: if the file is damaged there (the archive's checksum does not fit, or the file has shrunk).
        """
        key = self._ref.storage.key
        return read_view(self._ref, self.dtype, lambda start, stop: self._checkpoint.read_storage(key, start, stop))


def read_view(ref: TensorRef, dtype: np.dtype, read: Callable[[int, int], bytes]) -> np.ndarray:
    """Return what ``ref`` describes, of its shape, C-contiguous; ``read(start, stop)`` gives bytes of its storage."""
    size = dtype.itemsize
    if not math.prod(ref.shape):
        return np.zeros(ref.shape, dtype)
    last = ref.offset + sum((n - 1) * stride for n, stride in zip(ref.shape, ref.strides, strict=True))
    flat = np.frombuffer(read(ref.offset * size, (last + 1) * size), dtype)
    strides = [stride * size for stride in ref.strides]
    return np.asarray(np.lib.stride_tricks.as_strided(flat, ref.shape, strides, writeable=False), order="C")


class Checkpoint(Mapping[str, Tensor]):
    """The state dict of a checkpoint: an ordered mapping from names to :class:`Tensor`. A context manager.

    Attributes:
      path: the file.
      format: ``"zip"`` or ``"legacy"``.
      layout: ``"state_dict"``, or ``"score_sde"`` for that of score_sde_pytorch, where the names of the averages,
        ``ema.*``, are those of the model's parameters in the same order.
      metadata: the numbers and short strings beside the state dict, e.g. ``epoch`` and ``global_step``.
      left_out: names in the state dict that stand for plain numbers or a table that no network here uses.

    Raises:
      ValueError: if the file is none that ``torch.save`` wrote, is damaged, or holds anything but tensors.
    """

    def __init__(self, path: Path, file: BufferedReader):
        self.path, self._file = path, file
        self._checked: set[str] = set()
        check_fetched(file)
        file_size = os.fstat(file.fileno()).st_size
        head = file.read(4)
        if head[:2] == b"PK":
            self.format = "zip"
            content, self._storages = _open_zip(file, file_size)
        elif head[:1] == b"\x80":
            self.format = "legacy"
            content, self._storages = open_legacy(file, file_size)
        else:
            raise ValueError(
                f"it starts with {head!r}: neither a zip archive nor a pickle, so torch.save did not write it"
            )
        state, self.metadata, self.layout = _state_dict(content)
        plain = {name for name, value in state.items() if type(name) is str and type(value) in _PLAIN}
        self.left_out = tuple(sorted(plain | {name for name in _tables(content) if self.layout == "score_sde"}))
        self._tensors = {name: self._tensor(name, value) for name, value in state.items() if name not in plain}
        if not self._tensors:
            raise ValueError("its state dict holds no tensors")
        total = sum(tensor.nbytes for tensor in self.values())
        if total > MAX_SHARING * file_size:
            raise ValueError(f"its tensors would take {total} bytes, more than {MAX_SHARING} times the file itself")

    def _tensor(self, name: Any, ref: Any) -> Tensor:
        if type(name) is not str or len(name) > _MAX_NAME:
            raise ValueError(f"a key of its state dict is not a string of at most {_MAX_NAME} characters")
        if type(ref) is not TensorRef:
            what = f"an object made by {ref.name}" if type(ref) is Opaque else f"a {type(ref).__name__}"
            raise ValueError(f"state_dict[{clip(name)}] is {what}; only tensors are accepted")
        key, _, size = ref.storage
        if key not in self._storages:
            raise ValueError(f"the data of {clip(name)} are missing: there is no storage {clip(key)}")
        if self._storages[key].size < size:
            raise ValueError(
                f"the data of {clip(name)} are cut off: storage {clip(key)} should have {size} bytes and has "
                f"{self._storages[key].size}"
            )
        dtype = np.dtype(ml_dtypes.bfloat16 if ref.dtype == "bfloat16" else ref.dtype)
        return Tensor(name, ref.shape, dtype, ref, self)

    def read_storage(self, key: str, start: int, stop: int) -> bytes:
        """Read bytes ``start`` to ``stop`` of a storage. Its checksum is compared the first time.

        Raises:
          ValueError: if the checksum does not fit, or the file has become shorter.
        """
        entry = self._storages[key]
        if key not in self._checked:
            with _naming(self.path):
                check_crc(self._file, f"data/{key}", entry)
            self._checked.add(key)
        self._file.seek(entry.start + start)
        raw = self._file.read(stop - start)
        if len(raw) != stop - start:
            raise ValueError(f"{self.path}: the file became shorter while it was read")
        return raw

    def sha256(self) -> str:
        """Return the hexadecimal digest of the whole file."""
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Tensors cannot be read any more."""
        self._file.close()


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file begins as those of ``torch.save`` do: as a zip archive or a pickle."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        head = file.read(2)
    return head == b"PK" or head[:1] == b"\x80"


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint: a bare state dict, one level down (``state_dict``, ``model``, ...), or of score_sde_pytorch.

    Nothing from the file is executed, whatever it says. The tensors stay in the file until they are read; the rest is
    bounded by 32 MiB of pickle, 2 million opcodes and 200,000 archive entries.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: with the file's name and what is wrong with it, for anything that is not such a checkpoint, is
        damaged, or mentions names that no state dict needs.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        with _naming(path):
            checkpoint = Checkpoint(path, file)
        stack.pop_all()
    return checkpoint


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {why(error)}") from None


def _open_zip(file: BinaryIO, file_size: int) -> tuple[Any, dict[str, Entry]]:
    """Return what the archive's pickle describes, and its storages by key."""
    head, root, storages = archive_entries(file, file_size)
    content, _, _ = unpickle(read_entry(file, f"{root}/data.pkl", head, MAX_BYTES))
    return content, storages


def open_legacy(file: Any, file_size: int, max_head: int = MAX_BYTES) -> tuple[Any, dict[str, Entry]]:
    """Open the format before torch 1.6: five pickles, in ``max_head`` bytes, then size and data of storages.

    ``file`` needs to ``seek`` from its start and ``read``.

    Raises:
      ValueError: for a file that is damaged, or written on a big-endian machine.
    """
    file.seek(0)
    head = file.read(max_head)
    magic, at, _ = unpickle(head)
    if magic != _LEGACY_MAGIC:
        raise ValueError("it is a pickle without the magic number of torch.save")
    protocol, at, _ = unpickle(head, at)
    system, at, _ = unpickle(head, at)
    if protocol != _LEGACY_PROTOCOL or type(system) is not dict or system.get("little_endian") is not True:
        raise ValueError(f"only protocol {_LEGACY_PROTOCOL} from a little-endian machine is accepted")
    content, at, refs = unpickle(head, at)
    keys, at, _ = unpickle(head, at)
    if type(keys) is not list or any(type(key) is not str or key not in refs for key in keys):
        raise ValueError("its list of storages does not fit its tensors")
    if len(set(keys)) != len(keys):
        raise ValueError("its list of storages names one twice")
    storages: dict[str, Entry] = {}
    for key in keys:
        ref = refs[key]
        file.seek(at)
        numel, at = int.from_bytes(file.read(8), "little", signed=True), at + 8
        if numel != ref.size // ITEM_SIZES.get(ref.dtype, 1) or at + ref.size > file_size:
            raise ValueError(
                f"storage {clip(key)} should have {ref.size} bytes of data; the file says {numel} elements and "
                f"{max(file_size - at, 0)} bytes are left"
            )
        storages[key] = Entry(at, ref.size, None)
        at += ref.size
    if at != file_size:
        raise ValueError(f"{file_size - at} bytes follow its end")
    return content, storages


def _state_dict(content: Any) -> tuple[dict[Any, Any], dict[str, Any], str]:
    """Return the state dict inside what was saved, the plain values beside it, and the layout."""
    if type(content) is not dict:
        raise ValueError(f"it holds a {type(content).__name__}; a state dict, or a dict with one, is accepted")
    if "state_dict" in content:
        state, layout = content["state_dict"], "state_dict"
        if type(state) is not dict or not state:
            raise ValueError("its state_dict is not a dict with tensors")
    elif any(type(value) is TensorRef for value in content.values()):
        return content, {}, "state_dict"
    elif nested := _nested(content):
        state, layout = nested, "state_dict"
    elif "model" in content or "ema" in content:
        state, layout = _score_sde(content), "score_sde"
    else:
        names = ", ".join(clip(str(key), 40) for key in list(content)[:10])
        raise ValueError(f"it has no state_dict and is none: its keys are {names or 'missing'}")
    metadata = {}
    for key, value in content.items():
        plain = type(value) in (int, float, bool) or (type(value) is str and len(value) <= _MAX_NAME)
        if type(key) is str and len(key) <= _MAX_NAME and plain:
            metadata[key] = value
    return state, metadata, layout


def _nested(content: dict[Any, Any]) -> dict[Any, Any]:
    """Return the state dicts one level down by their usual names; those of averages become ``ema.*``."""
    ema = content.get("ema")
    if type(ema) is dict and "shadow_params" in ema:
        return {}
    state: dict[Any, Any] = {}
    for keys, prefix in ((_ONLINE, ""), (_EMA, "ema.")):
        found = [content[key] for key in keys if type(content.get(key)) is dict]
        found = [value for value in found if any(map(_is_weight, value.items()))]
        if len(found) > 1:
            raise ValueError(f"it has {len(found)} state dicts among {', '.join(keys)}; one is accepted")
        for name, value in found[0].items() if found else ():
            state[f"{prefix}{name}" if type(name) is str else name] = value
    return state


def _is_weight(item: tuple[Any, Any]) -> bool:
    name, value = item
    return type(value) is TensorRef and type(name) is str and name.rpartition(".")[2] in ("weight", "bias", "W", "b")


def _tables(content: dict[Any, Any]) -> list[str]:
    model = content.get("model")
    return [str(name) for name in model if _SIGMAS.fullmatch(str(name))] if type(model) is dict else []


def _score_sde(content: dict[Any, Any]) -> dict[Any, Any]:
    """Return the model's parameters and, as ``ema.*``, their averages: a nameless list in the model's order."""
    model, ema = content.get("model"), content.get("ema")
    averages = ema.get("shadow_params") if type(ema) is dict else None
    if type(model) is not dict or not model:
        raise ValueError("it has no model, a dict of tensors, as checkpoints of score_sde_pytorch have")
    if type(averages) is not list:
        raise ValueError("it has no ema.shadow_params, a list of tensors, as checkpoints of score_sde_pytorch have")
    state = {name: ref for name, ref in model.items() if not _SIGMAS.fullmatch(str(name))}
    averaged = {str(name): ref for name, ref in state.items() if not _FIXED.fullmatch(str(name))}
    if len(averages) != len(averaged):
        raise ValueError(
            f"its ema.shadow_params has {len(averages)} tensors for the {len(averaged)} parameters of its model"
        )
    for i, (name, ref) in enumerate(averaged.items()):
        found = averages[i]
        if type(ref) is type(found) is TensorRef and ref.shape != found.shape:
            raise ValueError(
                f"its ema.shadow_params[{i}] has shape {found.shape}, and {clip(name)}, the model's parameter in that "
                f"place, {ref.shape}: they are not in one order"
            )
        state[f"ema.{name.removeprefix('module.')}"] = found
    return state
