"""Finding the entries of a checkpoint's zip container in the file. Nothing is ever extracted.

Only what torch.save writes is accepted (stored entries, zip64 or not), so no entry can be larger than the file.
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO, NamedTuple, NoReturn

from psld_jax.checkpoints.pickle_names import clip

MAX_ENTRIES = 200_000
_MAX_DIRECTORY = 64 * 2**20
_CHUNK = 2**20
_FLAGS = 1 << 3 | 1 << 11  # sizes follow the data; names are UTF-8
_SENTINEL = 2**32 - 1  # the true number is in the zip64 field


class Entry(NamedTuple):
    """One stored file: its bytes are ``file[start : start + size]``; ``crc`` is ``None`` if there is no checksum."""

    start: int
    size: int
    crc: int | None


def list_entries(file: BinaryIO, file_size: int) -> dict[str, Entry]:
    """Return the entries of a zip file by name.

    Raises:
      ValueError: for a damaged archive; an entry that is compressed, encrypted, outside the file or overlapping
        another; names that leave the archive's folder or occur twice.
    """
    count, size, start = _find_directory(file, file_size)
    if count > MAX_ENTRIES or size > _MAX_DIRECTORY:
        _fail(f"its directory has {count} entries in {size} bytes; at most {MAX_ENTRIES} in {_MAX_DIRECTORY} are read")
    directory, at = _read(file, start, size, file_size), 0
    entries: dict[str, Entry] = {}
    extents: list[tuple[int, int]] = []
    for _ in range(count):
        if len(directory) < at + 46 or directory[at : at + 4] != b"PK\1\2":
            _fail("its directory is damaged")
        flags, method = struct.unpack_from("<2H", directory, at + 8)
        crc, packed, full, n, extra, comment = struct.unpack_from("<3I3H", directory, at + 16)
        (header,) = struct.unpack_from("<I", directory, at + 42)
        raw, fields = directory[at + 46 : at + 46 + n], directory[at + 46 + n : at + 46 + n + extra]
        full, packed, header = _zip64(fields, full, packed, header)
        at += 46 + n + extra + comment
        name = _check_name(raw)
        if flags & ~_FLAGS or method or packed != full:
            _fail(f"{clip(name)} is compressed or encrypted; torch.save stores entries as they are")
        if name in entries:
            _fail(f"{clip(name)} occurs twice")
        local = _read(file, header, 30, start)
        if local[:4] != b"PK\3\4" or _read(file, header + 30, n, start) != raw:
            _fail(f"{clip(name)} has a header that disagrees with the directory")
        data = header + 30 + n + struct.unpack_from("<H", local, 28)[0]
        if data + full > start:
            _fail(f"{clip(name)} has {full} bytes, which reach beyond the end of the data")
        entries[name] = Entry(data, full, crc)
        extents.append((header, data + full))
    if at != size:
        _fail("its directory is damaged")
    extents.sort()
    if any(end > following for (_, end), (following, _) in zip(extents, extents[1:], strict=False)):
        _fail("entries overlap")
    return entries


def check_crc(file: BinaryIO, name: str, entry: Entry) -> None:
    """Compare an entry with its checksum, in bounded memory; raise a ``ValueError`` if they differ."""
    if entry.crc is None:
        return
    file.seek(entry.start)
    crc, left = 0, entry.size
    while chunk := file.read(min(left, _CHUNK)):
        crc, left = zlib.crc32(chunk, crc), left - len(chunk)
    if left or crc != entry.crc:
        _fail(f"{clip(name)} does not have the checksum that was stored with it: the file is damaged")


def archive_entries(file: BinaryIO, file_size: int) -> tuple[Entry, str, dict[str, Entry]]:
    """Return the pickle of an archive of ``torch.save``, the name of its folder, and the storages by key.

    Raises:
      ValueError: as :func:`list_entries`; for an archive of something else, or of a big-endian machine.
    """
    entries = list_entries(file, file_size)
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        _fail(f"it has {len(roots)} entries FOLDER/data.pkl; torch.save writes one")
    root = roots[0]
    if f"{root}/constants.pkl" in entries:
        _fail("it is a TorchScript program; torch.save(model.state_dict(), FILE) writes what is accepted")
    order = f"{root}/byteorder"
    if order in entries and read_entry(file, order, entries[order], 16) != b"little":
        _fail("it was written on a big-endian machine, which is not accepted")
    prefix = f"{root}/data/"
    storages = {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}
    return entries[f"{root}/data.pkl"], root, storages


def read_entry(file: BinaryIO, name: str, entry: Entry, limit: int) -> bytes:
    """Return the bytes of an entry; raise a ``ValueError`` if they are more than ``limit`` or the checksum differs."""
    if entry.size > limit:
        _fail(f"its entry {clip(name)} has {entry.size} bytes; at most {limit} are accepted")
    check_crc(file, name, entry)
    file.seek(entry.start)
    return file.read(entry.size)


def _fail(reason: str) -> NoReturn:
    raise ValueError(f"the zip archive is not accepted: {reason}")


def _read(file: BinaryIO, start: int, size: int, limit: int) -> bytes:
    if start + size > limit:
        _fail("it is cut off, or points beyond its end")
    file.seek(start)
    return file.read(size)


def _check_name(raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        _fail(f"the name {raw[:80]!r} is not UTF-8")
    parts = name.split("/")
    if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        _fail(f"the name {clip(name)} does not stay inside the archive")
    return name


def _find_directory(file: BinaryIO, file_size: int) -> tuple[int, int, int]:
    """Return number of entries, size and start of the directory."""
    tail_start = max(0, file_size - 22 - 2**16)
    tail = _read(file, tail_start, file_size - tail_start, file_size)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        _fail("it has no end record: the file is cut off")
    disk, first, here, count, size, start, comment = struct.unpack_from("<4H2IH", tail, at + 4)
    end = tail_start + at
    if disk or first or here != count or at + 22 + comment != len(tail):
        _fail("its end record is damaged or spans several files")
    if end >= 20:
        magic, _, record, _ = struct.unpack("<4sIQI", _read(file, end - 20, 20, file_size))
        if magic == b"PK\6\7":
            magic, here, count, size, start = struct.unpack("<4s20x4Q", _read(file, record, 56, file_size))
            if magic != b"PK\6\6" or here != count:
                _fail("its zip64 end record is damaged")
            end = record
    if start + size != end:
        _fail("its directory is not where the end record says")
    return count, size, start


def _zip64(fields: bytes, *numbers: int) -> list[int]:
    """Replace the numbers (size, packed size, header) that did not fit by those of the zip64 field."""
    at, extended = 0, b""
    while at + 4 <= len(fields):
        kind, size = struct.unpack_from("<2H", fields, at)
        if kind == 1:
            extended = fields[at + 4 : at + 4 + size]
        at += 4 + size
    result, at = [], 0
    for number in numbers:
        if number == _SENTINEL:
            if len(extended) < at + 8:
                _fail("a zip64 field is missing")
            (number,) = struct.unpack_from("<Q", extended, at)
            at += 8
        result.append(number)
    return result
