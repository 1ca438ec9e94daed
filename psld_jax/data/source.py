"""What a reader of data returns, and how a reader gets a name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from psld_jax._runtime.registry import Registry
from psld_jax.data._archive import Member


class Source(NamedTuple):
    """Images and their labels as a reader found them.

    Attributes:
      images: uint8, or float32 in [-1, 1], ``[n, H, W, C]``; or the files to decode, which may be in an archive.
      labels: int32 ``[n]``, or ``None``.
      class_names: by label, or ``None``.
      has_split: whether there is a test split, so that these are the images of the split that was asked for.
      where: the file or directory, for messages.
      found: what was taken for splits and classes, where that was to be found out.
      left_out: what is there and was not taken, with counts.
    """

    images: np.ndarray | Sequence[str | Member]
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    has_split: bool
    where: str
    found: str = ""
    left_out: str = ""


#: Functions of a path, a split, and whether labels are needed.
READERS: Registry[Callable[..., Source]] = Registry("data set", "psld_jax.data")

Reader = TypeVar("Reader", bound=Callable[..., Source])


def register(name: str) -> Callable[[Reader], Reader]:
    """Decorator that makes ``read(path, split, labels)``, which returns a :class:`Source`, a ``config.data.name``.

    Raises:
      ValueError: when decorating, if the name is taken.
    """
    return READERS.register(name)


def available() -> tuple[str, ...]:
    """Return the names of all data sets, sorted."""
    return READERS.names()


def check_labels(labels: np.ndarray, classes: int, where: str) -> None:
    """Raise a ``ValueError`` unless all ``labels [n]`` are class numbers."""
    if not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"{where} has labels from {labels.min()} to {labels.max()}; 0 to {classes - 1} are allowed")
