"""Measurements that are integrated: the free sampler without one, Gaussian posteriors, and stated orders."""

import dataclasses

import closed_forms
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import psld_jax as pj
from psld_jax.conditioning.conjugate import first_guess, gain, pull_law
from psld_jax.evaluation.posterior import MixturePosterior, energy_distance, operator_matrix
from psld_jax.sampling.generate import prepare
from psld_jax.sampling.settings import MEASURED, Tuned

SHAPE = (4, 4, 1)
HALF = pj.operators.mask(pj.operators.half_mask("top", SHAPE))
SDES = {"psld": pj.sde.PSLD(), "vp": pj.sde.VPSDE(), "flow": pj.sde.Flow()}


def prepared(sde, order, n_steps, operator, y, denoise=True, name="exponential_multistep", **options):
    variable = "t" if isinstance(sde, pj.sde.Flow) else "log_t"
    integrator = pj.integrators.get(name, order=order, variable=variable)
    table = pj.tabulate(integrator, sde, pj.grids.quadratic(n_steps, 1e-2, 0.9), denoise)
    return table, pj.measurement_pull(sde, integrator, table, operator, y, SHAPE, **options)


@pytest.mark.parametrize(("name", "order"), [("psld", 2), ("vp", 3), ("flow", 1)])
def test_without_a_measurement_it_is_the_free_sampler(name, order, key, rng):
    """An empty mask, and a weight of 0, in float64: the products with zero add nothing."""
    sde, y = SDES[name], rng.standard_normal((2, *SHAPE))
    z_T = sde.prior_sample(key, (2, *SHAPE), np.float64)
    nothing = pj.operators.mask(np.zeros((4, 4)))
    for operator, weight in ((nothing, 1.0), (HALF, 0.0)):
        table, pull = prepared(sde, order, 3, operator, y, weight=weight)
        free = pj.sample(closed_forms.smooth_eps, table, z_T)
        measured = pj.sample(closed_forms.smooth_eps, table, z_T, pull=pull)
        for a, b in zip(free, measured, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["exponential_multistep", "predictor_corrector", "exponential_runge_kutta"])
def test_an_exact_measurement_is_reached_in_one_step(name, key, rng):
    """On the range ``E[x_0 | z, y] = H^+ y`` is constant, so any step is exact there; and the null space stays free."""
    sde, y = SDES["vp"], np.asarray(HALF(jnp.asarray(rng.standard_normal((2, *SHAPE)))))
    z_T = sde.prior_sample(key, (2, *SHAPE), np.float64)
    table, pull = prepared(sde, 1, 1, HALF, y, denoise=False, name=name, noise_std=0.0)
    (x,) = pj.sample(closed_forms.smooth_eps, table, z_T, pull=pull)
    alpha, std = (sde.mean(np.array([0.9, 0.01]))[:, 0, 0], sde.factor(np.array([0.9, 0.01]))[:, 0, 0])
    exact = alpha[1] * y + std[1] / std[0] * (z_T[0] - alpha[0] * y)
    np.testing.assert_allclose(x[:, :2], exact[:, :2], rtol=1e-9)
    (free,) = pj.sample(closed_forms.smooth_eps, table, z_T)
    np.testing.assert_array_equal(x[:, 2:], free[:, 2:])
    denoised, pull = prepared(sde, 1, 1, HALF, y, name=name, noise_std=0.0)
    np.testing.assert_allclose(pj.sample(closed_forms.smooth_eps, denoised, z_T, pull=pull)[0][:, :2], y[:, :2])


def exact_flow(sde, z, y, noise_std, data_std):
    """Of Gaussian data, ``D = c mu^T Stilde^-1 z``: the ODE on the range, by scipy."""

    def slope(t, z):
        t = np.float64(t)
        h, n = sde.data_flow(t)
        d = data_std**2 * sde.mean(t)[:, 0] @ np.linalg.solve(sde.total_cov(t, data_std), z)
        g = gain(sde, noise_std)(t, 1.0)
        return h @ z + n[:, 0] * (d + g * (y - d))

    return solve_ivp(slope, (0.9, 0.01), z, rtol=1e-11, atol=1e-12, method="LSODA").y[:, -1]


@pytest.mark.parametrize(
    ("name", "order"), [pytest.param("psld", 2, marks=pytest.mark.slow), ("vp", 1), ("vp", 2), ("vp", 3)]
)
def test_orders_are_as_stated_against_the_exact_flow(name, order, key):
    """Gaussian data of deviation 0.5, noise 0.1, so that ``g`` rises on the way."""
    sde, y = SDES[name], 0.7 * np.ones((1, *SHAPE))
    data = closed_forms.GaussianData(sde, 0.0, 0.25)
    z_T = sde.prior_sample(key, (1, *SHAPE), np.float64)
    start = np.array([leaf[0, 0, 0, 0] for leaf in z_T])
    exact = exact_flow(sde, start, 0.7, 0.1, 0.5)
    errors = []
    for n_steps in (20, 40):
        table, pull = prepared(sde, order, n_steps, HALF, y, denoise=False, noise_std=0.1)
        found = pj.sample(data.eps_fn(), table, z_T, pull=pull)
        errors.append(abs(found[0][0, 0, 0, 0] - exact[0]))
    slope = np.log2(errors[0] / errors[1])
    # The first steps of a multistep method have a lower order; on so few the slope is not settled.
    assert slope > order - 0.35 and errors[1] < 0.02


def test_singular_values_between_levels(key, rng):
    """A blur has many singular values: against tables for each of them. Between levels ``g`` is off by 1% at most."""
    sde, operator = SDES["vp"], pj.operators.blur(0.7)
    table, pull = prepared(sde, 2, 6, operator, rng.standard_normal((1, *SHAPE)), noise_std=0.05)
    grid = np.asarray(pull.response)
    values = np.outer(pull.modes.left[1], pull.modes.right[1])
    for i, j in ((0, 0), (1, 2), (3, 3)):
        scaled = pj.operators.mask(np.ones((4, 4)))
        law = pull_law(
            sde, pj.integrators.get("exponential_multistep", order=2), table, scaled, SHAPE, 0.05 / values[i, j], 1.0
        )
        mixed = np.tensordot(grid[:, i, j], np.asarray(pull.weights), (0, 1))
        np.testing.assert_allclose(mixed, law.weights[:, 0], atol=0.02)


def test_the_posterior_of_a_mixture(rng):
    """Two points and one pixel seen: weights and means by Bayes' rule, written out."""
    data = np.array([[-1.0, 0.5], [1.0, -0.5]]).reshape(2, 1, 2, 1)
    posterior = MixturePosterior(data, 0.3, pj.operators.mask(np.array([[1, 0]])), 0.4)
    y = np.array([0.2, 0.0]).reshape(1, 1, 2, 1)[0]
    likelihood = np.exp(-0.5 * (0.2 - data[:, 0, 0, 0]) ** 2 / (0.3**2 + 0.4**2))
    np.testing.assert_allclose(posterior.weights(y), likelihood / likelihood.sum(), rtol=1e-9)
    x = posterior.sample(y, 20_000, rng)
    means = data[:, 0, 0, 0] + 0.09 / 0.25 * (0.2 - data[:, 0, 0, 0])
    weights = likelihood / likelihood.sum()
    # Of 20,000 draws with deviations of at most 1: 5 standard errors.
    np.testing.assert_allclose(x.mean(axis=0)[0, :, 0], [weights @ means, weights @ data[:, 0, 1, 0]], atol=0.035)
    assert abs(energy_distance(x[:500], posterior.sample(y, 500, rng))) < 0.05
    assert energy_distance(x[:500], x[:500] + 1) > 0.5


def test_digits_agree_with_what_was_measured(digits_model):
    """The whole way through ``generate``: noise of 0.05 on the pixels that are seen, so restored ones agree with it."""
    truth, half = digits_model.data[:4], pj.operators.mask(pj.operators.half_mask("top", digits_model.image_shape))
    options = {"n": 4, "nfe": 4, "operator": half, "measurement": np.asarray(half(truth)), "posterior": "conjugate"}
    for t_start in (1.0, 0.5):
        x = pj.generate(digits_model, **options, t_start=t_start, noise_std=0.0)
        np.testing.assert_allclose(x[:, :4], np.clip(truth, -1, 1)[:, :4], atol=1e-5)


def test_a_grid_of_ones_own_keeps_the_sampler_of_measurements(digits_model):
    """What was tuned for a model may predict the noise, which a measurement is not integrated with."""
    tuned = pj.Setting("predictor_corrector", hyper={"prediction": "eps", "order": 1})
    model = dataclasses.replace(digits_model, tuned=(Tuned(10, tuned),))
    half = pj.operators.mask(pj.operators.half_mask("top", model.image_shape))
    options = {"operator": half, "measurement": np.asarray(half(model.data[:1])), "posterior": "conjugate"}
    for grid in ("edm", (1.0, 0.5, 0.1, 1e-3)):
        sampler = prepare(model, nfe=10, grid=grid, rho=5.0, **options)
        assert sampler.setting == dataclasses.replace(MEASURED, grid=grid, rho=5.0)
        assert sampler.steering.conditions(sampler.table, sampler.setting.integrator()).pull is not None


@pytest.mark.parametrize("name", ["edm", "vesde"])
def test_a_measurement_is_integrated_where_images_form_whatever_the_path(name, key, rng):
    """Of data N(0, 0.4^2), half of which is seen: 10 steps come closer to the fine solution than a quadratic grid's.

    The noise levels of these paths reach over seven powers of ten, of which a quadratic grid sees the largest.
    """
    model = pj.from_function(lambda x, t: x, pj.sde.get(name), SHAPE, predicts="data")
    model = dataclasses.replace(model, eps_fn=pj.scores.mixture(np.zeros((1, *SHAPE)), 0.4, model.sde))
    options = {"operator": HALF, "measurement": rng.uniform(-1, 1, (8, *SHAPE)), "posterior": "conjugate", "n": 8}
    fine, own, quadratic = (
        pj.generate(model, nfe=nfe, **options, **grid)
        for nfe, grid in ((200, {}), (10, {}), (10, {"grid": "quadratic"}))
    )
    assert np.abs(own - fine).mean() < 0.7 * np.abs(quadratic - fine).mean()


def test_a_late_start_does_not_blow_up_noise(rng):
    """``H^T (H H^T + noise^2)^-1 y`` of a blur; between levels of singular values shares are off by 1%."""
    operator, y = pj.operators.blur(0.7), rng.standard_normal((2, *SHAPE))
    matrix = operator_matrix(operator, SHAPE)
    exact = y.reshape(2, -1) @ np.linalg.solve(matrix @ matrix.T + 0.25 * np.eye(16), matrix)
    found = first_guess(operator, operator.pinv(jnp.asarray(y)), 0.5)
    np.testing.assert_allclose(found, exact.reshape(y.shape), atol=0.03)


def test_what_cannot_be_integrated_is_said(digits_model):
    half = pj.operators.mask(pj.operators.half_mask("top", digits_model.image_shape))
    seen = np.asarray(half(digits_model.data[:1]))
    options = {"n": 1, "operator": half, "measurement": seen, "posterior": "conjugate"}
    for changed, told in (
        ({"sampler": "ddim"}, "'ddim'.*does not"),
        ({"sampler": "exponential_multistep", "prediction": "eps"}, "does not: take exponential_multistep"),
        ({"sampler": "rk45"}, "is adaptive"),
        ({"operator": lambda x: x * 1.0}, "needs operator.pinv and operator.projection"),
        ({"weight": -1.0}, "weight=-1.0"),
        ({"t_start": 0.0}, "t_start=0.0"),
        ({"noise_std": 0.0, "posterior": "pigdm"}, "noise_std=0.0"),
        ({"sampler": "exponential_multistep", "grid": (1.0, 0.5, 1e-3), "t_start": 0.5}, "named"),
        ({"sampler": "rk45", "posterior": "pigdm", "t_start": 0.5}, "is adaptive"),
        ({"sampler": "exponential_multistep", "resample": 2}, "resample"),
    ):
        with pytest.raises(ValueError, match=told):
            pj.generate(digits_model, **{**options, **changed})
    with pytest.raises(ValueError, match="t_start=0.5 has no effect by itself: give operator"):
        pj.Steering(t_start=0.5).bind(digits_model)


def test_a_pull_of_another_table_is_refused(key):
    sde = SDES["vp"]
    _, pull = prepared(sde, 1, 3, HALF, np.zeros((1, *SHAPE)))
    table, _ = prepared(sde, 1, 4, HALF, np.zeros((1, *SHAPE)))
    z_T = sde.prior_sample(key, (1, *SHAPE))
    with pytest.raises(ValueError, match="another table"):
        pj.sample(closed_forms.smooth_eps, table, z_T, pull=pull)
    with pytest.raises(ValueError, match="is none of"):
        pull_law(sde, pj.integrators.get("predictor_corrector", order=2), table, HALF, SHAPE, 0.1, 1.0)
    assert isinstance(jax.tree.leaves(pull), list)


class Own:
    """A user's operator, no pytree: the upper rows of an image."""

    rows = np.eye(8)[:4]  # float64, so that images of float32 become float64 where JAX has it

    def __call__(self, images):
        return jnp.einsum("ab,nbwc->nawc", jnp.asarray(self.rows), images)

    def pinv(self, measurement):
        return jnp.einsum("ab,nawc->nbwc", jnp.asarray(self.rows), measurement)

    def projection(self, images):
        return self.pinv(self(images))


@pytest.mark.parametrize("options", [{}, {"null_weight": 1.0}, {"t_start": 0.4}], ids=["", "null_weight", "t_start"])
def test_an_operator_of_a_class_of_ones_own_is_integrated(few_digits, options):
    images = few_digits.data[:2]
    own, ours = Own(), pj.operators.mask(pj.operators.half_mask("top", few_digits.image_shape))
    found, expected = (
        pj.generate(few_digits, nfe=4, n=2, operator=one, measurement=one(images), posterior="conjugate", **options)
        for one in (own, ours)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_an_operator_may_measure_in_another_dtype(few_digits, dtype):
    images = few_digits.data[:2]
    options = {"operator": lambda x: x.astype(dtype), "measurement": images, "posterior": "dps"}
    assert np.isfinite(pj.generate(few_digits, nfe=3, n=2, **options)).all()
