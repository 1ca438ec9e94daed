"""A soft teacher: where the noise of a student moves to, and that learning uses it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import linear_eps

import psld_jax as pj
from psld_jax.tuning._soft import moved

EPS = jax.tree_util.Partial(linear_eps)
TABLE = pj.Setting("ddim").table(pj.sde.PSLD(), 4)


def _pixels(x):
    return x


def _ends(z):
    return np.asarray(pj.sample(linear_eps, TABLE, z)[0])


@pytest.fixture
def sde():
    return pj.sde.PSLD()


def test_a_start_comes_to_the_goal_of_a_linear_sampler_in_one_step(sde, key):
    """Its samples are linear in the noise, pixel by pixel, so steepest descent in the metric of the noise is exact."""
    z, other = (sde.prior_sample(k, (3, 2, 2, 1)) for k in jax.random.split(key))
    with jax.enable_x64(True):
        z, goal = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), z), _ends(other)
        found = moved(EPS, TABLE, z, goal, jnp.asarray(sde.prior_cov()), 100.0, _pixels)
        # Rounding of float64; the samples are of order 1.
        np.testing.assert_allclose(_ends(found), goal, atol=1e-10)


@pytest.mark.parametrize("radius", [0.01, 0.1])
def test_a_start_stays_within_the_radius(sde, key, radius):
    """The step is as long as it may be where the goal is far, and leads nearer to it."""
    z, other = (sde.prior_sample(k, (3, 2, 2, 1)) for k in jax.random.split(key))
    goal = _ends(other) + 10.0
    found = moved(EPS, TABLE, z, goal, jnp.asarray(sde.prior_cov(), jnp.float32), radius, _pixels)
    shift = np.stack([np.asarray(new) - np.asarray(old) for new, old in zip(found, z, strict=True)], axis=-1)
    white = shift @ np.linalg.inv(np.linalg.cholesky(sde.prior_cov())).T
    # float32, of numbers that are of order 1 beside shifts of 0.01.
    np.testing.assert_allclose(np.sqrt(np.mean(white**2, axis=(1, 2, 3, 4))), radius, rtol=1e-3)
    before, after = (np.abs(_ends(start) - goal).mean() for start in (z, found))
    assert after < before


def test_a_start_at_its_goal_stays(sde, key):
    z = sde.prior_sample(key, (3, 2, 2, 1))
    found = moved(EPS, TABLE, z, _ends(z), jnp.asarray(sde.prior_cov(), jnp.float32), 0.1, _pixels)
    for new, old in zip(found, z, strict=True):
        np.testing.assert_array_equal(np.asarray(new), np.asarray(old))


@pytest.mark.slow
def test_learning_with_a_soft_teacher_helps_where_no_noise_moves(few_digits):
    """Times that the network is told, three numbers: the report is of noise that stays where it is."""
    options = {"free": ("tau",), "history": 1, "num_samples": 64, "batch_size": 64, "iterations": 3}
    found = pj.learn(few_digits, 4, pj.Setting("ddim"), soft=0.03, **options)
    assert found.better
    assert found.solver.about["soft"] == 0.03


def test_a_stochastic_sampler_has_no_soft_teacher(few_digits):
    with pytest.raises(ValueError, match="leave soft out"):
        pj.learn(few_digits, 4, pj.Setting("ancestral"), soft=0.1, num_samples=32, batch_size=32)
