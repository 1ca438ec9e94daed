"""Reading the reference numbers of neighbouring code bases (tests/golden_neighbours), in their layout and in ours."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from models_support import fill

from psld_jax.checkpoints.directory import flatten

DIRECTORY = Path(__file__).parent / "golden_neighbours"


def load(name):
    """The description (dict) and the arrays of one case."""
    return json.loads((DIRECTORY / f"{name}.json").read_text()), np.load(DIRECTORY / f"{name}.npz")


def nhwc(array):
    """``[..., C, H, W]`` to ``[..., H, W, C]``."""
    return np.moveaxis(array, -3, -1)


def filled(abstract, weights, dtype):
    """A network with converted weights, a nested dict, in a dtype."""
    arrays = {tuple(path.split("/")): jnp.asarray(array, dtype) for path, array in flatten(weights).items()}
    return fill(abstract, arrays)


def check(actual, expected, tolerance, what=""):
    """The largest difference over the largest value."""
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error < tolerance, f"{what}: {error:.2e}, not below {tolerance:.1e}"
