"""Reading files that hold whole data sets: IDX (MNIST), numpy arrays, and the embedded digits.

A reader takes the path, the split and whether labels are required. A ``ValueError`` names the file.
"""

from __future__ import annotations

import functools
import gzip
import math
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from psld_jax import assets
from psld_jax._runtime.errors import why
from psld_jax.data.source import Source, check_labels, register

DIGIT_NAMES = tuple("0123456789")
FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_MAX_IMAGES = 2**20  # in an IDX file; MNIST has 60,000
_MAX_CLASSES = 2**16
_MAX_CHANNELS = 4


@register("digits")
def read_digits(path: Path | None, split: str, labels: bool) -> Source:
    """Read the embedded digits, float32 in [-1, 1]. They have no test split."""
    images, numbers = assets.digits()
    return Source(images, numbers.astype(np.int32), DIGIT_NAMES, False, "the embedded digits")


def read_idx(path: Path, split: str, labels: bool, *, class_names: tuple[str, ...], title: str) -> Source:
    """Read a directory with the four IDX files of MNIST or Fashion-MNIST, compressed with gzip or not.

    Raises:
      ValueError: with the file's name, for one that is missing, cut off or damaged.
    """
    prefix = "train" if split == "train" else "t10k"
    images_file, images = _read_idx(path / f"{prefix}-images-idx3-ubyte", (28, 28), title)
    labels_file, numbers = _read_idx(path / f"{prefix}-labels-idx1-ubyte", (), title)
    if len(images) != len(numbers):
        raise ValueError(f"{images_file} has {len(images)} images, but {labels_file} has {len(numbers)} labels")
    check_labels(numbers, len(class_names), str(labels_file))
    return Source(images[..., None], numbers.astype(np.int32), class_names, True, str(images_file))


register("mnist")(functools.partial(read_idx, class_names=DIGIT_NAMES, title="MNIST"))
register("fashion_mnist")(functools.partial(read_idx, class_names=FASHION_NAMES, title="Fashion-MNIST"))


def _read_idx(path: Path, shape: tuple[int, ...], title: str) -> tuple[Path, np.ndarray]:
    """Return the file that was found, and its uint8 array ``[n, *shape]``."""
    found = next((file for file in (path, path.with_name(path.name + ".gz")) if file.is_file()), None)
    if found is None:
        raise ValueError(f"{path} (or .gz) is missing: the directory must hold the four IDX files of {title}")
    axes = 1 + len(shape)
    try:
        with gzip.open(found) if found.suffix == ".gz" else found.open("rb") as file:
            head = file.read(4 + 4 * axes)
            if len(head) < 4 + 4 * axes:
                raise ValueError(f"{found} is cut off: it ends within its header")
            magic, count, *rest = np.frombuffer(head, ">u4").tolist()
            if magic != 0x800 + axes:
                raise ValueError(f"{found} is no IDX file of bytes with {axes} axes: it starts with {magic:#010x}")
            if tuple(rest) != shape or not 0 < count <= _MAX_IMAGES:
                raise ValueError(f"{found} has the shape {(count, *rest)}; that of {title} is {('n', *shape)}")
            size = count * math.prod(shape)
            data = file.read(size + 1)  # one more would be too many
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{found} is cut off or damaged: {why(error)}") from None
    if len(data) != size:
        what = "is too long: more" if len(data) > size else f"is cut off: {len(data):,} bytes of data, fewer"
        raise ValueError(f"{found} {what} than the {size:,} that its header tells of")
    return found, np.frombuffer(data, np.uint8).reshape(count, *shape)


@register("arrays")
def read_arrays(path: Path, split: str, labels: bool) -> Source:
    """Read images of one shape from a .npy, which stays on disk, or from a .npz, maybe with labels.

    In a .npz they are ``images`` and ``labels``, or ``arr_0`` and ``arr_1`` as guided-diffusion writes them, or one
    array alone. Other arrays, such as its ``mu`` and ``sigma``, are left out.

    Raises:
      ValueError: with the file's name, for another kind of file, or arrays that are no images.
    """
    if not path.is_file() or path.suffix.lower() not in (".npy", ".npz"):
        hint = "; the data set 'folder' reads directories and .zip" if path.exists() else ""
        raise ValueError(f"{path} is no .npy or .npz file{hint}")
    numbers, left_out = None, ""
    try:
        if path.suffix.lower() == ".npy":
            images = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as archive:
                names = _names(archive.files)
                images, *rest = (archive[name] for name in names)
                numbers = rest[0] if rest else None
                left_out = ", ".join(name for name in archive.files if name not in names)
    except (ValueError, TypeError, OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{path} cannot be read: {why(error)}") from None
    shape = images.shape
    images = images[..., None] if images.ndim == 3 else images
    if (
        images.ndim != 4
        or not images.size
        or images.shape[-1] > _MAX_CHANNELS
        or images.dtype not in (np.uint8, np.float32)
    ):
        raise ValueError(
            f"{path} holds {images.dtype} of shape {shape}; uint8, or float32 in [-1, 1], of shape [n, H, W] or "
            f"[n, H, W, C] with at most {_MAX_CHANNELS} channels is needed"
        )
    if images.dtype == np.float32:
        low, high = 1.0, -1.0
        for start in range(0, len(images), 1024):  # not all at once: they may be more than the memory holds
            block = images[start : start + 1024]
            if not np.abs(block).max() <= 1:  # so written, NaN fails too
                raise ValueError(
                    f"{path} has values outside [-1, 1] (or NaN) among images {start} to {start + len(block) - 1}: "
                    "scale them"
                )
            low, high = min(low, float(block.min())), max(high, float(block.max()))
        if low >= 0 and high > 0.5:
            warnings.warn(
                f"{path} has values from {low:.4g} to {high:.4g}: if that is a range of 0 to 1, "
                "psld_jax.normalise(images, low=0, high=1) takes it to [-1, 1]",
                stacklevel=3,
            )
    if numbers is None:
        if labels:
            raise ValueError(f"{path} has no array 'labels' (or 'arr_1'), but labels=True asks for them")
        return Source(images, None, None, False, str(path), left_out=left_out and f"the arrays {left_out}")
    if numbers.shape != (len(images),) or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"{path} has labels {numbers.dtype} of shape {numbers.shape}; integers of shape {(len(images),)} are needed"
        )
    check_labels(numbers, _MAX_CLASSES, str(path))
    names = tuple(map(str, range(int(numbers.max()) + 1)))
    left_out = left_out and f"the arrays {left_out}"
    return Source(images, numbers.astype(np.int32), names, False, str(path), left_out=left_out)


def _names(files: list[str]) -> list[str]:
    """Return the names of the images and, if there are any, of the labels; a ``ValueError`` if that is unclear."""
    for images, labels in (("images", "labels"), ("arr_0", "arr_1")):
        if images in files:
            return [name for name in (images, labels) if name in files]
    others = [name for name in files if name != "labels"]
    if len(others) != 1:
        raise ValueError(f"its arrays are {', '.join(files) or 'none'}; one must be 'images' (or 'arr_0')")
    return others + ["labels"] * ("labels" in files)
