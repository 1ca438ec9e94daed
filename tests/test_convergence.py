"""Every integrator against closed forms: stated order, exactness where promised, equality with published rules."""

import closed_forms
import numpy as np
import pytest
from scipy.integrate import quad

import psld_jax as pj
from benchmarks import slopes

# A varying beta and friction in both blocks: nothing commutes, nothing is special.
PHASE = pj.sde.PSLD(0.25, 4.25, beta_min=3.0, beta_max=9.0)
PHASE_UPPER = pj.sde.PSLD(0.5, 3.0, beta_min=3.0, beta_max=9.0, decomposition="upper")
VP = pj.sde.VPSDE(1.0, 8.0)
PROBLEMS = {sde: closed_forms.GaussianData(sde) for sde in (PHASE, PHASE_UPPER, VP)}
T_END = 0.05
STEPS = (100, 200)
# Of these the next order is larger, and to be seen for longer.
LATE = ("dpm_solver_pp_3m", "predictor_corrector", "reduced_baoab", "sscs")


# These begin with steps of lower order. The error of the start is of the stated order, however small; until it shows,
# the error falls faster. Their own order is for test_after_a_start_in_small_steps_the_order_is_that_of_the_steps.
RISING = ("deis", "dpm_solver_pp_3m", "ipndm", "lms", "sa_solver", "unipc")
# The same frames and predictions as others.
SAME = (*RISING, "dpm2", "dpm_solver_pp_2m", "dpm_solver_pp_2m_sde", "dpm_solver_pp_2s", "euler_ancestral", "restart")


def cases():
    for name in pj.integrators.available():
        integrator = pj.integrators.get(name)
        # Two blocks are four times the work. For these, which are others in other words, one will do.
        yield pytest.param(integrator, PHASE, id=f"{name}-psld", marks=[pytest.mark.slow] * (name in SAME))
        if not closed_forms.is_splitting(name):
            yield pytest.param(integrator, VP, id=f"{name}-vp")
            yield pytest.param(integrator, PHASE_UPPER, id=f"{name}-psld-upper", marks=pytest.mark.slow)


def table(integrator, sde, n_steps):
    return pj.tabulate(integrator, sde, pj.grids.uniform(n_steps, t_end=T_END), denoise=False)


@pytest.mark.parametrize(("integrator", "sde"), list(cases()))
def test_global_error_falls_at_the_stated_order(integrator, sde):
    """Gaussian data make eps affine, so a sampler is an affine map (plus Gaussian noise): no Monte Carlo."""
    data, k = PROBLEMS[sde], sde.num_blocks
    steps = [2 * n if integrator.name in LATE else n for n in STEPS]
    jacobian, offset = data.jacobian_at, data.offset_at
    errors = []
    if integrator.stochastic:
        # From the exact law at T, the exact reverse SDE gives the exact law at t_end: errors in mean and covariance.
        start, exact = [(data.mean(t), data.cov(t)) for t in (1.0, T_END)]
        for n in steps:
            got = pj.analysis.propagate(table(integrator, sde, n), jacobian, *start, offset)
            errors.append([np.abs(a - b).max() for a, b in zip(got, exact, strict=True)])
    else:
        matrix, shift = data.ode_flow(1.0, T_END)
        for n in steps:
            tab, none = table(integrator, sde, n), np.zeros((k, k))
            columns = [pj.analysis.propagate(tab, jacobian, e, none)[0] for e in np.eye(k)]
            moved = pj.analysis.propagate(tab, jacobian, np.zeros(k), none, offset)[0]
            errors.append([np.abs(np.stack(columns, 1) - matrix).max(), np.abs(moved - shift[:, 0]).max()])
    errors = np.array(errors)
    errors = errors[:, errors[0] > 1e-12]  # a mean that is exact has no order: what is left is rounding
    assert errors.size
    slopes = np.log2(errors[0] / errors[1])
    # At so many steps the next order is still visible: a few percent of the slope.
    if integrator.name in RISING:
        assert np.all(slopes > integrator.order - 0.12)
    else:
        np.testing.assert_allclose(slopes, integrator.order, atol=0.12)


def errors_after_small_steps(name, hyper):
    """Of 320 and 640 steps on VP. The first ones double up to their length, which hides the error of the start."""
    data, none, errors = closed_forms.GaussianData(VP), np.zeros((1, 1)), []
    matrix, _ = data.ode_flow(0.9, T_END)
    for n in (320, 640):
        start = 0.9 - (0.9 - T_END) / n * 2.0 ** np.arange(-9, 1)
        grid = np.concatenate([[0.9], start, np.linspace(start[-1], T_END, n)[1:]])
        made = pj.tabulate(pj.integrators.get(name, **hyper), VP, grid, denoise=False)
        errors.append(abs(pj.analysis.propagate(made, data.jacobian, np.ones(1), none)[0][0] - matrix[0, 0]))
    return errors


@pytest.mark.parametrize(
    ("name", "hyper", "order"),
    [
        ("deis", {"order": 3}, 3),
        ("lms", {}, 4),
        ("ipndm", {"order": 2}, 2),
        ("unipc", {"order": 2}, 3),
        ("unipc", {"order": 3}, 4),
    ],
)
def test_after_a_start_in_small_steps_the_order_is_that_of_the_steps(name, hyper, order):
    first, second = errors_after_small_steps(name, hyper)
    # The next order is still to be seen; for lms it is the larger part.
    assert order - 0.2 < np.log2(first / second) < order + 0.5


def test_the_published_third_order_rule_of_dpm_solver_pp_is_of_second():
    """Half of the second difference is missing in it, and with it the order."""
    first, second = errors_after_small_steps("dpm_solver_pp_3m", {"rule": "original"})
    assert np.log2(first / second) == pytest.approx(2, abs=0.05)
    assert errors_after_small_steps("dpm_solver_pp_3m", {})[1] < second / 50


def check_slopes(found, atol):
    for name, slope in found.items():
        assert slope == pytest.approx(pj.integrators.get(name).order, abs=atol), name


@pytest.mark.parametrize("diffusion", ["flow", "vesde"])
def test_orders_on_the_digits(diffusion):
    """At so few steps some of the next order is to be seen."""
    check_slopes(slopes.slopes(diffusion, ("euler", "edm_heun", "dpm_solver_pp_2m"), (40, 80), 320), 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("diffusion", slopes.DIFFUSIONS)
def test_orders_on_the_digits_under_every_path(diffusion):
    """docs/results.md has the numbers; the farthest is 0.18 off."""
    found = slopes.slopes(diffusion, slopes.samplers())
    assert len(found) > 15
    check_slopes(found, 0.25)


def test_the_oracle_is_the_law_of_the_forward_process():
    """Push the exact law at t_end forward by transition and noise: it must be the exact law at T."""
    data = closed_forms.GaussianData(PHASE)
    psi = PHASE.transition(1.0, T_END)
    jitter = PHASE.jitter * (psi @ psi.T - np.eye(2))
    pushed = psi @ data.cov(T_END) @ psi.T + PHASE.noise_cov(1.0, T_END) - jitter
    np.testing.assert_allclose(psi @ data.mean(T_END), data.mean(1.0), rtol=1e-12)
    np.testing.assert_allclose(pushed, data.cov(1.0), rtol=1e-11)


@pytest.mark.parametrize("step", [(1.0, 0.9), (0.5, 0.2), (0.01, 0.001)])
def test_ddim_on_vp_is_the_published_rule(step):
    """x_s = a_s/a_t x + (sigma_s - sigma_t a_s/a_t) eps (Song, Meng & Ermon, 2021, eq. 13), to 1e-12."""
    sde, (t, s) = pj.sde.VPSDE(), step
    stage = pj.integrators.get("ddim").stages(sde, t, s)[0]
    a_t, a_s = (np.exp(-0.5 * sde.beta_integral(u)) for u in step)
    sigma_t, sigma_s = (np.sqrt(-np.expm1(-sde.beta_integral(u))) for u in step)
    np.testing.assert_allclose(stage.A, [[a_s / a_t]], rtol=1e-12)
    # 1e-12 of the terms of the difference, not of the difference.
    np.testing.assert_allclose(stage.B[0], [[sigma_s - sigma_t * a_s / a_t]], rtol=0, atol=1e-12 * sigma_t)


@pytest.mark.parametrize("sde", [PHASE, VP, pj.sde.PSLD(gamma=0.0, nu=4.0)], ids=repr)
def test_without_b_a_step_is_exact_for_constant_eps(sde):
    """B = 0: variation of constants, z_s = Psi z - 1/2 int Psi(s, u) D C du eps, by scipy's quadrature."""
    t, s, k = 0.8, 0.3, sde.num_blocks
    stage = pj.integrators.get("ddim").stages(sde, t, s)[0]
    np.testing.assert_allclose(stage.A, sde.transition(s, t), rtol=1e-11, atol=1e-12)

    def integrand(u, i, j):
        return (-0.5 * sde.transition(s, u) @ sde.diffusion(u) @ sde.score_matrix(u))[i, j]

    exact = [[quad(integrand, t, s, args=(i, j), epsabs=1e-13, epsrel=1e-12)[0] for j in range(k)] for i in range(k)]
    np.testing.assert_allclose(stage.B[0], exact, rtol=1e-10, atol=1e-11)
    # So one long step is as good as many: constant eps leaves nothing to discretise.
    one = pj.tabulate(pj.integrators.get("ddim"), sde, np.array([t, s]), denoise=False)
    many = pj.tabulate(pj.integrators.get("ddim"), sde, np.linspace(t, s, 12), denoise=False)
    constant, zero = np.full(k, 0.7), np.zeros((k, k))
    ends = [pj.analysis.propagate(tab, zero, np.ones(k), zero, lambda u: constant)[0] for tab in (one, many)]
    np.testing.assert_allclose(*ends, rtol=1e-11)


def test_the_conjugate_family_contains_its_members():
    t, s = 0.7, 0.6
    get = pj.integrators.get

    def same(a, b, sde=PHASE):
        for x, y in zip(a.stages(sde, t, s), b.stages(sde, t, s), strict=True):
            np.testing.assert_allclose(x.A, y.A, rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(x.B, y.B, rtol=1e-12, atol=1e-13)

    same(get("conjugate"), get("ddim"))
    same(get("lambda_ddim_i", lam=0.0), get("ddim"))
    same(get("conjugate", B=0.7), get("lambda_ddim_i", lam=0.7))
    same(get("conjugate", B=np.full((2, 2), 0.7)), get("lambda_ddim_ii", lam=0.7))
    same(get("lambda_ddim_i", lam=0.7), get("lambda_ddim_ii", lam=0.7), VP)
    same(get("conjugate", B=[[0.7]]), get("lambda_ddim_i", lam=0.7), VP)
    constant = pj.sde.PSLD()
    # B = F makes the frame stand still: Euler, but for the average of D C over the step in place of its start.
    stage = get("conjugate", B=constant.drift(t)).stages(constant, t, s)[0]
    np.testing.assert_allclose(stage.A, np.eye(2) - (t - s) * constant.drift(t), rtol=1e-12, atol=1e-14)


def test_conjugate_flow_solves_its_equations_when_nothing_commutes():
    from scipy.integrate import solve_ivp

    from psld_jax.sde._quadrature import conjugate_flow

    def generator(u):
        u = np.asarray(u)[..., None, None]
        return np.array([[0.0, 1.0], [0.0, 0.0]]) * np.sin(3 * u) + np.array([[0.3, 0.0], [2.0, -1.0]]) * u**2

    def forcing(u):
        return np.cos(np.asarray(u)[..., None, None] * np.array([[1.0, 2.0], [3.0, 4.0]]))

    a, phi = conjugate_flow(generator, forcing, 0.9, 0.1)

    def velocity(u, y):
        frame = y[:4].reshape(2, 2)
        return np.concatenate([(frame @ generator(u)).ravel(), (frame @ forcing(u)).ravel()])

    start = np.concatenate([np.eye(2).ravel(), np.zeros(4)])
    end = solve_ivp(velocity, (0.9, 0.1), start, rtol=1e-12, atol=1e-14, method="DOP853").y[:, -1]
    np.testing.assert_allclose(a.ravel(), end[:4], rtol=1e-10)
    np.testing.assert_allclose(phi.ravel(), end[4:], rtol=1e-10)


def test_short_steps_of_a_third_order_diffusion_have_coefficients():
    sde = pj.sde.ThirdOrder()
    grid = np.linspace(1.02e-3, 1e-3, 5)  # where rounding in Sigma is as large as 1e-9 of what is integrated
    table = pj.tabulate(pj.integrators.get("deis", order=4), sde, grid, denoise=False)
    for row, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        # Lagrange polynomials add up to 1, and for a constant the integral is known.
        psi = sde.transition(s, t)
        exact = sde.frame(s) - psi @ sde.frame(t)
        np.testing.assert_allclose(table.A[row], psi, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(table.B[row].sum(axis=0), exact, rtol=0, atol=1e-8 * np.abs(exact).max())


def test_coefficients_of_what_jumps_do_not_pass_for_rounding():
    from psld_jax.sde._quadrature import conjugate_flow

    zero, jump = lambda u: np.zeros((len(u), 2, 2)), lambda u: np.sign(u - 0.37)[:, None, None] * np.eye(2)
    with pytest.raises(ValueError, match=r"the step 0\.9 -> 0\.1 do not converge"):
        conjugate_flow(zero, jump, 0.9, 0.1)


def test_o_is_exact_and_lam_s_scales_its_position_noise_only():
    sde, t, s = pj.sde.PSLD(0.3, 4.3, beta_min=2.0, beta_max=9.0), 0.8, 0.55
    length = sde.beta_integral(t) - sde.beta_integral(s)
    ou = pj.integrators.get("reduced_oba").stages(sde, t, s)[0]
    np.testing.assert_allclose(np.diag(ou.A), np.exp(-length * np.array([0.3, 4.3]) / 2))
    # It keeps the prior: decay^2 prior + noise = prior.
    prior = np.diag(sde.prior_cov())
    np.testing.assert_allclose(np.diag(ou.A) ** 2 * prior + np.diag(ou.R) ** 2, prior, rtol=1e-12)
    scaled = pj.integrators.get("reduced_oba", lam_s=0.4).stages(sde, t, s)[0]
    np.testing.assert_allclose(np.diag(scaled.R)[0] ** 2, 1 - np.exp(-0.4 * 0.3 * length))
    np.testing.assert_allclose(np.diag(scaled.R)[1], np.diag(ou.R)[1])
    mean_time = pj.integrators.get("reduced_oba", lam_s=0.4, noise_scaling="mean_time").stages(sde, t, s)[0]
    np.testing.assert_allclose(np.diag(mean_time.R)[0] ** 2, 1 - np.exp(-0.4 * 0.3 * sde.beta_integral((t + s) / 2)))


def test_splitting_updates_are_the_written_ones(rng):
    """RVV and ROBA in the letters of the definition, with numbers for z and eps."""
    sde, t, s = PHASE, 0.6, 0.5
    h, e_x, e_m = t - s, np.diag([1.0, 0.0]), np.diag([0.0, 1.0])
    z, eps0, eps1, xi = rng.standard_normal((4, 2))

    def ode(e, h, tau, z, eps):
        dc = sde.diffusion(tau) @ sde.score_matrix(tau)
        return z - h * e @ sde.drift(tau) @ z + 0.5 * h * e @ dc @ eps

    def run(name, *predictions):
        out, pending, q = z, list(predictions), None
        for stage in pj.integrators.get(name).stages(sde, t, s):
            if stage.tau is not None:
                q = pending.pop(0)
            out = stage.A @ out + sum((b @ q for b in stage.B), 0 * out) + (0 if stage.R is None else stage.R @ xi)
        assert not pending
        return out

    half = ode(e_x, h, t, ode(e_m, h / 2, t, z, eps0), eps0)
    np.testing.assert_allclose(run("reduced_velocity_verlet", eps0, eps1), ode(e_m, h / 2, s, half, eps1))

    f_o = -0.5 * sde.beta(t) * np.diag([sde.gamma, sde.nu])

    def rest(e, h, z, eps):
        dc = sde.diffusion(t) @ sde.score_matrix(t)
        return z + h * e @ (-sde.drift(t) - f_o) @ z + h * e @ dc @ eps

    length = sde.beta_integral(t) - sde.beta_integral(s)
    friction, prior = np.array([sde.gamma, sde.nu]), np.array([1.0, sde.mass])
    moved = np.exp(-length * friction / 2) * z + np.sqrt(prior * (1 - np.exp(-length * friction))) * xi
    np.testing.assert_allclose(run("reduced_oba", eps0), rest(e_x, h, rest(e_m, h, moved, eps0), eps0))


@pytest.mark.parametrize(
    ("name", "taus"),
    [
        ("naive_symplectic_euler", "tt"),
        ("reduced_symplectic_euler", "t"),
        ("naive_velocity_verlet", "ttt"),
        ("reduced_velocity_verlet", "ts"),
        ("naive_oba", "tt"),
        ("naive_baoab", "tttt"),
        ("naive_obab", "ttt"),
        ("reduced_oba", "t"),
        ("reduced_baoab", "ts"),
        ("reduced_obab", "ts"),
        ("conjugate_symplectic_euler", "t"),
        ("conjugate_velocity_verlet", "ts"),
        ("conjugate_oba", "t"),
        ("conjugate_baoab", "ts"),
        ("conjugate_obab", "ts"),
    ],
)
def test_splitting_evaluates_where_it_says(name, taus):
    stages = pj.integrators.get(name).stages(pj.sde.PSLD(), 0.5, 0.4)
    assert [stage.tau for stage in stages if stage.tau is not None] == [{"t": 0.5, "s": 0.4}[c] for c in taus]


@pytest.mark.slow
def test_mixture_law_makes_reduced_schemes_beat_their_naive_twins(digits_model):
    """25 evaluations, uniform grid, 512 samples: Frechet distance at most a quarter."""
    import jax

    from psld_jax.sampling.generate import generate_states

    law = pj.metrics.mixture_statistics(digits_model.data, digits_model.config.model.bandwidth)

    def distance(name):
        with jax.enable_x64(False):
            state, nfe = generate_states(digits_model, name, nfe=25, n=512, grid="uniform", batch_size=512)
        assert nfe.max() <= 25
        return pj.metrics.frechet_distance(*pj.metrics.statistics(state[0]), *law)

    for scheme in ("symplectic_euler", "velocity_verlet", "oba", "baoab", "obab"):
        assert distance(f"reduced_{scheme}") < distance(f"naive_{scheme}") / 4
