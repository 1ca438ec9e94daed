"""Reading image files from directories and zip archives."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from psld_jax._runtime.errors import why
from psld_jax.data._archive import Archive, Member
from psld_jax.data._scan import scan
from psld_jax.data.source import Source, register

# Pillow knows formats that start other programs; these do not.
_FORMATS = ("BMP", "JPEG", "PNG", "WEBP", "GIF", "TIFF")
# Of which a file may hold many images. In a JPEG others are previews.
_ANIMATED = ("GIF", "PNG", "TIFF", "WEBP")
_MAX_BYTES = 2**28  # of a file in an archive; what is packed may become a thousand times larger


class CorruptImage(ValueError):
    """The content of a file is no image, or a damaged one."""


@register("folder")
def read_folder(path: Path, split: str, labels: bool) -> Source:
    """Find all image files below a directory or in a zip archive, sorted by relative path. Nothing is decoded yet.

    Labels are those of a ``dataset.json`` (EDM, StyleGAN), or the names of subdirectories. Files that were left out are
    described in :class:`psld_jax.data.source.Source`.

    Raises:
      ValueError: with the place, if it is neither, holds no images, or no classes though labels are needed.
    """
    if path.is_file():
        if path.suffix.lower() in (".npy", ".npz"):
            raise ValueError(f"{path} is no directory or .zip: the data set 'arrays' reads it")
        archive = Archive(path)
        files = [name for name in archive.members if not name.endswith("/")]
        directories = [name.rstrip("/") for name in archive.members if name.endswith("/")]
        found = scan(files, directories, lambda name: archive.read(name, _MAX_BYTES), str(path), split, labels)
        images = [Member(archive, name) for name in found.names]
    else:
        if not path.is_dir():
            raise ValueError(f"{path} is no directory or .zip" + ("" if path.exists() else "; it does not exist"))
        files, directories, broken = _walk(path)
        found = scan(files, directories, lambda name: (path / name).read_bytes(), str(path), split, labels, broken)
        images = [f"{path}/{name}" for name in found.names]
    where = f"{path}/{found.root}".rstrip("/")
    return Source(images, found.labels, found.class_names, found.has_split, where, found.found, found.left_out)


def _walk(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Return files, directories and broken links below ``path``. Links are followed, except those that lead back."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}")

    files, directories, broken = [], [], []
    for folder, inside, names in os.walk(path, followlinks=True, onerror=refuse):
        here = os.path.realpath(folder)
        inside[:] = [
            name
            for name in inside
            if not os.path.islink(link := os.path.join(folder, name))
            or os.path.commonpath([here, os.path.realpath(link)]) != os.path.realpath(link)
        ]
        relative = Path(folder).relative_to(path).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        directories += [prefix + name for name in inside]
        # A broken link, or a pipe, is no file.
        files += [prefix + name for name in names if os.path.isfile(os.path.join(folder, name))]
        broken += [prefix + name for name in names if not os.path.exists(os.path.join(folder, name))]
    return files, directories, broken


def decode(file: str | Member) -> np.ndarray:
    """Decode an image to uint8 ``[H, W, C]``, upright: one channel if grey, else three. Transparency is dropped.

    Raises:
      CorruptImage: if the file was read, but cannot be decoded.
      ValueError: if it cannot be read, holds several images, or has numbers of more than 16 bits.
    """
    try:
        content = file.archive.read(file.name, _MAX_BYTES) if isinstance(file, Member) else Path(file).read_bytes()
    except OSError as error:
        # Never skipped: what a batch holds must not depend on the state of a disk.
        raise ValueError(f"{file} cannot be read: {why(error)}") from None
    except ValueError as error:
        raise CorruptImage(f"{file} is corrupt: {why(error)}; remove it, or set on_corrupt='skip'") from None
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            frames = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
            image = ImageOps.exif_transpose(image)
            image.load()
    except Exception as error:  # Pillow's decoders raise almost anything when a file is damaged
        # Of a file that it does not know, Pillow tells the address in memory.
        reason = "" if isinstance(error, UnidentifiedImageError) or not content else f": {why(error)}"
        what = "empty" if not content else f"corrupt or none of {', '.join(_FORMATS)}"
        raise CorruptImage(f"{file} is {what}{reason}; remove it, or set on_corrupt='skip'") from None
    if frames > 1:
        raise ValueError(f"{file} holds {frames} images (an animation, or pages); save those that are meant one by one")
    if image.mode.startswith("I;16"):
        return ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)[..., None]
    if image.mode in ("I", "F"):
        raise ValueError(f"{file} has numbers of 32 bits (Pillow's mode {image.mode}); convert it to 8 or 16 bits")
    if image.mode in ("1", "L", "LA", "La"):
        return np.asarray(image.convert("L"))[..., None]
    if image.mode == "P":
        image = image.convert("RGBA")  # by itself, RGB would warn of a transparent colour
    try:
        return np.asarray(image.convert("RGB"))
    except ValueError:
        raise ValueError(f"{file} has colours that cannot be made RGB (mode {image.mode}); convert it") from None
