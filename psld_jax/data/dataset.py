"""Sets of images with one interface, opened by name."""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from psld_jax._runtime.checks import check_flag
from psld_jax._runtime.errors import check_choice, check_kind, is_count, shown
from psld_jax.data.fitting import FITS, Fitting
from psld_jax.data.folder import CorruptImage, decode
from psld_jax.data.source import READERS, Source

SPLITS = ("train", "test")
ON_CORRUPT = ("error", "skip")


class Dataset:
    """Images by number, as ``grain`` takes them; :func:`open_dataset` makes one.

    ``dataset[i]`` is ``{"image": uint8 [H, W, C], or float32 in [-1, 1] if the files hold floats, "label": int32}``;
    the label is -1 if there are none.

    Attributes:
      image_shape: ``(H, W, C)`` of every image.
      class_names: by label, or ``None`` if there are no labels.
    """

    def __init__(self, title: str, source: Source, numbers: np.ndarray, fitting: Fitting, on_corrupt: str):
        self._title, self._source, self._numbers, self._on_corrupt = title, source, numbers, on_corrupt
        self._bad: set[int] = set()  # positions of files that could not be decoded
        self.class_names = source.class_names
        # The first image decides what is left open; all others are compared with it.
        image, at = self._decode(0)
        self._fitting = fitting._replace(channels=fitting.channels or image.shape[-1])
        self.image_shape: tuple[int, int, int] = self._fitting(image, self._where(at)).shape

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        images, labels = self.gather(np.array([i % len(self)]))
        return {"image": images[0], "label": labels[0]}

    def gather(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return images ``[n, H, W, C]`` and labels int32 ``[n]`` at these positions, from 0 to ``len(self) - 1``."""
        images, labels = self._source.images, self._source.labels
        if isinstance(images, np.ndarray):
            fitted = self._fitting(images[self._numbers[positions]], self._source.where)
        else:
            fitted = np.empty((len(positions), *self.image_shape), np.uint8)
            positions = positions.copy()
            for k, position in enumerate(positions):
                image, positions[k] = self._decode(position)
                fitted[k] = self._fit(image, positions[k])
        if labels is None:
            return fitted, np.full(len(positions), -1, np.int32)
        return fitted, labels[self._numbers[positions]]

    @property
    def skipped(self) -> int:
        """Number of corrupt files that were skipped so far."""
        return len(self._bad)

    def describe(self) -> str:
        """Return one line for a log, e.g. ``mnist train: 60,000 images 32 x 32 x 1, 10 classes``."""
        classes = "no labels" if self.class_names is None else f"{len(self.class_names)} classes"
        found = f"; {self._source.found}" if self._source.found else ""
        return f"{self._title}: {len(self):,} images {' x '.join(map(str, self.image_shape))}, {classes}{found}"

    @property
    def left_out(self) -> str:
        """Describe what lies beside the images and was not taken, with counts; empty if that is nothing."""
        return self._source.left_out

    def _where(self, position: int) -> str:
        images = self._source.images
        return self._source.where if isinstance(images, np.ndarray) else str(images[self._numbers[position]])

    def _fit(self, image: np.ndarray, position: int) -> np.ndarray:
        fitted = self._fitting(image, self._where(position))
        if fitted.shape != self.image_shape:
            sizes = [" x ".join(map(str, shape[:2])) for shape in (fitted.shape, self.image_shape)]
            raise ValueError(
                f"{self._where(position)}: {sizes[0]} pixels, but the first image has {sizes[1]}; set image_size, and "
                "fit='crop', 'pad' or 'stretch'"
            )
        return fitted

    def _decode(self, position: int) -> tuple[np.ndarray, int]:
        """Return an image as it is, and its position: the next one that can be read, if corrupt ones are skipped."""
        images = self._source.images
        if isinstance(images, np.ndarray):
            return images[self._numbers[position]], position
        for offset in range(len(self)):
            at = (int(position) + offset) % len(self)
            if at in self._bad:
                continue
            try:
                return decode(images[self._numbers[at]]), at
            except CorruptImage:
                if self._on_corrupt == "error":
                    raise
                self._bad.add(at)
        raise ValueError(f"{self._source.where}: none of the {len(self)} images can be read")


def open_dataset(
    name: str,
    path: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    image_size: int | tuple[int, int] = 0,
    fit: str = "exact",
    center_crop: int = 0,
    channels: int = 0,
    convert_channels: bool = False,
    on_corrupt: str = "error",
    holdout: float = 0.0,
    num_points: int = 0,
    labels: bool = False,
) -> Dataset:
    """Open a set of images, from files that are already there.

    Args:
      name: ``"digits"`` (embedded, without a path); ``"mnist"`` and ``"fashion_mnist"`` (a directory with the four IDX
        files, with or without .gz); ``"cifar10"`` (a directory with the Python or binary version, or the .tar.gz);
        ``"arrays"`` (a .npy or .npz); ``"folder"`` (a directory or .zip of images, searched recursively; its
        subdirectories ``train``, and ``test`` or ``val``, are the splits if they exist, in any spelling; a warning
        says what else lies there, once).
      path: the directory or file.
      split: ``"train"`` or ``"test"``.
      image_size: height and width of the result, one number or ``(H, W)``; 0 leaves the images as they are.
      fit: how to get there: ``"exact"`` changes nothing, ``"pad"`` puts black around, ``"crop"`` resizes the short side
        and cuts the long one, ``"stretch"`` resizes both.
      center_crop: the side of the central square to cut out before that; 0 cuts nothing.
      channels: 1 or 3; 0 takes what the first image has.
      convert_channels: make colour images grey, or grey ones colour, where ``channels`` differs.
      on_corrupt: ``"error"``, or ``"skip"`` to put the next readable image in the place of a corrupt file.
      holdout: the fraction of a set without a test split that makes up its ``"test"``; always the same images.
      num_points: only the first so many; 0 takes all.
      labels: require labels; of a folder, those in its ``dataset.json``, or the names of subdirectories as classes.

    Raises:
      ValueError: for options out of range, and with the file's name for one that is missing, damaged or unfit. Images
        in a folder are decoded, and their sizes compared, when they are asked for.
    """
    reader = READERS[name]
    check_choice("split", split, SPLITS)
    check_choice("fit", fit, FITS)
    check_choice("on_corrupt", on_corrupt, ON_CORRUPT)
    size: Any = image_size
    if isinstance(image_size, (tuple, list)):
        size = tuple(image_size)
        if len(size) != 2 or not all(is_count(side) for side in size):
            raise ValueError(f"image_size={image_size!r} must be a whole number, or two: (H, W)")
    for option, value in (
        ("image_size", max(size) if isinstance(size, tuple) else size),
        ("center_crop", center_crop),
        ("num_points", num_points),
    ):
        if not is_count(value, 0):
            raise ValueError(f"{option}={value!r} must be a whole number, or 0 for none")
    check_flag("labels", labels)
    check_flag("convert_channels", convert_channels)
    if not is_count(channels, 0) or channels not in (0, 1, 3):
        raise ValueError(f"channels={channels!r} must be 1, 3, or 0 for what the images have")
    known = isinstance(holdout, (int, float, np.integer, np.floating)) and not isinstance(holdout, bool)
    if not known or not 0 <= holdout < 1:
        raise ValueError(f"holdout={shown(holdout)} must be a fraction of at least 0 and less than 1")
    if fit != "exact" and not image_size:
        raise ValueError(f"fit={fit!r} needs image_size")
    check_kind("path", path, (str, os.PathLike, type(None)), "the directory or file of the images, as text or a path")
    if name == "digits" and path:
        raise ValueError(f"the digits are embedded and take no path, not {str(path)!r}")
    if name != "digits" and not path:
        raise ValueError(f"the data set {name!r} needs the path of its files")
    fitting = Fitting(
        size if isinstance(size, tuple) else int(size), fit, int(center_crop), int(channels), bool(convert_channels)
    )
    source = reader(Path(path) if path else None, split, labels=labels)
    numbers = _split(source, split, float(holdout))
    if num_points > len(numbers):
        raise ValueError(f"num_points={num_points} is more than the {len(numbers)} {split} images of {source.where}")
    dataset = Dataset(f"{name} {split}", source, numbers[: int(num_points) or None], fitting, on_corrupt)
    _tell(source.left_out and f"{path}: left out {source.left_out}. Taken: {dataset.describe()}")
    return dataset


@functools.cache
def _tell(what: str) -> None:
    """Warn, once in a process: train and test are often opened one after the other."""
    if what:
        warnings.warn(what, UserWarning, stacklevel=3)


def _split(source: Source, split: str, holdout: float) -> np.ndarray:
    """Return which of the images belong to the split, in their order."""
    count = len(source.images)
    if source.has_split:
        if holdout:
            raise ValueError(f"{source.where} is of a set with a test split of its own: leave out holdout={holdout}")
        return np.arange(count)
    if split == "test" and not holdout:
        raise ValueError(f"{source.where} has no test split: set holdout, e.g. 0.1, to keep a tenth of it for testing")
    # Not the user's seed, or test images of one run would be training images of another; and a generator whose numbers
    # numpy promises never to change.
    held_out = np.random.RandomState(0).permutation(count) < round(holdout * count)
    numbers = np.flatnonzero(held_out == (split == "test"))
    if not len(numbers):
        raise ValueError(f"holdout={holdout} of the {count} images of {source.where} leaves none for {split!r}")
    return numbers
