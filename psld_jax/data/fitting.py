"""Bringing images of any size and colour to the size and channels that a network takes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

FITS = ("exact", "pad", "crop", "stretch")


class Fitting(NamedTuple):
    """How images ``[..., H, W, C]``, uint8 or float32 in [-1, 1], are brought to one shape; 0 leaves something as is.

    First the central ``center_crop`` square is cut out, then ``fit`` makes it ``image_size``, a square or ``(H, W)``:
    ``"exact"`` if it is so already, ``"pad"`` with black around it, ``"crop"`` resizing until it covers that and
    cutting what is over, ``"stretch"`` resizing both sides. Images that have not as many ``channels`` are made grey, or
    colour, if ``convert_channels`` is set.
    """

    image_size: int | tuple[int, int] = 0
    fit: str = "exact"
    center_crop: int = 0
    channels: int = 0
    convert_channels: bool = False

    def __call__(self, images: np.ndarray, where: str) -> np.ndarray:
        """Return the images as they should be; a ``ValueError`` starts with ``where``, the file.

        ``[..., H, W, C]`` to ``[..., *image_size, channels]``, same dtype.
        """
        images = self._recolour(images, where)
        height, width = images.shape[-3:-1]
        if self.center_crop:
            if min(height, width) < self.center_crop:
                raise ValueError(f"{where}: {height} x {width} pixels are too few for center_crop={self.center_crop}")
            images = _centre(images, self.center_crop)
            height = width = self.center_crop
        size = self.image_size
        to = size if isinstance(size, tuple) else (size, size)
        if not size or (height, width) == to:
            return images
        if self.fit == "exact":
            raise ValueError(
                f"{where}: {height} x {width} pixels, not image_size={size}; choose fit='pad', 'crop' or 'stretch'"
            )
        if self.fit == "stretch":
            return _resize(images, *to)
        if self.fit == "crop":
            # One side as it must be, the other at least so long, which a rounding must not change.
            scale = max(to[0] / height, to[1] / width)
            resized = (max(to[0], round(height * scale)), max(to[1], round(width * scale)))
            return _centre(_resize(images, *resized), *to)
        if height > to[0] or width > to[1]:
            raise ValueError(f"{where}: {height} x {width} pixels do not fit into image_size={size} by fit='pad'")
        black = 0 if images.dtype == np.uint8 else -1
        padded = np.full((*images.shape[:-3], *to, images.shape[-1]), black, images.dtype)
        _centre(padded, height, width)[...] = images
        return padded

    def _recolour(self, images: np.ndarray, where: str) -> np.ndarray:
        has = images.shape[-1]
        if self.channels in (0, has):
            return images
        if not self.convert_channels:
            raise ValueError(
                f"{where}: {has} channels, where channels={self.channels} is expected; set convert_channels=True to "
                "convert it"
            )
        if has == 1:
            return np.repeat(images, self.channels, axis=-1)
        if has != 3:
            raise ValueError(f"{where}: there is no way from {has} channels to channels={self.channels}")
        grey = images @ np.array([[0.299], [0.587], [0.114]], np.float32)  # ITU-R 601, as everyone does
        return np.rint(grey).astype(np.uint8) if images.dtype == np.uint8 else grey


def _centre(images: np.ndarray, height: int, width: int | None = None) -> np.ndarray:
    """Return a view of the central rectangle, square unless ``width`` is given."""
    width = height if width is None else width
    top, left = (images.shape[-3] - height) // 2, (images.shape[-2] - width) // 2
    return images[..., top : top + height, left : left + width, :]


def _resize(images: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = np.empty((*images.shape[:-3], height, width, images.shape[-1]), images.dtype)
    for at in np.ndindex(images.shape[:-3]):
        for c in range(images.shape[-1]):
            # Bicubic, which Pillow widens by the scale so that nothing aliases: it rings less than Lanczos, and is the
            # filter that data for Frechet distances are usually made with.
            plane = Image.fromarray(images[at][..., c]).resize((width, height), Image.Resampling.BICUBIC)
            resized[at][..., c] = np.asarray(plane)
    return resized if images.dtype == np.uint8 else resized.clip(-1, 1)  # it overshoots at edges
