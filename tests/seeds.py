"""Random numbers that depend on a name alone: not on the order of tests, and not on how many numbers others took."""

import zlib

import jax
import numpy as np


def generator(name):
    """A generator for what has no fixture: constants of a module, which are made when it is imported."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def key(name):
    """The same for ``jax.random``."""
    return jax.random.key(zlib.crc32(name.encode()))
