"""Reading files inside a zip archive without extracting them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

from psld_jax._runtime.errors import why

# What a damaged or unusual archive raises when a member is read.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


class Archive:
    """A zip archive that is opened when it is needed, so that it can be pickled for another process.

    Raises:
      ValueError: if the file is no zip archive, holds a name twice, or is encrypted.
    """

    def __init__(self, path: Path):
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        infos = self._open().infolist()
        if any(info.flag_bits & 1 for info in infos):
            raise ValueError(f"{path} is encrypted; make it again without a password")
        # Windows writes backslashes, and other tools begin names with "./".
        self.members = {info.filename.replace("\\", "/").removeprefix("./"): info.filename for info in infos}
        if len(self.members) < len(infos):
            raise ValueError(f"{path} holds {len(infos) - len(self.members)} names twice; make it again")

    def _open(self) -> zipfile.ZipFile:
        if self._zip is None:
            try:
                self._zip = zipfile.ZipFile(self.path)
            except (*_DAMAGED, OSError) as error:
                raise ValueError(f"{self.path} is no zip archive, or is cut off or damaged: {why(error)}") from None
        return self._zip

    def read(self, name: str, limit: int) -> bytes:
        """Read at most ``limit`` bytes of a member. Threads may call this together.

        Raises:
          OSError: if the disk fails.
          ValueError: if the member is damaged, or packed in a way that Python does not know.
        """
        try:
            with self._open().open(self.members[name]) as file:
                return file.read(limit)
        except _DAMAGED as error:
            raise ValueError(f"its entry in the archive is damaged: {why(error)}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}


class Member:
    """One file of an archive; its text is the archive's path and its own."""

    __slots__ = ("archive", "name")

    def __init__(self, archive: Archive, name: str):
        self.archive, self.name = archive, name

    def __str__(self) -> str:
        return f"{self.archive.path}/{self.name}"
