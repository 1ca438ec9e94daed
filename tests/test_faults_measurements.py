"""Measurements and operators that cannot be: refused by name before anything is sampled, and what only looks wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj
from psld_jax import build
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


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("ddim", {"posterior": "conjugate"}, "'ddim'.*does not"),
        ("rk45", {"clip": 1.0, "clip_noise": "old"}, "defined for the steps of a table"),
        ("RVV", {"clip": 1.0, "clip_noise": "old"}, "told apart for one block"),
    ],
)
def test_a_sampler_is_prepared_with_conditions_that_it_takes_alone(few_digits, sampler, options, message):
    """They were found when the first batch was drawn."""
    measured = {"operator": HALF, "measurement": Y} if "posterior" in options else {}
    with pytest.raises(ValueError, match=message):
        prepare(few_digits, sampler, nfe=4, **measured, **options)


def test_scales_of_cfg_pp_are_at_most_1(few_digits):
    model = dataclasses.replace(few_digits, sde=pj.sde.VPSDE())
    options = {"operator": HALF, "measurement": Y, "guidance_rule": "cfg++"}
    assert prepare(model, "ddim", nfe=4, weight=1.0, **options).nfe == 4
    with pytest.raises(ValueError, match="weight=4.0 must be at most 1"):
        prepare(model, "ddim", nfe=4, weight=4.0, **options)
    with pytest.raises(ValueError, match="null_weight=4.0 must be at most 1"):
        prepare(model, "ddim", nfe=4, null_weight=4.0, posterior="conjugate", **options)


def test_a_late_start_is_not_called_an_analytic_one(few_digits):
    """The start that was tuned gives way to that of the measurement, also in words."""
    late = prepare(few_digits, nfe=4, operator=HALF, measurement=Y, t_start=0.5)
    assert late.table.times[0] == 0.5 and "analytic start" not in late.setting.describe()
    assert "analytic start" in prepare(few_digits, nfe=4, operator=HALF, measurement=Y).setting.describe()


def test_a_file_of_words_is_no_mask(tmp_path):
    np.save(tmp_path / "words.npy", np.full((8, 8), "left"))
    fields = {"data.num_points": 20, "sampling.num_samples": 2, "steer.mask": str(tmp_path / "words.npy")}
    config = build.override(build.load_config("digits"), fields)
    with pytest.raises(ValueError, match="must hold 1 .known. and 0 only, got dtype <U4"):
        build.steer_options(config, build.build_model(config))


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
