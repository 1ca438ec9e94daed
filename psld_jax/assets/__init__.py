"""The data and networks that ship with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np

#: Trained networks, directories that :func:`psld_jax.load` opens; each has a model card, ``README.md``.
NETWORKS = ("mnist", "mnist_clf", "emoji")

#: Data sets with a classifier of clean images, :func:`psld_jax.metrics.judge`.
JUDGES = ("mnist", "fashion_mnist")

#: The samplers that were tuned for the digits' exact score.
DIGITS_SAMPLERS = Path(__file__).parent / "digits_samplers.json"


def network(name: str) -> Path:
    """Return the directory of a trained network."""
    return Path(__file__).parent / name


def judge(name: str) -> Path:
    """Return the file with the weights of a classifier of clean images."""
    return Path(__file__).parent / f"{name}_judge.npz"


def statistics(name: str) -> Path:
    """Return the file with mean and covariance of the features of a :func:`judge` over its 60,000 training images."""
    return Path(__file__).parent / f"{name}_statistics.npz"


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Load 1,797 handwritten digits (UCI): images float32 ``[1797, 8, 8, 1]`` in [-1, 1], labels int ``[1797]``."""
    with resources.files("psld_jax.assets").joinpath("digits.npz").open("rb") as file, np.load(file) as archive:
        images, labels = archive["images"], archive["labels"]
    return (images[..., None].astype(np.float32) / 8 - 1), labels.astype(np.int64)
