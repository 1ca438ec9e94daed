"""Reading the tensors of a ``.safetensors`` file, one at a time; nothing in the file can be executed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from psld_jax.checkpoints.pickle_names import clip
from psld_jax.checkpoints.pointers import check_fetched

MAX_HEADER = 32 * 2**20
MAX_TENSORS = 200_000
_MAX_NAME = 500
_MAX_AXES = 16
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class SafeTensor:
    """One tensor, still in the file.

    Attributes:
      name: its name there.
      shape, dtype: as saved.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    _start: int = dataclasses.field(repr=False)
    _file: SafeTensors = dataclasses.field(repr=False)

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes, once read."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Read the values in the tensor's shape, read-only, in the dtype of the file.

        Raises:
          ValueError: if the file has become shorter.
        """
        return np.frombuffer(self._file.read(self._start, self.nbytes), self.dtype).reshape(self.shape)


class SafeTensors(Mapping[str, SafeTensor]):
    """A ``.safetensors`` file: an ordered mapping from names to :class:`SafeTensor`. A context manager.

    Attributes:
      path: the file.
      metadata: the strings beside the tensors.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged, or its header is larger than ``MAX_HEADER``.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        with contextlib.ExitStack() as stack:
            self._file: BufferedReader = stack.enter_context(self.path.open("rb"))
            try:
                self.metadata, self._tensors = self._open()
            except ValueError as error:
                raise ValueError(f"{self.path}: {error}") from None
            stack.pop_all()

    def _open(self) -> tuple[dict[str, str], dict[str, SafeTensor]]:
        check_fetched(self._file)
        total = os.fstat(self._file.fileno()).st_size
        size = int.from_bytes(self._file.read(8), "little")
        if total < 8 or size > total - 8 or size > MAX_HEADER:
            raise ValueError(
                f"it says that its header has {size} bytes; it has {total} in all, and at most {MAX_HEADER} are read"
            )
        header = _parse(self._file.read(size))
        metadata = header.pop("__metadata__", {})
        if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
            raise ValueError("its __metadata__ is not a table of strings")
        if len(header) > MAX_TENSORS:
            raise ValueError(f"it has {len(header)} tensors; at most {MAX_TENSORS} are read")
        tensors, spans = {}, []
        for name, entry in header.items():
            dtype, shape, start, end = _entry(name, entry)
            if not 0 <= start <= end <= total - 8 - size or end - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(
                    f"{clip(name)}, {dtype} {shape}, is said to be at bytes {start} to {end} of "
                    f"{total - 8 - size}: the file is damaged or cut off"
                )
            tensors[name] = SafeTensor(name, shape, dtype, 8 + size + start, self)
            spans.append((start, end))
        spans.sort()
        if any(end > following for (_, end), (following, _) in zip(spans, spans[1:], strict=False)):
            raise ValueError("two of its tensors overlap")
        return metadata, tensors

    def read(self, start: int, size: int) -> bytes:
        """Read ``size`` bytes of the file from ``start`` on.

        Raises:
          ValueError: if it has become shorter.
        """
        self._file.seek(start)
        raw = self._file.read(size)
        if len(raw) != size:
            raise ValueError(f"{self.path}: the file became shorter while it was read")
        return raw

    def sha256(self) -> str:
        """Return the hexadecimal digest of the whole file."""
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    def __getitem__(self, name: str) -> SafeTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __enter__(self) -> SafeTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Tensors cannot be read any more."""
        self._file.close()


def _parse(raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("its header has a name twice")
        return table

    try:
        header = json.loads(raw, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"its header is no JSON: {error}") from None
    if type(header) is not dict:
        raise ValueError("its header is no table")
    return header


def _entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    if len(name) > _MAX_NAME:
        raise ValueError(f"the name {clip(name)} has more than {_MAX_NAME} characters")
    if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{clip(name)} is not described by dtype, shape and data_offsets")
    kind, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(kind) is not str or kind not in _DTYPES:
        raise ValueError(f"{clip(name)} has dtype {clip(str(kind))}; {', '.join(_DTYPES)} are accepted")
    for numbers, most in ((shape, _MAX_AXES), (span, 2)):
        if type(numbers) is not list or len(numbers) > most or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"{clip(name)} has a shape or data_offsets that are no list of a few whole numbers")
    if len(span) != 2:
        raise ValueError(f"{clip(name)} has data_offsets that are not two")
    return np.dtype(_DTYPES[kind]), tuple(shape), span[0], span[1]
