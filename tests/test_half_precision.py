"""States in bfloat16 and float16: as near to float32 as their rounding lets them be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj

HALF = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)


def cast(state, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), state)


def assert_equal(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


@HALF
def test_noise_is_that_of_float32_rounded(dtype, key):
    """In bfloat16 there were 128 numbers, of mean -0.012, and samples were of another noise than in float32."""
    sde = pj.sde.VPSDE()
    z = sde.prior_sample(key, (4, 1000), jnp.float32)
    assert_equal(sde.prior_sample(key, (4, 1000), dtype), cast(z, dtype))


@HALF
def test_samples_with_noise_are_near_those_of_float32(dtype, few_digits, key):
    table = pj.Setting("ancestral").table(few_digits.sde, 10)
    z = cast(few_digits.sde.prior_sample(key, (8, *few_digits.image_shape)), dtype)
    exact = pj.sample(few_digits.eps_fn, table, cast(z, jnp.float32), key)
    found = pj.sample(few_digits.eps_fn, table, z, key)
    off = np.sqrt(np.mean((np.asarray(found.x, np.float32) - exact.x) ** 2, axis=(1, 2, 3)))
    # Most images; rounding may lead one that is between two digits to the other one.
    assert found.x.dtype == dtype and np.median(off) < (0.05 if dtype == jnp.bfloat16 else 0.01)


@HALF
@pytest.mark.parametrize("t", [1.0, 2.0**-9])
def test_the_exact_score_is_that_of_float32_rounded(dtype, t, key, rng):
    """Exponents of thousands had errors of whole numbers, and above 65504 they were infinite in float16."""
    sde = pj.sde.VPSDE()
    eps_fn = pj.scores.mixture(rng.uniform(-1, 1, (50, 12, 12, 1)), 0.005, sde)
    z = cast(sde.prior_sample(key, (4, 12, 12, 1)), dtype)
    assert_equal(eps_fn(z, jnp.asarray(t, dtype)), cast(eps_fn(cast(z, jnp.float32), jnp.float32(t)), dtype))


def test_adaptive_solvers_solve_in_float32_and_round(few_digits, key):
    """In bfloat16 samples were NaN where the last time was rounded to an earlier one, and steps followed rounding."""
    model, options, dtype = few_digits, {"rtol": 1e-2, "atol": 1e-2}, jnp.bfloat16  # of which float16 shares the code
    z = cast(model.sde.prior_sample(key, (2, *model.image_shape)), dtype)
    found, nfe = pj.sample_ode(model.eps_fn, model.sde, z, **options)
    exact, expected = pj.sample_ode(model.eps_fn, model.sde, cast(z, jnp.float32), **options)
    assert_equal(found, cast(exact, dtype))
    np.testing.assert_array_equal(nfe, expected)
    images = cast(model.data[:2], dtype)
    found, exact = (pj.log_likelihood(model, x, draws=1, **options) for x in (images, cast(images, jnp.float32)))
    np.testing.assert_array_equal(found.nats, exact.nats)


@HALF
def test_known_pixels_may_be_in_half_precision(dtype, few_digits):
    """Those in bfloat16 were said to be no images."""
    table = pj.Setting("ddim").table(few_digits.sde, 4)
    images, mask = cast(few_digits.data[:2], dtype), np.eye(8)
    found, exact = (pj.known_pixels(few_digits.sde, table, x, mask) for x in (images, cast(images, jnp.float32)))
    assert_equal(found.x, cast(exact.x, dtype))
