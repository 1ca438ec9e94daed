"""Predicted images that are clipped: what the network then says, and the conditions under which nothing changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj
from psld_jax import blocks
from psld_jax.sampling.generate import prepare

DIFFUSIONS = ("psld", "cld", "vpsde", "vesde", "flow", "edm")
#: Splines in time are exact to 1e-9 of the largest entry, which multiplies noise of up to 80.
SPLINES = 1e-6


def predicted(sde, eps_fn, z, t):
    out = eps_fn(z, t)
    return np.asarray(blocks.apply(sde.denoiser_at(t, jnp.float64), (*z, *out))[0])


@pytest.fixture(params=DIFFUSIONS)
def case(request, rng):
    """A diffusion, a state and a network whose images lie within 3."""
    sde = pj.sde.get(request.param)
    z, out = (sde.state(*jnp.asarray(rng.standard_normal((sde.num_blocks, 2, 4, 4, 1)))) for _ in range(2))
    t = 0.6
    u, v = (part[0] for part in sde.denoiser(np.float64(t)))
    want = rng.uniform(-3, 3, (2, 4, 4, 1))
    # One image that is predicted, by a change of the first block that counts.
    change = want - sum(u[k] * z[k] + v[k] * out[k] for k in range(sde.num_blocks))
    out = sde.state(*(o + v[k] / np.sum(v**2) * change for k, o in enumerate(out)))
    return sde, z, (lambda z, t: out), jnp.asarray(t), want


def test_the_image_is_the_clipped_one(case):
    sde, z, eps_fn, t, want = case
    got = predicted(sde, pj.scores.clipped(eps_fn, sde, 1.2), z, t)
    np.testing.assert_allclose(got, np.clip(want, -1.2, 1.2), atol=SPLINES)


def test_what_lies_within_does_not_change(case):
    sde, z, eps_fn, t, _ = case
    for got, out in zip(pj.scores.clipped(eps_fn, sde, 3.1)(z, t), eps_fn(z, t), strict=True):
        np.testing.assert_array_equal(got, out)


def test_dynamic_thresholding_divides_by_the_percentile(case):
    sde, z, eps_fn, t, want = case
    got = predicted(sde, pj.scores.clipped(eps_fn, sde, 1.0, percentile=80.0), z, t)
    size = np.percentile(np.abs(want).reshape(2, -1), 80, axis=1).reshape(2, 1, 1, 1)
    assert (size > 1).all()
    np.testing.assert_allclose(got, np.clip(want, -size, size) / size, atol=SPLINES)
    got = predicted(sde, pj.scores.clipped(eps_fn, sde, 2.99, percentile=50.0), z, t)
    np.testing.assert_allclose(got, np.clip(want, -2.99, 2.99), atol=SPLINES)  # a percentile below the bound


def test_the_old_noise_is_kept_where_a_table_is_given(rng):
    """A step of DDIM: ``alpha_s clip(x_0) + sigma_s eps`` with the noise from before the clip."""
    sde = pj.sde.get("vpsde")
    table = pj.tabulate(pj.integrators.get("ddim"), sde, [1.0, 0.7, 0.3], denoise=False)
    noise = jnp.asarray(rng.standard_normal((2, 4, 4, 1)))
    z = (jnp.asarray(2 * rng.standard_normal((2, 4, 4, 1))),)
    want, eps = z[0], np.asarray(noise)
    for t, s in ((1.0, 0.7), (0.7, 0.3)):
        x0 = np.clip((want - sde.std(t) * eps) / sde.alpha(t), -1, 1)
        want = sde.alpha(s) * x0 + sde.std(s) * eps
    clipped = pj.scores.clipped(lambda z, t: (noise,), sde, table=table)
    np.testing.assert_allclose(pj.sample(clipped, table, z)[0], want, rtol=1e-6)  # alpha(1) is 0.007, after a spline


@pytest.mark.parametrize(
    ("sampler", "diffusion"), [("ipndm", "vpsde"), ("heun", "vpsde"), ("ddim", "psld"), ("reduced_oba", "psld")]
)
def test_the_old_noise_is_for_one_step_samplers_of_one_block(sampler, diffusion):
    sde = pj.sde.get(diffusion)
    table = pj.tabulate(pj.integrators.get(sampler), sde, [1.0, 0.7, 0.3, 0.1])
    with pytest.raises(ValueError, match="one block|one-step samplers"):
        pj.scores.clipped(lambda z, t: z, sde, table=table)


@pytest.mark.parametrize("wrong", [{"bound": 0.0}, {"bound": np.nan}, {"percentile": 0.0}, {"percentile": 101.0}])
def test_wrong_bounds_are_refused(wrong):
    with pytest.raises(ValueError, match="bound|percentile"):
        pj.scores.clipped(lambda z, t: z, pj.sde.get("vpsde"), **wrong)


def test_ddpm_is_ancestral_with_a_choice_of_noise():
    """``beta~`` and ``beta`` of Ho et al. (2020), and the same step otherwise."""
    sde, t, s = pj.sde.get("vpsde"), 0.6, 0.4
    small, large = (pj.integrators.get("ddpm", variance=v).stages(sde, t, s)[0] for v in ("posterior", "forward"))
    (known,) = pj.integrators.get("ancestral", order=1).stages(sde, t, s)
    for a, b in ((small, known), (large, known)):
        np.testing.assert_array_equal(a.A, b.A)
        np.testing.assert_array_equal(a.B[0], b.B[0])
    beta = 1 - (sde.alpha(t) / sde.alpha(s)) ** 2
    np.testing.assert_allclose(large.R**2, beta, rtol=1e-12)
    np.testing.assert_allclose(small.R**2, beta * sde.std(s) ** 2 / sde.std(t) ** 2, rtol=1e-12)


def test_samples_are_clipped_on_the_way(digits_model, key):
    """``generate(clip=...)`` is the sampler with the clipped network; any diffusion, guidance or not."""
    options = {"nfe": 6, "n": 4, "seed": 3, "denoise": "exponential"}
    plain, tight = (pj.generate(digits_model, "predictor_corrector", clip=bound, **options) for bound in (None, 0.5))
    assert np.abs(tight).max() <= 0.5 + 1e-5 < np.abs(plain).max()  # the last step is the predicted image
    prepared = prepare(digits_model, "predictor_corrector", nfe=6, denoise="exponential")
    keys = pj.sample_keys(jax.random.key(3), np.arange(4))
    z_T = digits_model.sde.prior_sample(keys, (4, *digits_model.image_shape))
    clipped = pj.scores.clipped(digits_model.eps_fn, digits_model.sde, 0.5)
    want = pj.sample(clipped, prepared.table, z_T, keys)[0]
    np.testing.assert_allclose(tight, want, atol=1e-5)  # float32, batches of another shape
    same = pj.generate(digits_model, "predictor_corrector", clip=100.0, **options)
    np.testing.assert_array_equal(same, plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0.0}, "clip=0.0 must be"),
        ({"clip": "1"}, "clip='1'"),
        ({"clip": 1.0, "clip_percentile": 120.0}, "clip_percentile=120"),
        ({"clip_percentile": 99.0}, "no effect without clip"),
        ({"clip": 1.0, "clip_noise": "odl"}, "Did you mean 'old'"),
        ({"clip": 1.0, "clip_noise": "old"}, "for one block"),
    ],
)
def test_wrong_clips_are_refused(digits_model, options, message):
    with pytest.raises(ValueError, match=message):
        pj.generate(digits_model, "ddim", nfe=4, n=1, **options)
