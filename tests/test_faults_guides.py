"""Guides and operators that are made by hand: what cannot be meant is refused in one line when it is made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj

NAN = float("nan")
SDE = pj.sde.VPSDE()
HALF = pj.operators.mask(pj.operators.half_mask("top", (8, 8, 1)))
LABELS = np.array([1])
RAGGED = [[1], [1, 2]]


def eps_fn(z, t):
    del t
    return z


class Labelled:
    """A network that takes labels, and makes nothing of them."""

    def with_labels(self, labels):
        del labels
        return self

    def __call__(self, z, t):
        return eps_fn(z, t)


#: Of each function, a call that works and wrong values of its arguments.
NO_FUNCTION, NUMBERS, SDES = (None, "x", 3), ("x", NAN, {}, 10**400, RAGGED), (None, "vpsde", 3)
POSITIVE = (*NUMBERS, None, 0.0, -1.0, True, [1.0])
CASES = {
    "posterior_guided": (
        pj.scores.posterior_guided,
        {"eps_fn": eps_fn, "sde": SDE, "operator": HALF, "measurement": np.zeros((1, 8, 8, 1))},
        {
            "eps_fn": NO_FUNCTION,
            "sde": SDES,
            "operator": NO_FUNCTION,
            "measurement": (None, "x", RAGGED, np.full((1, 8, 8, 1), NAN)),
            "noise_std": POSITIVE,
            "data_std": POSITIVE,
            "scale": NUMBERS,
            "iterations": (None, 0, 2.5, 10**400),
            "outside": ("x", 3),
        },
    ),
    "classifier_guided": (
        pj.scores.classifier_guided,
        {"eps_fn": eps_fn, "logits_fn": eps_fn, "sde": SDE, "labels": LABELS},
        {
            "eps_fn": NO_FUNCTION,
            "logits_fn": NO_FUNCTION,
            "sde": SDES,
            "labels": (None, "x", 3, [0.5], RAGGED, []),
            "scale": NUMBERS,
        },
    ),
    "classifier_free": (
        pj.scores.classifier_free,
        {"eps_fn": Labelled(), "labels": LABELS},
        {"eps_fn": (*NO_FUNCTION, eps_fn), "scale": NUMBERS},
    ),
    "autoguided": (
        pj.scores.autoguided,
        {"eps_fn": eps_fn, "negative": eps_fn},
        {"eps_fn": NO_FUNCTION, "negative": NO_FUNCTION, "scale": NUMBERS, "labels": (LABELS,)},
    ),
    "blur": (
        pj.operators.blur,
        {"std": 1.0},
        {"std": (None, "x", 10**400, eps_fn, np.ones((2, 2))), "cutoff": (*POSITIVE, 1.0, 2.0)},
    ),
    "mask": (pj.operators.mask, {"known": np.eye(8)}, {"known": (None, "x", RAGGED)}),
    "downsample": (pj.operators.downsample, {"factor": 2}, {"factor": (None, 0, 10**400)}),
    "half_mask": (
        pj.operators.half_mask,
        {"name": "left", "image_shape": (8, 8, 1)},
        {"image_shape": (None, 3, (8,), (8, NAN, 1), RAGGED)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_value_is_one_line(name):
    function, good, wrong = CASES[name]
    function(**good)
    for argument, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError) as caught:
                function(**{**good, argument: value})
            told = str(caught.value)
            assert "\n" not in told and " at 0x" not in told and len(told) < 400, (argument, value)
            assert argument in told or name in told, (argument, value, told)


def test_guides_may_be_made_where_jax_traces():
    """A measurement, labels and a scale are data there, of which nobody knows the numbers yet."""

    def guided(z, y, scale):
        guide = pj.scores.posterior_guided(eps_fn, SDE, HALF, y, scale=scale, noise_std=0.1)
        return guide((z,), jnp.float32(0.5))[0]

    images = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    assert jax.eval_shape(guided, images, images, jax.ShapeDtypeStruct((), np.float32)).shape == images.shape


def test_kernels_of_ones_own_have_a_middle(rng):
    """One of an even number of taps was shifted by a pixel in its pseudo-inverse."""
    motion = pj.operators.Blur(np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.8, 0.0]))
    x = jnp.asarray(rng.standard_normal((1, 5, 4, 1)))
    np.testing.assert_allclose(motion.pinv(motion(x)), motion.projection(x), atol=1e-6)
    for kernel in (np.array([0.5, 0.5]), np.ones((3, 3))):
        with pytest.raises(ValueError, match="an odd number of taps"):
            pj.operators.Blur(kernel)(x)
        with pytest.raises(ValueError, match="an odd number of taps"):
            pj.operators.Blur(kernel).pinv(x)


def test_a_blur_that_sees_nothing_is_no_condition(few_digits):
    nothing = pj.operators.Blur(np.zeros(3))
    integrator = pj.integrators.get("exponential_multistep", order=1)
    table = pj.Setting("exponential_multistep", hyper={"order": 1}).table(few_digits.sde, 3)
    pull = pj.measurement_pull(few_digits.sde, integrator, table, nothing, np.zeros((1, 8, 8, 1)), (8, 8, 1))
    assert not np.any(pull.response) and not np.any(pull.target)
