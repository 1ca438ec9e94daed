"""Files that a killed run finds whole: a journal of finished results, and files that are replaced in one go."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from psld_jax._runtime import distributed
from psld_jax._runtime.errors import shown, why


@contextlib.contextmanager
def in_one_go(path: Path) -> Iterator[Path]:
    """Yield a place to write to, which then becomes ``path``: a reader finds the old file or the new one, no part.

    What cannot be written, on a full disk for example, leaves nothing.

    Raises:
      ValueError: if there is no directory for it, or it is one itself.
      OSError: if it cannot be written; the message names ``path``.
    """
    if path.is_dir():
        raise ValueError(f"{path} cannot be written: it is a directory; give the name of a file")
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: {path.parent} is no directory; make it, or choose another place")
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _not_written(path, error) from error
        raise


def _not_written(path: Path, error: OSError) -> OSError:
    """Make the error that names ``path``, and what helps where the disk is full."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "; make room, and give the same command again: what was saved is not repeated" if full else ""
    return OSError(f"{path} cannot be written: {error.strerror or why(error)}{hint}")


def replace(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path``, as :func:`in_one_go` says.

    Raises:
      ValueError, OSError: likewise.
    """
    with in_one_go(path) as temporary:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            temporary.write_bytes(content)


def plain(value: Any) -> Any:
    """Turn numbers of numpy and JAX, also those in a dict or a sequence, into Python's, which JSON can hold."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return np.asarray(value).tolist() if hasattr(value, "__array__") else value


def check_directory(path: Path, what: str) -> None:
    """Raise a ``ValueError`` if a file is in the place of a directory, or above it."""
    in_the_way = next((place for place in (path, *path.parents) if place.exists() and not place.is_dir()), None)
    if in_the_way is not None:
        raise ValueError(f"{what}, {path}, cannot be made: {in_the_way} is a file; choose another place")


def fingerprint(arrays: Iterable[Any]) -> str:
    """Return sixteen digits that tell these arrays from others, by their shapes and values in float32; "" for none."""
    digest, some = hashlib.sha256(), False
    for array in map(np.asarray, arrays):  # the same weights in float64 are no other network
        digest.update(str(array.shape).encode() + array.astype(np.float32).tobytes())
        some = True
    return digest.hexdigest()[:16] if some else ""


def make_directory(path: Path, what: str) -> None:
    """Make a directory and its parents, or check that it is there and can be written to.

    Raises:
      ValueError: for a file in its place or above it, or no permission.
    """
    check_directory(path, what)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{what}, {path}, cannot be made: {error.strerror}; choose another place") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"{what}, {path}, cannot be written to; choose another place, or change its permissions")


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; a ``ValueError`` names the file if it is empty, cut off or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {why(error)}; remove it, or choose another directory") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} cannot be read: it holds no object of JSON; remove it, or choose another directory")
    return content


def check_same(what: str, found: dict[str, Any], about: dict[str, Any]) -> None:
    """Raise a ``ValueError`` that names what differs, if ``what`` depends on something else than ``about``."""
    if found != about:
        raise ValueError(f"{what} with {', '.join(_others(found, about))}; choose another directory, or remove it")


def _others(found: dict[str, Any], about: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Name the values that are others in ``about``, those of an inner object by themselves."""
    for key in (*about, *(key for key in found if key not in about)):
        old, new = found.get(key), about.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _others(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}={shown(old)}"


class Journal:
    """Results by key, in memory and in a file of JSON lines, so that a killed run does not repeat what it has written.

    Args:
      path: the file, made if it does not exist; ``None`` for memory only.
      about: what all results depend on; the first line of the file.
      what: what wrote it, for the message.

    Raises:
      ValueError: if the file holds results that depend on something else.
    """

    def __init__(self, path: str | os.PathLike[str] | None, about: dict[str, Any], what: str):
        path = None if path is None else Path(path)
        self._path, self._known = path, {}
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ValueError(f"the log {path} must be a file in a directory that exists")
        try:
            text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
        except UnicodeDecodeError:
            raise ValueError(f"{path} is damaged: it holds something else than {what} writes; remove it") from None
        lines = text.splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # a killed run may have cut off the last one
        if path is not None and len(whole) < len(lines) and distributed.is_first():
            replace(path, "".join(whole))
        if not whole:
            self._write(about)
            return
        try:
            found, *entries = map(json.loads, whole)
            known = {entry.pop("key"): entry for entry in entries}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} is damaged: it holds something else than {what} writes; remove it") from None
        check_same(f"{path} is of {what}", found, about)
        self._known = known

    def _write(self, entry: dict[str, Any]) -> None:
        if self._path is not None and distributed.is_first():
            try:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(plain(entry)) + "\n")
            except OSError as error:
                raise _not_written(self._path, error) from error

    def get(self, key: list[Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the known result for ``key``. If there is none, call ``make``, and write down what it returns."""
        name = json.dumps(plain(key), sort_keys=True)
        if name not in self._known:
            self._known[name] = make()
            self._write({"key": name, **self._known[name]})
        return self._known[name]
