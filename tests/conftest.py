"""Tests run in float64 where they ask for it: the network side is exercised in float32 explicitly."""

import jax
import pytest

import psld_jax as pj

jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="session")
def digits_model():
    """The embedded digits with their exact score."""
    return pj.load("digits")
