"""Measurements and operators that cannot be: refused by name before anything is sampled, and what only looks wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj
from psld_jax._runtime.checks import check_measurement
from psld_jax.sampling.generate import prepare

HALF = pj.operators.mask(pj.operators.half_mask("top", (8, 8, 1)))
Y = np.zeros((1, 8, 8, 1), np.float32)


def fourier(images):
    return jnp.fft.fft2(images, axes=(1, 2))


def on_the_host(images):
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
    return jax.pure_callback(lambda x: np.asarray(x) * 0.5, shape, images)


def in_a_loop(images):
    return jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] * 0.5), (0, images))[1]


def as_it_is(images):
    return images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operator": fourier}, "complex64, .* such as real and imaginary parts"),
        ({"operator": fourier, "posterior": "dps"}, "complex64, .* such as real and imaginary parts"),
        ({"operator": HALF, "measurement": Y + 0j}, "give real and imaginary parts"),
        ({"operator": on_the_host}, "operator has no derivative, which guidance takes"),
        ({"operator": on_the_host, "posterior": "dps"}, "operator has no derivative, which guidance takes"),
        ({"operator": in_a_loop}, "operator has no derivative, which guidance takes"),
        ({"operator": as_it_is, "t_start": 0.5}, "t_start below 1 needs operator.pinv .* or leave t_start out"),
        ({"operator": jnp.tanh, "posterior": "dps", "t_start": 0.5}, "must be linear: .* leave t_start out"),
        ({"operator": HALF, "measurement": [[1.0], [1.0, 2.0]]}, "measurement must be one array"),
        ({"operator": HALF, "measurement": Y + 255}, "far from what operator gives .* of size"),
        ({"operator": HALF, "noise_std": 1e30}, "noise_std=1e.30 must be .* <= 1e.06"),
        ({"operator": HALF, "noise_std": 1e200, "posterior": "conjugate"}, "noise_std=1e.200 must be"),
    ],
)
def test_what_cannot_be_measured_is_said(few_digits, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        prepare(few_digits, nfe=4, **{"measurement": Y, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("posterior", ["pigdm", "dps"])
def test_particles_refuse_the_same(few_digits, posterior):
    for operator, y, message in (
        (fourier, Y, "such as real"),
        (on_the_host, Y, "no derivative"),
        (HALF, Y + 255, "far"),
    ):
        with pytest.raises(ValueError, match=message):
            pj.sample_posterior(few_digits, operator, y, posterior=posterior, particles=2, nfe=3)


def test_a_pull_of_levels_is_refused(few_digits):
    integrator = pj.integrators.get("exponential_multistep", order=1)
    table = pj.Setting("exponential_multistep", hyper={"order": 1}).table(few_digits.sde, 3)
    with pytest.raises(ValueError, match="far from what operator gives"):
        pj.measurement_pull(few_digits.sde, integrator, table, HALF, Y + 255, (8, 8, 1))


def test_measurements_may_be_as_large_as_what_the_operator_gives(few_digits):
    """Sums over many pixels, as tomography takes them, and measurements that are mostly noise."""

    def scaled_sum(images):
        return 100 * images.sum(axis=(1, 2, 3))

    assert prepare(few_digits, nfe=4, operator=scaled_sum, measurement=np.array([-6400.0, 3000.0])).nfe == 4
    assert prepare(few_digits, nfe=4, operator=HALF, measurement=Y + 2e4, noise_std=1e4).nfe == 4


def test_one_number_is_a_measurement():
    """The mean of one image, without an axis of images."""
    np.testing.assert_array_equal(check_measurement("measurement", np.float32(0.3)), np.array([0.3], np.float32))
