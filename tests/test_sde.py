"""SDE coefficients: against the original, against quadrature, and against the general base class."""

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad_vec

import psld_jax as pj

PSLD_DESCRIPTION, PSLD_GOLDEN = golden_data.load("sde_psld")
VP_DESCRIPTION, VP_GOLDEN = golden_data.load("sde_vp")
CASES = PSLD_DESCRIPTION["cases"]
T = PSLD_GOLDEN["t"]
NAMED = [pj.sde.get(name) for name in pj.sde.available()]
SDES = [
    *(sde for sde in NAMED if sde.stationary),
    pj.sde.PSLD(gamma=0.0, nu=4.0),
    pj.sde.PSLD(gamma=4.0, nu=0.0, decomposition="upper"),
    pj.sde.PSLD(0.25, 4.25, beta_min=0.1, beta_max=20.0, jitter=0.0),
]


def base_of(sde):
    """The same diffusion through the general class: matrix exponentials instead of closed forms."""
    return pj.sde.LinearSDE(
        sde.unit_drift,
        sde.unit_diffusion,
        beta_min=sde.beta_min,
        beta_max=sde.beta_max,
        initial_cov=sde.initial_cov,
        decomposition=sde.decomposition,
        jitter=sde.jitter,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["prefix"])
def test_kernel_matches_the_original(case):
    sde, p = golden_data.build_sde(case["sde"]), case["prefix"]
    np.testing.assert_allclose(sde.beta_integral(T), PSLD_GOLDEN[p + "b_t"], rtol=1e-12)
    for start, variances in case["starts"].items():
        cov0 = np.diag(variances)
        cov = sde.cov(T, cov0)
        for name, (i, j) in {"xx": (0, 0), "xm": (0, 1), "mm": (1, 1)}.items():
            # 1e-15 absolute: the original subtracts two numbers of order one.
            np.testing.assert_allclose(cov[:, i, j], PSLD_GOLDEN[f"{p}{start}__{name}"], rtol=1e-10, atol=1e-15)
        inverse = PSLD_GOLDEN[f"{p}{start}__inv_coeff"].reshape(2, 2, -1).transpose(2, 0, 1)
        scale = np.abs(inverse).max(axis=(1, 2), keepdims=True)
        # 1e-7: the same cancellation, amplified by the inverse at t = 1e-5.
        assert np.abs((-sde.score_matrix(T, cov0) - inverse) / scale).max() < 1e-7
        coefficients = PSLD_GOLDEN[f"{p}{start}__coeff"].reshape(2, 2, -1).transpose(2, 0, 1)
        scale = np.abs(coefficients).max(axis=(1, 2), keepdims=True)
        assert np.abs((sde.factor(T, cov0) - coefficients) / scale).max() < 1e-7
        # The original perturbs momentum of HSM and DSM starts from its own draw; all its means are Psi(t, 0) z_0.
        z0 = np.stack([PSLD_GOLDEN[p + "x_0"], PSLD_GOLDEN[p + "m_0"]], axis=1).astype(np.float64)
        mean = np.einsum("nij,njchw->nichw", sde.transition(T, 0.0), z0)
        golden_mean = PSLD_GOLDEN[f"{p}{start}__mean"]
        golden_mean = np.stack(np.split(golden_mean, 2, axis=1), axis=1)
        np.testing.assert_allclose(mean, golden_mean, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["prefix"])
def test_drift_and_diffusion_match_the_original(case):
    sde, p = golden_data.build_sde(case["sde"]), case["prefix"]
    u = np.stack(np.split(PSLD_GOLDEN[p + "u"], 2, axis=1), axis=1)
    golden_drift = np.stack(np.split(PSLD_GOLDEN[p + "sde_drift"], 2, axis=1), axis=1)
    drift = np.einsum("nij,njchw->nichw", sde.drift(T), u)
    np.testing.assert_allclose(drift, golden_drift, rtol=1e-10, atol=1e-13)
    golden_diffusion = np.stack(np.split(PSLD_GOLDEN[p + "sde_diff"], 2, axis=1), axis=1)
    diagonal = np.diagonal(sde.dispersion(T), axis1=1, axis2=2)
    np.testing.assert_allclose(
        np.broadcast_to(diagonal[..., None, None, None], golden_diffusion.shape), golden_diffusion, rtol=1e-10
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["prefix"])
@pytest.mark.parametrize("ode", [False, True], ids=["sde", "ode"])
def test_reverse_drift_matches_the_original(case, ode):
    """In the original's reverse time, ``-F z + w D C eps`` at ``t = 1 - t_rev``, with the HSM kernel."""
    sde, p = golden_data.build_sde(case["sde"]), case["prefix"]
    t = 1 - PSLD_GOLDEN["t_rev"]
    u = np.stack(np.split(PSLD_GOLDEN[p + "u"], 2, axis=1), axis=1)
    x, m, time = *(u[:, i].astype(np.float32) for i in (0, 1)), t.astype(np.float32)[:, None, None, None]
    if not case["half_eps"]:
        eps = np.stack([np.tanh(x), np.tanh(m)], axis=1) * (0.5 + time[:, None])
    else:
        half = np.tanh(x + m) * (0.5 + time)
        eps = np.stack([np.zeros_like(half), half] if sde.gamma == 0 else [half, np.zeros_like(half)], axis=1)
    score = np.einsum("nij,nj...->ni...", sde.score_matrix(t), eps)
    weight = 0.5 if ode else 1.0
    ours = -np.einsum("nij,nj...->ni...", sde.drift(t), u) + weight * np.einsum(
        "nij,nj...->ni...", sde.diffusion(t), score
    )
    golden = np.stack(np.split(PSLD_GOLDEN[f"{p}rev_tanh_pf{int(ode)}_drift"], 2, axis=1), axis=1)
    # 3e-7: its inverse coefficients and eps are float32.
    scale = np.abs(golden).max(axis=(1, 2, 3, 4), keepdims=True)
    assert np.abs((ours - golden) / scale).max() < 3e-7


@pytest.mark.parametrize("case", VP_DESCRIPTION["cases"], ids=lambda c: c["prefix"])
def test_vp_matches_the_original(case):
    p, t = case["prefix"], VP_GOLDEN["t"]
    sde = pj.sde.VPSDE(case["sde"]["beta_min"], case["sde"]["beta_max"])
    x0 = VP_GOLDEN[p + "x_0"].astype(np.float64)
    np.testing.assert_allclose(sde.mean(t)[:, 0, 0, None, None, None] * x0, VP_GOLDEN[p + "mean"], rtol=1e-10)
    # 1e-15 absolute in the variance: the original computes 1 - exp(-b) by subtraction.
    np.testing.assert_allclose(sde.cov(t)[:, 0, 0], VP_GOLDEN[p + "std_fn"] ** 2, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(sde.beta(t), VP_GOLDEN[p + "beta_t"], rtol=1e-12)


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_closed_forms_match_the_matrix_exponential(sde):
    t = np.array([1e-5, 1e-3, 0.1, 0.5, 1.0])
    base = base_of(sde)
    for ours, general in (
        (sde.transition(t, 0.3), base.transition(t, 0.3)),
        (sde.cov(t), base.cov(t)),
        (sde.prior_cov(), base.prior_cov()),
    ):
        # 1e-11 of the matrix's scale: expm squares its way up to exp(16) and back.
        scale = np.abs(general).max(axis=(-1, -2), keepdims=True)
        np.testing.assert_allclose(ours / scale, general / scale, rtol=0, atol=1e-11)


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("t", [1e-5, 1e-2, 0.7])
def test_noise_covariance_matches_quadrature(sde, t):
    def integrand(u):
        psi = sde.transition(t, u)
        return psi @ sde.diffusion(u) @ psi.T

    value, _ = quad_vec(integrand, 0.0, t, epsabs=0.0, epsrel=1e-12)
    scale = np.abs(value).max()
    # 1e-11: what the adaptive quadrature delivers.
    np.testing.assert_allclose(sde.noise_cov(t) / scale, value / scale, rtol=0, atol=1e-11)


def test_a_third_order_diffusion_needs_no_new_code(key):
    f = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 2.0], [0.0, -2.0, -3.0]])
    sde = pj.sde.LinearSDE(f, np.diag([0.0, 0.0, 6.0]), beta_min=2.0, beta_max=4.0, jitter=1e-9)
    # The diffusion keeps its stationary law: Psi S Psi^T + noise = S.
    psi = sde.transition(0.8, 0.1)
    prior = sde.prior_cov()
    np.testing.assert_allclose(psi @ prior @ psi.T + sde.noise_cov(0.8, 0.1), prior, atol=1e-12)
    factor = sde.factor(0.5)
    np.testing.assert_allclose(factor @ factor.T, sde.cov(0.5), atol=1e-14)
    assert sde.prior_sample(key, (2, 3))[2].shape == (2, 3)


@pytest.mark.parametrize("decomposition", ["lower", "upper"])
def test_factor_is_triangular_and_its_inverse_transpose_gives_the_score(decomposition):
    sde = pj.sde.PSLD(decomposition=decomposition)
    t = np.array([1e-5, 0.2, 1.0])
    factor = sde.factor(t)
    corner = factor[:, 0, 1] if decomposition == "lower" else factor[:, 1, 0]
    assert np.all(corner == 0)
    np.testing.assert_allclose(factor @ np.swapaxes(factor, 1, 2), sde.cov(t), rtol=1e-12)
    product = np.swapaxes(factor, 1, 2) @ sde.score_matrix(t)
    np.testing.assert_allclose(product, np.broadcast_to(-np.eye(2), product.shape), atol=1e-10)


def test_perturb_is_the_kernel_for_known_and_for_traced_times(rng):
    sde = pj.sde.PSLD()
    x0, eps = rng.standard_normal((3, 4, 4, 1)), rng.standard_normal((2, 3, 4, 4, 1))
    t = np.array([1e-4, 0.3, 1.0])
    kernel = np.einsum("nij,jn...->in...", sde.factor(t), eps)
    mean = np.einsum("ni,n...->in...", sde.mean(t)[..., 0], x0)
    known = sde.perturb(jnp.asarray(x0), t, pj.PhaseState(*map(jnp.asarray, eps)))
    np.testing.assert_allclose(np.stack(known), mean + kernel, rtol=1e-12)
    traced = jax.jit(sde.perturb)(jnp.asarray(x0), jnp.asarray(t), pj.PhaseState(*map(jnp.asarray, eps)))
    # 1e-8: the spline in time is refined to 1e-9 of the largest entry.
    np.testing.assert_allclose(np.stack(traced), mean + kernel, atol=1e-8)


def test_prior_sample_has_the_prior_law_and_depends_on_the_index_alone(key):
    sde = pj.sde.PSLD()
    z = sde.prior_sample(key, (4, 100, 100, 1))
    assert z.x.dtype == jnp.float32
    # 40,000 numbers: the sample variance is within 5 standard deviations, 5 sqrt(2 / 40000) = 0.035.
    np.testing.assert_allclose([np.var(z.x), np.var(z.m) / sde.mass], 1.0, atol=0.035)
    keys = pj.sample_keys(key, jnp.arange(2, 4))
    part = sde.prior_sample(keys, (2, 100, 100, 1))
    np.testing.assert_array_equal(part.m, z.m[2:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0.0, "nu": 0.0}, "gamma = nu"),
        ({"gamma": 1.0, "nu": 1.0}, "gamma = nu"),
        ({"gamma": -1.0}, "gamma=-1.0"),
        ({"beta_min": -1.0}, "beta_min=-1.0"),
        ({"beta_min": 0.0, "beta_max": 0.0}, "at least one"),
        ({"beta_max": float("nan")}, "beta_max=nan"),
        ({"decomposition": "diagonal"}, "lower, upper"),
        ({"kappa": -0.1}, "kappa=-0.1"),
        ({"jitter": -1e-9}, "jitter=-1e-09"),
    ],
)
def test_bad_parameters_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pj.sde.PSLD(**arguments)


def test_host_side_modules_do_not_touch_the_device():
    import pathlib

    root = pathlib.Path(pj.__file__).parent
    files = [*root.glob("sde/*.py"), *root.glob("integrators/*.py")]
    assert len(files) > 8
    for file in files:
        assert "jax.numpy" not in file.read_text(), file


EVERY = [
    *(pj.sde.get(name) for name in pj.sde.available()),
    pj.sde.path(lambda t: 1 - t, lambda t: t),
    pj.sde.VaryingSDE(lambda t: -np.eye(1), lambda t: np.eye(1)),
]


@pytest.mark.parametrize("sde", EVERY, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("wrong", [-0.1, 1.5, np.nan, [0.5, 500.0], None, "half"], ids=str)
@pytest.mark.parametrize("name", ["mean", "cov", "factor", "sigma"])
def test_a_time_that_is_none_is_named(sde, wrong, name):
    with pytest.raises(ValueError, match=r"lie in \[0, 1") as error:
        getattr(sde, name)(wrong)
    assert "\n" not in str(error.value)
