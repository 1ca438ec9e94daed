"""A cache of converted checkpoints, so that those of other libraries can be opened as they are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from psld_jax._runtime.errors import why
from psld_jax.checkpoints.directory import read_index

from .conversion import convert, digest
from .origins import recognise

#: Changes whenever the same file would be converted to something else.
_VERSION = 4
#: Fields that say how a network is run, and not what is in the file.
_RUN_TIME = ("model.checkpoint", "model.dtype", "model.weights")
_READ = (".json", ".safetensors", ".bin")


def is_foreign(path: Path) -> bool:
    """Tell whether it is a file, or a directory that some origin recognises and that is not one of this package."""
    if path.is_file():
        return True
    if not path.is_dir() or (path / "index.json").is_file():
        return False
    try:
        recognise(path)
    except (ValueError, OSError):
        return False
    return True


def converted(path: Path, overrides: Mapping[str, Any], weights: str = "") -> Path:
    """Return the directory that ``path`` is converted to, in the user's cache. It is made if it is not there.

    Args:
      path: a file or directory that :func:`convert` takes.
      overrides: fields of the configuration by dotted name; those of ``model`` and ``sde`` say what the file does not.
      weights: ``ema`` or ``online``; empty: what the origin recommends.

    Raises:
      ValueError: as :func:`convert` does.
    """
    said = [f"{name}={value}" for name, value in overrides.items() if name.startswith(("model.", "sde."))]
    said = sorted(text for text in said if text.partition("=")[0] not in _RUN_TIME)
    files = _files(path)
    about = json.dumps([_VERSION, digest(path, files), said, weights])
    place = platformdirs.user_cache_path("psld_jax") / "converted" / hashlib.sha256(about.encode()).hexdigest()[:32]
    if not place.is_dir():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            convert(path, "", place, weights=weights or None, overrides=said)
        except ValueError:
            if not place.is_dir():  # or another process was quicker
                raise
        except OSError as error:
            if not place.is_dir():
                raise ValueError(
                    f"{path} cannot be converted into the cache {place.parent}: {why(error)}. Set XDG_CACHE_HOME to a "
                    "directory that can be written, or run python -m psld_jax.convert and open its output"
                ) from None
    try:
        read_index(place)
    except ValueError as error:  # what cleans caches may take single files
        raise ValueError(f"{error}. Remove {place}: then {path} is converted again") from None
    return place


def _files(path: Path) -> list[Path]:
    """Return what a conversion may read beside a file of weights, or in a directory; nothing for a file alone."""
    if path.is_file() and path.suffix not in _READ:
        return []
    root = Path(os.path.abspath(path if path.is_dir() else path.parent))
    if path.is_dir() or path.suffix == ".json":  # an index names files beside it
        around = [*root.glob("*"), *root.glob("*/*"), *(root.parent / "scheduler").glob("*")]
    else:
        around = [root / path.name, *root.glob("*.json"), *(root.parent / "scheduler").glob("*.json")]
    return sorted({file for file in around if file.suffix in _READ and file.is_file()})
