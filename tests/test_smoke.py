"""The first thing a newcomer does, in the dtype a newcomer has."""

import jax
import numpy as np
import pytest

import psld_jax as pj


@pytest.fixture(scope="module")
def model():
    with jax.enable_x64(False):
        return pj.load("digits")


@pytest.mark.parametrize("name", pj.integrators.available())
def test_every_integrator_draws_digits(name, model):
    with jax.enable_x64(False):
        images = pj.generate(model, name, nfe=60, n=8, seed=1)
    assert images.shape == (8, 8, 8, 1) and images.dtype == np.float32
    # A digit is close to some training image: the smoothing alone is 0.05 a pixel, noise would be near 1.
    distance = np.sqrt(((images[:, None] - model.data[None]) ** 2).mean(axis=(2, 3, 4))).min(axis=1)
    assert np.median(distance) < 0.2


def test_unknown_sampler_names_the_nearest():
    with pytest.raises(ValueError, match="reduced_oba"):
        pj.integrators.get("reduced_obaa")
