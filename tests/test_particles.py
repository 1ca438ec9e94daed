"""Particles against posteriors that are known: modes, Gaussians, and the digits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj
from psld_jax import scores
from psld_jax.evaluation.posterior import MixturePosterior, energy_distance


def model_of(points, bandwidth, sde, model):
    """The exact score of points that are smoothed."""
    eps_fn = scores.mixture(points, bandwidth, sde)
    return dataclasses.replace(model, sde=sde, eps_fn=eps_fn, image_shape=points.shape[1:], data=points)


POINTS = np.array([[1.0, -0.5], [-1.0, 0.5]]).reshape(2, 2, 1, 1)
FIRST = pj.operators.mask(np.array([[1], [0]]))


@pytest.mark.parametrize(
    ("sde", "weight"),
    [
        (pj.sde.VPSDE(), 1.0),
        pytest.param(pj.sde.VPSDE(), 0.0, marks=pytest.mark.slow),
        pytest.param(pj.sde.PSLD(), 1.0, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_modes_have_their_probability(digits_model, sde, weight):
    """Two points, one pixel measured to be 0.3 with noise 0.8; also without guidance, by the weights alone."""
    model = model_of(POINTS, 0.3, sde, digits_model)
    y = np.tile(np.float32([0.3, 0.0]).reshape(1, 2, 1, 1), (32, 1, 1, 1))
    options = {"noise_std": 0.8, "particles": 64, "nfe": 40, "weight": weight}
    found = pj.sample_posterior(model, FIRST, y, **options)
    shares = np.mean(found.images[..., 0, 0, 0] > found.images[..., 1, 0, 0], axis=1)
    logs = -0.5 * (0.3 - np.array([1.0, -1.0])) ** 2 / (0.3**2 + 0.8**2)
    exact = np.exp(logs[0]) / np.exp(logs).sum()
    # Four standard errors over 32 measurements, and 0.03 for 40 steps of first order.
    assert abs(shares.mean() - exact) < 4 * shares.std() / np.sqrt(len(y)) + 0.03
    assert found.nfe == 40 and found.backward == 39 and found.effective.shape == (40, 32)


@pytest.mark.parametrize("path", [pj.sde.Flow(), pytest.param(pj.sde.Cosine(), marks=pytest.mark.slow)], ids=str)
def test_particles_are_kept_where_the_grid_of_the_diffusion_is_uniform(few_digits, path):
    """Its last step would lose them: of 16, medians of 11 to 12 are seen on this grid, and 1 to 6 on a uniform one."""
    model = model_of(few_digits.data, 0.05, path, few_digits)
    means = pj.operators.downsample(2)
    y = np.asarray(means(jnp.asarray(model.data[:8], jnp.float32)))
    found = pj.sample_posterior(model, means, y, noise_std=0.05, particles=16, nfe=25)
    assert np.median(found.effective[-1]) > 7


@pytest.mark.slow
def test_exact_guidance_leaves_weights_equal(digits_model):
    """For pixels N(0, 1) PiGDM is exact: what weights tell apart is the error of the steps, and samples are right."""
    model = model_of(np.zeros((1, 2, 1, 1)), 1.0, pj.sde.VPSDE(), digits_model)
    y = np.tile(np.float32([0.8, 0.0]).reshape(1, 2, 1, 1), (32, 1, 1, 1))
    found = pj.sample_posterior(model, FIRST, y, noise_std=0.5, particles=64, nfe=40, threshold=0.0)
    assert found.effective.min() > 0.5 * 64
    x = found.images[..., 0, 0].reshape(-1, 2)
    # Images are clipped at 1, so medians; 1.25 sigma / sqrt(n) each, and 0.02 for 40 steps.
    assert abs(np.median(x[:, 0]) - 0.8 / 1.25) < 4 * 1.25 * np.sqrt(0.2) / np.sqrt(len(x)) + 0.02
    assert abs(np.median(x[:, 1])) < 4 * 1.25 / np.sqrt(len(x)) + 0.02


@pytest.mark.slow
def test_particles_of_digits_are_closer_than_guidance(digits_model, rng):
    """Six measurements of the upper half; guidance alone has the error of its Gaussian.

    Medians: all particles of a measurement may be lost to another digit, which 32 of them do now and then.
    """
    operator, count, n = pj.operators.mask(pj.operators.half_mask("top", digits_model.image_shape)), 6, 32
    truth = digits_model.data[rng.choice(len(digits_model.data), count, replace=False)]
    y = (np.asarray(operator(truth)) + 0.05 * rng.standard_normal(truth.shape)).astype(np.float32)
    law = MixturePosterior(digits_model.data, digits_model.config.model.bandwidth, operator, 0.05)
    exact = [law.sample(one, n, rng) for one in y]
    options = {"operator": operator, "noise_std": 0.05, "nfe": 40}
    found = pj.sample_posterior(digits_model, measurement=y, particles=n, **options).images
    guided = pj.generate(
        digits_model, "ancestral", n=count * n, measurement=np.repeat(y, n, axis=0), order=1, check=False, **options
    )
    guided = guided.reshape(found.shape)
    distance, plain = (np.median([energy_distance(*ab) for ab in zip(x, exact, strict=True)]) for x in (found, guided))
    assert distance < 0.2 * plain


def bent(images):
    return jnp.tanh(2 * images)


def test_particles_do_not_depend_on_what_jax_does_with_float64(digits_model):
    """Draws of the resampling had float64 where that is enabled, and so other bits."""
    model = model_of(POINTS, 0.3, pj.sde.VPSDE(), digits_model)
    found = []
    for x64, promotion in ((False, "strict"), (True, "strict"), (True, "standard")):
        with jax.enable_x64(x64), jax.numpy_dtype_promotion(promotion):
            y = np.asarray(FIRST(POINTS), np.float32)
            found.append(pj.sample_posterior(model, FIRST, y, particles=8, nfe=6, threshold=1.0))
    for other in found[1:]:
        # The table is the same; rounding of the score alone may differ.
        np.testing.assert_allclose(found[0].images, other.images, atol=1e-5)
        assert other.effective.dtype == np.float32


def test_particles_come_in_batches_of_one_program(few_digits):
    """Two measurements at a time: a third is drawn in a second batch, which is filled up, and changes nothing else."""
    means = pj.operators.downsample(2)
    y = np.asarray(means(jnp.asarray(few_digits.data[:3], jnp.float32)))
    options = {"particles": 4, "nfe": 6, "threshold": 1.0, "batch_size": 8}
    two, three = (pj.sample_posterior(few_digits, means, y[:count], **options) for count in (2, 3))
    assert three.images.shape == (3, 4, 8, 8, 1) and three.effective.shape == (6, 3)
    np.testing.assert_array_equal(three.images[:2], two.images)
    np.testing.assert_array_equal(three.effective[:, :2], two.effective)
    off = np.abs(np.asarray(means(three.images[2])) - y[:, None]).mean(axis=(1, 2, 3, 4))
    assert off.argmin() == 2


@pytest.mark.slow
def test_particles_are_a_function_of_the_seed_and_take_any_measurement(digits_model):
    model = model_of(POINTS, 0.3, pj.sde.VPSDE(), digits_model)
    y = np.asarray(bent(POINTS), np.float32)
    options = {"posterior": "dps", "noise_std": 0.2, "particles": 8, "nfe": 20}
    found = [pj.sample_posterior(model, bent, y, seed=seed, **options) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(found[0].images, found[1].images)
    assert np.abs(found[0].images - found[2].images).max() > 0.01
    # The measurement tells the two points apart.
    assert np.all(np.sign(found[0].images[:, :, 0, 0, 0]) == np.array([[1], [-1]]))
    with pytest.raises(ValueError, match="posterior='dps' takes any"):
        pj.sample_posterior(model, bent, y)
