"""Features in which distances between images are computed: their pixels, or those of a small classifier."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psld_jax import assets
from psld_jax._runtime.abstract import shapes_of
from psld_jax._runtime.errors import check_choice
from psld_jax._runtime.journal import in_one_go
from psld_jax.checkpoints import directory as checkpoint

Array = Any

#: Images are classified so many at a time.
_BATCH = 64


class ImageClassifier(nnx.Module):
    """A small convolutional classifier of clean square images with one channel; 159,000 parameters for 32 x 32 pixels.

    Four 3x3 convolutions (two with stride 2) and a mean over 2x2, then ``num_features`` features and the logits.
    It knows no noise and no time: it judges samples, and does not guide them.

    Args:
      n_classes: number of logits.
      num_features: width of the last hidden layer.
      image_size: pixels of a side, at least 5.
      rngs: stream ``params`` initialises.
    """

    def __init__(self, n_classes: int = 10, num_features: int = 64, *, image_size: int = 32, rngs: nnx.Rngs):
        side = -(-image_size // 4) // 2  # after two strides of 2, rounded up, and means over 2x2, rounded down
        self.conv_1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.conv_2 = nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs)
        self.conv_3 = nnx.Conv(64, 64, (3, 3), rngs=rngs)
        self.conv_4 = nnx.Conv(64, 64, (3, 3), strides=2, rngs=rngs)
        self.hidden = nnx.Linear(side * side * 64, num_features, rngs=rngs)
        self.out = nnx.Linear(num_features, n_classes, rngs=rngs)

    def features(self, images: Array) -> Array:
        """Return the last hidden layer before its nonlinearity: images ``[n, H, W, 1]`` to ``[n, d]``."""
        h = images
        for layer in (self.conv_1, self.conv_2, self.conv_3, self.conv_4):
            h = nnx.relu(layer(h))
        h = nnx.avg_pool(h, (2, 2), (2, 2))
        return self.hidden(h.reshape(len(h), -1))

    def __call__(self, images: Array) -> Array:
        """Return logits ``[n, n_classes]``."""
        return self.out(nnx.relu(self.features(images)))

    def save(self, path: Path) -> None:
        """Write the parameters to ``path``, a .npz.

        Raises:
          ValueError: if there is no directory for it, or it is one itself.
          OSError: if it cannot be written; no part of a file is left.
        """
        arrays = checkpoint.flatten(nnx.to_pure_dict(nnx.state(self, nnx.Param)))
        values: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
        with in_one_go(Path(path)) as place, place.open("wb") as file:
            np.savez(file, **values)

    @classmethod
    def open(cls, path: Path) -> ImageClassifier:
        """Open the classifier that :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        n_classes, num_features = arrays["out/bias"].shape[0], arrays["hidden/bias"].shape[0]
        size = 8 * math.isqrt(arrays["hidden/kernel"].shape[0] // 64)  # sizes of as many cells have the same arrays
        net = shapes_of(lambda rngs: cls(n_classes, num_features, image_size=size, rngs=rngs))
        graph, state = nnx.split(net)
        values = checkpoint.unflatten((name.split("/"), array) for name, array in arrays.items())
        nnx.replace_by_pure_dict(state, jax.device_put(values))  # jnp.asarray compiles a program for each shape
        return nnx.merge(graph, state)


@dataclasses.dataclass(frozen=True)
class Features:
    """A function of images ``[n, H, W, C]`` in [-1, 1] to features ``[n, d]``; :func:`features` makes those by name.

    Attributes:
      name: what reports call it.
      fn: the function, as JAX can trace it.
      image_shape: ``(H, W, C)`` that it takes, or ``None`` for any.
      takes_levels: whether it takes uint8 images, levels 0 to 255, as well.
    """

    name: str
    fn: Callable[[Array], Array]
    image_shape: tuple[int, ...] | None = None
    takes_levels: bool = False

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise a ``ValueError`` if these are no features of images of that shape."""
        if self.image_shape not in (None, tuple(image_shape)):
            raise ValueError(f"the features {self.name!r} are of images {self.image_shape}, not {tuple(image_shape)}")

    def __call__(self, images: Array) -> Array:
        """Return features ``[n, d]``: in batches for numpy arrays; JAX arrays can be traced and differentiated.

        Raises:
          ValueError: for images of another shape, or levels 0 to 255 if it does not take them.
        """
        self.check(images.shape[1:])
        if images.dtype == np.uint8 and not self.takes_levels:
            raise ValueError(f"the features {self.name!r} are of images in [-1, 1], which psld_jax.normalise makes")
        if isinstance(images, jax.Array):
            return self.fn(images)
        # Whole batches only, so that there is one program.
        starts, padding = range(0, len(images), _BATCH), [(0, -len(images) % _BATCH)] + [(0, 0)] * (images.ndim - 1)
        padded = np.pad(images, padding)
        parts = [np.asarray(self.fn(jnp.asarray(padded[start : start + _BATCH]))) for start in starts]
        return np.concatenate(parts)[: len(images)]


def judge(name: str) -> ImageClassifier:
    """Open a classifier of clean images that ships with the package: ``"mnist"``, 32 x 32 pixels.

    Raises:
      ValueError: for another name.
    """
    check_choice("classifier of images", name, assets.JUDGES)
    return _opened(name)


@functools.cache
def _opened(name: str) -> ImageClassifier:
    return ImageClassifier.open(assets.judge(name))


def features(name: str) -> Features:
    """Make features by name: ``"pixels"``, or those of a classifier that ships (:func:`judge`).

    Raises:
      ValueError: for another name.
    """
    check_choice("features", name, ("pixels", *assets.JUDGES))
    return _made(name)


@functools.cache  # one function for one name, so that programs made with it are made once
def _made(name: str) -> Features:
    if name == "pixels":
        return Features(name, lambda images: images.reshape(len(images), -1))
    return Features(name, jax.jit(judge(name).features), (32, 32, 1))
