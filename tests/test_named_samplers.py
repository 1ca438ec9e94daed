"""Samplers by the names that their users know, against their published formulas written out in plain numpy."""

import numpy as np
import published
import pytest
from seeds import generator

import psld_jax as pj

STEPS, SHAPE, BANDWIDTH = 7, (3, 2, 2, 1), 0.1
VP = pj.sde.VPSDE()
DATA = generator("test_named_samplers").uniform(-1, 1, (5, *SHAPE[1:]))
DENOISE = published.Mixture(DATA, BANDWIDTH)


def alpha(sde, t):
    return float(sde.mean(np.float64(t))[0, 0])


def run(integrator, sde, grid, start, noise, denoise=DENOISE):
    """Samples in units of alpha, from the state ``start``, by the rows of the table; no denoising step.

    In numpy: that ``pj.sample`` does the same is for ``test_the_rows_mean_what_the_loop_does``.
    """
    table = pj.tabulate(integrator, sde, grid, denoise=False)
    z, history = start, [0.0] * table.B.shape[1]
    for i, t in enumerate(table.tau):
        if table.P is not None:
            z = table.P[i, 0, 0] * z
            z = z + table.Rpre[i, 0, 0] * noise[table.pre_draw[i]] if table.pre_draw[i] >= 0 else z
        x_0 = denoise(z / (alpha(sde, t) or 1.0), float(sde.sigma(t)))
        u, v = (float(number[0, 0]) for number in sde.denoiser(t))
        history = [table.U[i, 0, 0] * z + table.V[i, 0, 0] * (x_0 - u * z) / v, *history[:-1]]
        z = table.A[i, 0, 0] * z + sum(b[0, 0] * q for b, q in zip(table.B[i], history, strict=True))
        if table.R is not None and table.post_draw[i] >= 0:
            z = z + table.R[i, 0, 0] * noise[table.post_draw[i]]
    return z / alpha(sde, grid[-1])


CASES = {
    "edm_heun": ({}, published.heun, {}),
    "edm_heun-midpoint": ({"alpha": 0.5}, published.heun, {"alpha": 0.5}),
    "edm_heun-churn": (
        {"S_churn": 2.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003},
        published.heun,
        {"churn": 2.0, "low": 0.05, "high": 50.0, "scale": 1.003, "noise": True},
    ),
    "euler_edm": ({}, published.euler, {}),
    "ddim": ({}, published.euler, {}),
    "dpm2": ({}, published.dpm2, {}),
    "lms": ({}, published.lms, {"order": 4}),
    "deis": ({}, published.lms, {"order": 3}),
    "deis-log_snr": ({"variable": "log_snr"}, published.deis_log_rho, {"order": 3}),
    "deis-final": (
        {"variable": "log_snr", "lower_order_final": True},
        published.deis_log_rho,
        {"order": 3, "lower_order_final": True},
    ),
    **{f"ipndm-{n}": ({"order": n}, published.ipndm, {"order": n}) for n in (1, 2, 3, 4)},
    "dpm_solver_pp_2m": ({}, published.dpm_solver_pp_2m, {}),
    "dpm_solver_pp_2m_sde": ({}, published.dpm_solver_pp_2m, {"noise": True}),
    "dpm_solver_pp_2s": ({}, published.dpm_solver_pp_2s, {}),
    "dpm_solver_pp_3m": ({}, published.dpm_solver_pp_3m, {"factor": 2}),
    "dpm_solver_pp_3m-original": ({"rule": "original"}, published.dpm_solver_pp_3m, {"factor": 1}),
    "dpm_solver_pp_3m-final": (
        {"rule": "original", "lower_order_final": True},
        published.dpm_solver_pp_3m,
        {"factor": 1, "lower_order_final": True},
    ),
    **{
        f"unipc-{n}-{kind}": ({"order": n, "variant": kind}, published.unipc, {"order": n, "variant": kind})
        for n in (1, 2, 3)
        for kind in ("bh1", "bh2")
    },
    **{
        f"unipc-{n}-final": (
            {"order": n, "lower_order_final": True},
            published.unipc,
            {"order": n, "variant": "bh2", "lower_order_final": True},
        )
        for n in (2, 3)
    },
    "euler_ancestral": ({}, published.euler_ancestral, {"eta": 1.0, "noise": True}),
    "euler_ancestral-half": ({"eta": 0.5}, published.euler_ancestral, {"eta": 0.5, "noise": True}),
    "restart": (
        {"intervals": ((0.3, 2.0, 3, 2),), "S_noise": 1.01, "interval_rho": 5.0},
        published.restart,
        {"interval": (0.3, 2.0, 3, 2), "scale": 1.01, "rho": 5.0, "noise": True},
    ),
    **{
        f"sa_solver-{p}-{c}-original": (
            {"order": p, "corrector": c, "tau": 0.8, "rule": "original", "lower_order_final": True},
            published.sa_solver,
            {
                **{"predictor": p, "corrector": c, "tau": 0.8, "noise": True},
                **{"original": True, "lower_order_final": True},
            },
        )
        for p, c in ((2, 2), (3, 4), (3, 2), (2, 0))
    },
    **{
        f"sa_solver-{p}-{c}-{tau}": (
            {"order": p, "corrector": c, "tau": tau},
            published.sa_solver,
            {"predictor": p, "corrector": c, "tau": tau, "noise": True},
        )
        for p, c, tau in ((1, 0, 1.0), (3, 3, 1.0), (2, 4, 0.6), (3, 0, 1.4))
    },
}


@pytest.mark.parametrize("case", list(CASES))
def test_it_is_the_published_method(case, rng):
    """1e-8: the coefficients are exact to 1e-12, and exp, log and the ratio of the frames lose a few digits more."""
    hyper, reference, options = CASES[case]
    grid = pj.grids.log_snr(STEPS, t_end=0.02, sde=VP)
    y, noise = rng.normal(size=SHAPE), rng.normal(size=(STEPS, *SHAPE))
    sigmas = np.exp(-0.5 * VP.log_snr(grid))
    got = run(pj.integrators.get(case.split("-")[0], **hyper), VP, grid, y * sigmas[0] * alpha(VP, grid[0]), noise)
    options = options | ({"noise": noise} if options.get("noise") else {})
    np.testing.assert_allclose(got, reference(DENOISE, y * sigmas[0], sigmas, **options), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["edm_heun", "euler_edm", "dpm2", "sa_solver"])
def test_noise_between_levels_that_are_none_is_refused(name):
    """It would be left out of every step, without a word."""
    low, high = ("sigma_min", "sigma_max") if name == "sa_solver" else ("S_min", "S_max")
    hyper = {low: 5.0, high: 1.0} | ({} if name == "sa_solver" else {"S_churn": 1.0})
    with pytest.raises(ValueError, match=f"need {low} <= {high}, got {low}=5, {high}=1"):
        pj.tabulate(pj.integrators.get(name, **hyper), pj.sde.EDM(), [1.0, 0.5])


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("n", [1, 2, 12])
@pytest.mark.parametrize("sde", [pj.sde.PSLD(jitter=0.0), pj.sde.ThirdOrder(jitter=0.0)], ids=["psld", "third_order"])
def test_sa_solver_keeps_the_law_over_long_steps(sde, n, tau):
    """Of one image: what a step keeps of its variance and the noise make the next one. Its integrals err by 1e-9."""
    grid = pj.grids.quadratic(n, t_end=1e-2)
    table = pj.tabulate(pj.integrators.get("sa_solver", tau=tau, corrector=0), sde, grid, denoise=False)
    before, after = sde.cov(grid[:-1]), sde.cov(grid[1:])
    kept = table.A @ before @ np.swapaxes(table.A, -1, -2)
    size = np.abs(after).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(table.R @ np.swapaxes(table.R, -1, -2) / size, (after - kept) / size, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["edm_heun", "euler_edm", "dpm2"])
def test_churn_is_added_before_the_denoising_step_too(name):
    """Karras et al., 2022, algorithm 2: all of its steps, so a draw in each, and a last evaluation at more noise."""
    sde, levels = pj.sde.EDM(), np.array([80.0, 5.0, 0.2])
    table = pj.tabulate(pj.integrators.get(name, S_churn=0.6), sde, sde.time(levels))
    assert table.num_draws == 3
    np.testing.assert_allclose(sde.sigma(table.tau[-1]), 0.2 * (1 + 0.6 / 3), rtol=1e-12)
    raised = table.Rpre[-1, 0, 0]
    np.testing.assert_allclose(raised**2, 0.24**2 - 0.2**2, rtol=1e-10)
    np.testing.assert_allclose([table.A[-1, 0, 0], table.B[-1, 0, 0, 0]], [1, -0.24], rtol=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_noise_is_the_published_rule(eta, rng):
    grid = pj.grids.uniform(STEPS, t_end=0.02)
    y, noise = rng.normal(size=SHAPE), rng.normal(size=(STEPS, *SHAPE))
    got = run(pj.integrators.get("ddim", eta=eta), VP, grid, y * alpha(VP, grid[0]), noise) * alpha(VP, grid[-1])
    alpha_bar = np.array([alpha(VP, t) ** 2 for t in grid])
    expected = published.ddim(DENOISE, y * alpha(VP, grid[0]), alpha_bar, noise, eta)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["unipc", "restart"])
def test_the_rows_mean_what_the_loop_does(name, rng):
    grid, integrator = pj.grids.quadratic(STEPS), pj.integrators.get(name)
    table = pj.tabulate(integrator, VP, grid, denoise=False)
    y, noise = rng.normal(size=SHAPE), rng.normal(size=(table.num_draws, *SHAPE))
    eps_fn = pj.scores.mixture(DATA, BANDWIDTH, VP)
    z = pj.sample(eps_fn, table, VP.state(y), noise=VP.state(noise))
    # The score's coefficients are splines of time, good to 1e-9 or so.
    np.testing.assert_allclose(z[0] / alpha(VP, grid[-1]), run(integrator, VP, grid, y, noise), rtol=0, atol=1e-7)


# --- one diffusion in other units ------------------------------------------------------------------------------

PATHS = [
    VP,
    pj.sde.get("edm"),
    pj.sde.get("edm").preconditioned(),
    pj.sde.get("vesde"),
    pj.sde.get("flow"),
    pj.sde.get("cosine"),
    pj.sde.get("subvp"),
]


@pytest.mark.parametrize("case", [*CASES, "ancestral"])
def test_samples_are_the_same_under_every_path(case, rng):
    """At the same noise levels VP, VE, EDM, flow and the others are one diffusion in other units."""
    sigmas = np.geomspace(30.0, 0.05, 6)
    y, noise = rng.normal(size=SHAPE) * sigmas[0], rng.normal(size=(12, *SHAPE))
    integrator = pj.integrators.get(case.split("-")[0], **CASES.get(case, ({},))[0])
    times = [(sde, sde.time(sigmas)) for sde in PATHS]
    first, *others = (run(integrator, sde, t, y * alpha(sde, t[0]), noise) for sde, t in times)
    for sde, other in zip(PATHS[1:], others, strict=True):
        # 1e-8: sigma = exp(-log_snr / 2) of a time that was found for it is good to 1e-12 or so.
        np.testing.assert_allclose(other, first, rtol=0, atol=1e-8, err_msg=repr(sde))


@pytest.mark.parametrize("sde", [pj.sde.get("flow"), pj.sde.get("cosine")], ids=repr)
@pytest.mark.parametrize("case", list(CASES))
def test_it_starts_where_no_signal_is_left(case, sde, rng):
    """At ``t = 1`` sigma is infinite; for a constant prediction the step from there, and all others, are exact."""
    grid = np.array([1.0, *sde.time(np.geomspace(100.0, 0.02, 7))])
    integrator = pj.integrators.get(case.split("-")[0], **CASES[case][0])
    z_T, noise = rng.normal(size=SHAPE), np.zeros((20, *SHAPE))

    def end(start):
        return run(integrator, sde, grid, start, noise, lambda x, sigma: np.full(SHAPE, 0.3))

    np.testing.assert_allclose(end(0 * z_T), 0.3, rtol=0, atol=1e-9)
    if not integrator.stochastic:
        # x_s = alpha x_0 + sigma z_T: at t = 1 there is nothing but noise, of variance 1.
        np.testing.assert_allclose(end(z_T), 0.3 + float(sde.sigma(grid[-1])) * z_T, rtol=0, atol=1e-9)
