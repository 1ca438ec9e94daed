"""Directories of image files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from psld_jax.data.source import Source, register

# What a file is called, and what it may hold: Pillow knows formats that start other programs.
EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
_SPLITS = {"train": ("train",), "test": ("test", "val")}


class CorruptImage(ValueError):
    """The content of a file is no image, or a damaged one."""


@register("folder")
def read_folder(path: Path, split: str, labels: bool) -> Source:
    """All image files below a directory but hidden ones, sorted by their relative paths; nothing is decoded yet.

    Raises:
      ValueError: with the place, if it is no directory, holds no images, or no classes though labels are needed.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no directory")
    found = {
        key: next((path / name for name in names if (path / name).is_dir()), None) for key, names in _SPLITS.items()
    }
    splits = [place for place in found.values() if place]
    # With train/ alone, a part of it can be held out; with a test split alone there is nothing to train on.
    root = (found[split] or found["train"]) if splits else path
    if root is None:
        raise ValueError(f"{path} has a subdirectory for the test split, but no train/")
    names = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.suffix.lower() in EXTENSIONS)
    names = [name for name in names if "/." not in f"/{name}" and (root / name).is_file()]
    if not names:
        raise ValueError(f"{root} holds no images: no file in it ends in {', '.join(EXTENSIONS)}")
    has_split, files = found["test"] is not None, [str(root / name) for name in names]
    if not labels:
        return Source(files, None, None, has_split, str(root))
    # Of both splits, so that a label means the same in each.
    classes = sorted({place.name for parent in splits or [root] for place in parent.iterdir() if place.is_dir()})
    classes = [name for name in classes if not name.startswith(".")]
    for name, file in zip(names, files, strict=True):
        if "/" not in name:
            raise ValueError(f"{file} is in no subdirectory, which would name its class; set labels=False, or move it")
    numbers = {name: number for number, name in enumerate(classes)}
    labelled = np.array([numbers[name.partition("/")[0]] for name in names], np.int32)
    return Source(files, labelled, tuple(classes), has_split, str(root))


def decode(file: str) -> np.ndarray:
    """The image uint8 ``[H, W, C]``, upright; grey has one channel, everything else three. Transparency is dropped.

    Raises:
      CorruptImage: if the file was read, but cannot be decoded.
      ValueError: if it cannot be read, or has numbers of more than 16 bits.
    """
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        # Never skipped: what a batch holds must not depend on the state of a disk.
        raise ValueError(f"{file} cannot be read: {error}") from None
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            image = ImageOps.exif_transpose(image)
            image.load()
    except Exception as error:  # Pillow's decoders raise almost anything when a file is damaged
        raise CorruptImage(
            f"{file} is corrupt or none of {', '.join(_FORMATS)}: {error}; remove it, or set on_corrupt='skip'"
        ) from None
    if image.mode.startswith("I;16"):
        return ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)[..., None]
    if image.mode in ("I", "F"):
        raise ValueError(f"{file} has numbers of 32 bits (Pillow's mode {image.mode}); convert it to 8 or 16 bits")
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))[..., None]
    if image.mode == "P":
        image = image.convert("RGBA")  # by itself, RGB would warn of a transparent colour
    return np.asarray(image.convert("RGB"))
