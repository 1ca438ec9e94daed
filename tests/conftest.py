"""Tests run in float64 where they ask for it: the network side is exercised in float32 explicitly."""

import hypothesis
import jax
import pytest

import psld_jax as pj

jax.config.update("jax_enable_x64", True)
# Compilation makes the first example slow, and a busy machine any: time is no property of these. The default run is
# the same each time; the slow fuzzing draws anew.
hypothesis.settings.register_profile("psld_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("psld_jax")


@pytest.fixture(scope="session")
def digits_model():
    """The embedded digits with their exact score."""
    return pj.load("digits")
