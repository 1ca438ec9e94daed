"""Exponential integrators, ancestral sampling and the R-frame against published rules and closed forms."""

import closed_forms
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.optimize import brentq

import psld_jax as pj
from psld_jax.integrators.ancestral import bridge
from psld_jax.integrators.exponential import exponential_step, make_prediction, projection

PHASE = pj.sde.PSLD(0.25, 4.25, beta_min=3.0, beta_max=9.0)
VP = pj.sde.VPSDE(jitter=0.0)


def diffusions(jitter):
    return [
        pj.sde.PSLD(jitter=jitter),
        pj.sde.PSLD(0.25, 4.25, beta_min=3.0, beta_max=9.0, jitter=jitter),
        pj.sde.PSLD(gamma=0.0, nu=4.0, jitter=jitter),
        pj.sde.PSLD(0.25, 4.25, beta_min=0.1, beta_max=20.0, decomposition="upper", jitter=jitter),
        pj.sde.VPSDE(jitter=jitter),
        pj.sde.PSLD(jitter=jitter).preconditioned(0.9),
    ]


SDES = diffusions(1e-9)
KINDS = ("eps", "eps_r", "data")
get = pj.integrators.get


# --- the R-frame ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_the_frame_is_a_factor_of_the_covariance(sde):
    t = np.geomspace(1e-5, 1.0, 40)
    frame, cov = sde.frame(t), sde.cov(t)
    # R = L Q with Q orthogonal to the accuracy of the interpolation.
    np.testing.assert_allclose(frame @ np.swapaxes(frame, -1, -2), cov, rtol=1e-11, atol=1e-20)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"decomposition": "upper"},
        {"gamma": 0.0, "nu": 4.0},
        {"gamma": 0.25, "nu": 4.25, "beta_min": 0.1, "beta_max": 20.0},
    ],
    ids=str,
)
def test_the_frame_solves_its_equation(parameters):
    """Against an adaptive solver, down to 1e-5. Without jitter, which is no part of the dynamics."""
    sde = pj.sde.PSLD(**parameters, jitter=0.0)
    times = np.array([0.5, 0.1, 1e-3, 1e-5])

    def velocity(t, y):
        generator = sde.drift(t) + 0.5 * sde.diffusion(t) @ np.linalg.inv(sde.cov(t))
        return (generator @ y.reshape(2, 2)).ravel()

    start = sde.frame(np.float64(1.0))
    np.testing.assert_allclose(start, sde.factor(1.0), rtol=1e-14)
    exact = solve_ivp(velocity, (1.0, 1e-5), start.ravel(), "DOP853", times, rtol=1e-13, atol=1e-16).y.T
    for ours, theirs in zip(sde.frame(times), exact.reshape(-1, 2, 2), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10 * np.abs(theirs).max())


# --- what a prediction is ---------------------------------------------------------------------------


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_writes_the_same_ode(sde, kind):
    """H z + N (U z + V eps) = F z - 1/2 D (Cskip z + C eps), for every z and eps."""
    if kind == "data" and sde.num_blocks == 2 and sde.data_std is None:
        pytest.skip("least squares makes one equation of two: the same only for scores that satisfy both, tested below")
    p, t = make_prediction(sde, kind), np.array([1e-3, 0.1, 0.7, 1.0])
    half = 0.5 * sde.diffusion(t)
    for got, expected in (
        (p.H(t) + p.N(t) @ p.U(t), sde.drift(t) - half @ sde.score_skip(t)),
        (p.N(t) @ p.V(t), -half @ sde.score_matrix(t)),
    ):
        scale = np.abs(half @ np.linalg.inv(sde.cov(t))).max(axis=(-2, -1), keepdims=True)
        np.testing.assert_allclose(got / scale, expected / scale, atol=1e-9)


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("kind", ["least_squares", "position", "momentum"])
def test_projections_find_the_data_point(sde, kind):
    if kind == "momentum" and sde.num_blocks == 1:
        with pytest.raises(ValueError, match="least_squares"):
            projection(sde, np.float64(0.5), kind)
        return
    t = np.array([0.01, 0.3, 0.9])
    w = projection(sde, t, kind)
    np.testing.assert_allclose((np.swapaxes(w, -1, -2) @ sde.mean(t)).ravel(), 1.0, rtol=1e-12)


@pytest.mark.parametrize("sde", diffusions(jitter=0.0), ids=repr)  # the jitter is in Sigma and not in the dynamics
@pytest.mark.parametrize("kind", ["eps_r", "data"])
def test_one_long_step_is_exact_for_a_single_data_point(rng, sde, kind):
    """score = -Sigma^-1 (z - mu x_0): the solution is z_s = mu_s x_0 + R_s R_t^-1 (z_t - mu_t x_0)."""
    t, s, x0 = 0.7, 0.1, 0.6
    p = make_prediction(sde, kind)
    z = rng.normal(size=(sde.num_blocks, 1))
    score = -np.linalg.solve(sde.cov(t), z - sde.mean(t) * x0)
    eps = np.linalg.pinv(sde.score_matrix(t)) @ (score - sde.score_skip(t) @ z)
    q = p.U(np.float64(t)) @ z + p.V(np.float64(t)) @ eps
    e, (b,) = exponential_step(sde, p, "t", t, s, (t,))
    exact = sde.mean(s) * x0 + sde.frame(s) @ np.linalg.solve(sde.frame(t), z - sde.mean(t) * x0)
    # Coefficients are good to 1e-12 relative; the flow backwards amplifies that by e^9 and its condition.
    np.testing.assert_allclose(e @ z + b @ q, exact, rtol=1e-7, atol=1e-8)


# --- published rules, K = 1 ---------------------------------------------------------------------------


def vp_rates(t):
    return np.exp(-0.5 * VP.beta_integral(t)), np.sqrt(-np.expm1(-VP.beta_integral(t)))


def lam(t):
    """Half the log-SNR, as the papers have it."""
    return np.log(vp_rates(t)[0] / vp_rates(t)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_first_order_is_ddim_for_every_prediction(kind):
    t, s = 0.8, 0.6
    a = get("exponential_multistep", prediction=kind, order=1).stages(VP, t, s)[0]
    b = get("ddim").stages(VP, t, s)[0]
    np.testing.assert_allclose(a.A + a.B[0] @ a.U, b.A, rtol=1e-11)
    np.testing.assert_allclose(a.B[0] @ a.V, b.B[0], rtol=1e-10)


@pytest.mark.parametrize("order", [2, 3])
def test_eps_in_t_is_tab_deis(order):
    """C_ij = int_t^s Psi(s, u) beta / (2 sigma_u) prod_k (u - t_k) / (t_j - t_k) du (Zhang & Chen, 2023, eq. 15)."""
    t, s, past = 0.7, 0.6, (0.8, 0.92)
    stage = get("exponential_multistep", prediction="eps", order=order, variable="t").stages(VP, t, s, past)[0]
    nodes = (t, *past)[:order]
    for j, node in enumerate(nodes):
        others = [other for other in nodes if other != node]

        def integrand(u, node=node, others=others):
            lagrange = np.prod([(u - other) / (node - other) for other in others])
            return vp_rates(s)[0] / vp_rates(u)[0] * VP.beta(u) / (2 * vp_rates(u)[1]) * lagrange

        exact = quad(integrand, t, s, epsabs=1e-14, epsrel=1e-12)[0]
        np.testing.assert_allclose(stage.B[j], [[exact]], rtol=1e-9)


def test_data_in_log_snr_is_dpm_solver_pp_up_to_its_simplification():
    """x_s = sigma_s/sigma_t x - a_s (e^-h - 1) [(1 + 1/2r) x0 - 1/2r x0_-1] (Lu et al., 2022, 2M).

    It replaces the integral of the linear term by half its length, an error of order h^3 a step.
    """
    differences = []
    for h in (0.2, 0.1, 0.05):
        t = 0.6
        s, before = (brentq(lambda u, to=to: lam(u) - to, 0.1, 1.0, xtol=1e-15) for to in (lam(t) + h, lam(t) - h))
        integrator = get("exponential_multistep", prediction="data", order=2, variable="log_snr")
        stage = integrator.stages(VP, t, s, (before,))[0]
        factor = -vp_rates(s)[0] * np.expm1(-(lam(s) - lam(t)))
        ratio = (lam(t) - lam(before)) / (lam(s) - lam(t))
        published = factor * np.array([1 + 0.5 / ratio, -0.5 / ratio])
        np.testing.assert_allclose(stage.A, [[vp_rates(s)[1] / vp_rates(t)[1]]], rtol=1e-10)
        ours = np.array([b[0, 0] for b in stage.B])
        np.testing.assert_allclose(ours.sum(), published.sum(), rtol=1e-9)
        differences.append(np.abs(ours - published).max())
    slopes = np.log2(np.divide(differences[:-1], differences[1:]))
    np.testing.assert_allclose(
        slopes, 2.0, atol=0.1
    )  # of the weights; times the change of x0, O(h): third order a step


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ancestral_is_ddpm(eta):
    """a_s x0 + sqrt(1 - a_s^2 - sigma^2) eps + sigma xi, sigma as in eq. 16 of Song, Meng & Ermon (2021)."""
    t, s = 0.8, 0.7
    (a_t, std_t), (a_s, std_s) = vp_rates(t), vp_rates(s)
    sigma = eta * std_s / std_t * np.sqrt(1 - a_t**2 / a_s**2)
    gain, noise = bridge(VP, t, s, eta)
    np.testing.assert_allclose(noise, [[sigma**2]], rtol=1e-10)
    np.testing.assert_allclose(gain, [[np.sqrt(std_s**2 - sigma**2) / std_t]], rtol=1e-10)


# --- ancestral in phase space -------------------------------------------------------------------------


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.25, 0.7, 1.0])
def test_the_bridge_keeps_the_covariance_and_has_the_right_ends(sde, eta):
    for t, s in ((1.0, 0.8), (1.0, 1e-3), (0.3, 0.29), (0.01, 0.001)):
        gain, noise = bridge(sde, t, s, eta)
        start, end = sde.cov(t), sde.cov(s)
        # The jitter is in Sigma and not in the dynamics: the law is kept to that.
        np.testing.assert_allclose(gain @ start @ gain.T + noise, end, atol=30 * sde.jitter + 1e-12)
        if eta == 0:
            np.testing.assert_allclose(gain, sde.frame(s) @ np.linalg.inv(sde.frame(t)), rtol=1e-8, atol=1e-10)
        if eta == 1:
            np.testing.assert_allclose(gain, end @ sde.transition(t, s).T @ np.linalg.inv(start), rtol=1e-6, atol=1e-7)


# --- orders, by starting a third-order method accurately -------------------------------------------------


@pytest.mark.parametrize(
    ("sde", "kind", "variable"),
    [
        (PHASE, "eps", "t"),
        (PHASE, "eps_r", "log_t"),
        (PHASE, "data", "t"),
        (PHASE, "data", "log_snr"),
        (pj.sde.VPSDE(1.0, 8.0), "data", "log_snr"),
    ],
)
def test_multistep_of_third_order(sde, kind, variable):
    """The first steps have order 1 and 2, so they are made tiny here: what is measured is the formula."""
    data, k, t_end = closed_forms.GaussianData(sde), sde.num_blocks, 0.2
    matrix, _ = data.ode_flow(0.9, t_end)
    errors = []
    for n in (60, 120):
        h = 0.7 / n
        grid = np.concatenate([[0.9, 0.9 - h**2, 0.9 - 8 * h**2], np.linspace(0.9 - h, t_end, n)])
        table = pj.tabulate(get("exponential_multistep", prediction=kind, order=3, variable=variable), sde, grid, False)
        columns = [pj.analysis.propagate(table, data.jacobian, e, np.zeros((k, k)))[0] for e in np.eye(k)]
        errors.append(np.abs(np.stack(columns, 1) - matrix).max())
    # At most a fifth below: at these steps the next order is still visible, and helps or hurts.
    assert np.log2(errors[0] / errors[1]) > 2.8


def test_runge_kutta_of_third_order():
    data, errors = closed_forms.GaussianData(PHASE), []
    matrix, _ = data.ode_flow(1.0, 0.05)
    for n in (50, 100):
        table = pj.tabulate(get("exponential_runge_kutta", order=3), PHASE, pj.grids.uniform(n, t_end=0.05), False)
        assert table.nfe == 3 * n
        columns = [pj.analysis.propagate(table, data.jacobian, e, np.zeros((2, 2)))[0] for e in np.eye(2)]
        errors.append(np.abs(np.stack(columns, 1) - matrix).max())
    assert np.log2(errors[0] / errors[1]) > 2.85  # as above


# --- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("exponential_multistep", {"order": 4}, "order=4 must be one of 1, 2, 3"),
        ("exponential_multistep", {"prediction": "x0"}, "prediction='x0' must be one of eps, eps_r, data"),
        ("predictor_corrector", {"variable": "snr"}, "variable='snr' must be one of t, log_t, log_snr"),
        ("exponential_runge_kutta", {"projection": "mass"}, "projection='mass' must be one of"),
        ("ancestral", {"eta": 1.5}, r"eta=1.5 must lie in \[0, 1\]"),
        ("ancestral", {"eta": -0.1}, "eta=-0.1 must be a finite number >= 0"),
        ("ancestral", {"order": 3}, "order=3 must be one of 1, 2"),
    ],
)
def test_bad_hyper_parameters_are_named(name, hyper, message):
    with pytest.raises(ValueError, match=message):
        get(name, **hyper)
