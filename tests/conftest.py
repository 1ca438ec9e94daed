"""Tests run in float64 where they ask for it: the network side is exercised in float32 explicitly."""

import zlib

import hypothesis
import jax
import numpy as np
import pytest

import psld_jax as pj

jax.config.update("jax_enable_x64", True)
# Compilation makes the first example slow, and a busy machine any: time is no property of these. The default run is
# the same each time; the slow fuzzing draws anew.
hypothesis.settings.register_profile("psld_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("psld_jax")


@pytest.fixture
def rng(request):
    """A generator of the test's own: its numbers depend on the test's name, and not on which tests ran before."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def key(request):
    """The same for ``jax.random``."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def digits_model():
    """The embedded digits with their exact score."""
    return pj.load("digits")
