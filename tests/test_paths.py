"""Paths of one block: closed forms against quadrature and the originals, end points, one diffusion in many units."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from seeds import generator

import psld_jax as pj

GOLDEN = np.load(Path(__file__).parent / "golden" / "paths.npz")
OWN = pj.sde.path(lambda t: np.cos(0.4 * np.pi * t), lambda t: 3 * np.sin(0.5 * np.pi * t) ** 1.5)
ONE_AT_A_TIME = pj.sde.path(lambda t: 1.0, lambda t: 5 * abs(float(t)))
PATHS = [
    *(sde for sde in map(pj.sde.get, pj.sde.available()) if sde.num_blocks == 1),
    pj.sde.VPSDE(0.1, 20.0, jitter=1e-6),
    pj.sde.Flow(shift=3.0),
    pj.sde.Discrete("scaled_linear", 0.00085, 0.012),
    pj.sde.Discrete("squaredcos_cap_v2"),
    pj.sde.Discrete(zero_terminal_snr=True),
    pj.sde.path(lambda t: 1 - t, lambda t: t),
    OWN,
    ONE_AT_A_TIME,
]
NO_SIGNAL = [sde for sde in PATHS if not sde.has_signal(1.0)]
DATA = generator("test_paths").uniform(-1, 1, (20, 2, 2, 1))


def number(matrix):
    assert matrix.shape[-2:] == (1, 1)
    return matrix[..., 0, 0]


@pytest.mark.parametrize("sde", PATHS, ids=repr)
def test_a_path_is_the_law_of_its_sde(sde):
    """Drift and diffusion from alpha and sigma by differences; the covariance between two times by quadrature."""
    for t in (0.1, 0.5, 0.9):
        h = 1e-5
        slopes = [(f(t + h) - f(t - h)) / (2 * h) for f in (sde.alpha, sde.std)]
        # The difference is exact to h^2 times a third derivative.
        np.testing.assert_allclose([sde.alpha_rate(t), sde.std_rate(t)], slopes, rtol=1e-5, atol=1e-7)
        drift = slopes[0] / sde.alpha(t)
        np.testing.assert_allclose(number(sde.drift(t)), drift, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(number(sde.mean(t)), sde.alpha(t))
        np.testing.assert_allclose(number(sde.cov(t)), sde.std(t) ** 2, rtol=1e-14)
        if isinstance(sde, pj.sde.Discrete):
            continue  # a spline of a thousand pieces is beyond this quadrature; tests/test_varying.py has one of six
        exact = quad(
            lambda u, t=t: number(sde.transition(t, u) ** 2 * sde.diffusion(u)), 0.02, t, epsabs=0, epsrel=1e-12
        )[0]
        # A jitter is in the marginal law only; differences of order 10 are good to 1e-11.
        np.testing.assert_allclose(number(sde.noise_cov(t, 0.02)), exact, rtol=1e-10)


@pytest.mark.parametrize("sde", PATHS, ids=repr)
@pytest.mark.parametrize("step", [1e-3, 1e-6, 1e-9])
def test_short_steps_lose_no_digits(sde, step):
    """cov(t | s) is Psi^2 D (t - s) by the midpoint rule; a difference of two variances would be rounding at 1e-9."""
    t, middle = 0.5 + step, 0.5 + step / 2
    rule = number(sde.transition(t, middle) ** 2 * sde.diffusion(middle)) * (t - 0.5)
    # The rule's error, for slopes of up to 10; and that of the spline's knots, and of slopes by differences.
    np.testing.assert_allclose(number(sde.noise_cov(t, 0.5)) / rule, 1, atol=100 * step**2 + 1e-9)
    both = number(sde.noise_cov(0.8, 0.3)), number(sde.noise_cov(0.5, 0.3)), number(sde.noise_cov(0.8, 0.5))
    np.testing.assert_allclose(both[0], number(sde.transition(0.8, 0.5)) ** 2 * both[1] + both[2], rtol=1e-12)


@pytest.mark.parametrize("sde", PATHS, ids=repr)
def test_noise_level_and_time_are_inverse(sde):
    t = np.array([sde.t_end, 0.01, 0.3, 0.99])
    np.testing.assert_allclose(sde.time(sde.sigma(t)), t, rtol=1e-9)
    np.testing.assert_allclose(sde.sigma(t), sde.std(t) / sde.alpha(t), rtol=1e-12)
    np.testing.assert_allclose(np.log(sde.sigma(t)), -0.5 * sde.log_snr(t), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="sigma=-1.0 is no noise level of .* it must lie in"):
        sde.time(-1.0)
    phase = pj.sde.PSLD()
    np.testing.assert_allclose(phase.time(phase.sigma(t)), t, rtol=1e-8)


@pytest.mark.parametrize("sde", PATHS, ids=repr)
def test_what_the_network_predicts_changes_nothing_but_the_network(sde):
    """The field of the ODE and E[x_0 | x] of any x_0 and eps, read back from every prediction of them."""
    x0, eps = 0.7, -1.3
    for t in (0.03, 0.6):
        alpha, std = sde.alpha(t), sde.std(t)
        x, field = alpha * x0 + std * eps, sde.alpha_rate(t) * x0 + sde.std_rate(t) * eps
        targets = {
            "eps": eps,
            "data": x0,
            "score": -eps / std,
            "velocity": alpha * eps - std * x0,
            "flow": field,
        }
        for prediction, out in targets.items():
            other = sde.predicting(prediction)
            p, r = other.target(t)
            p2, q2 = other.training_target(t)
            np.testing.assert_allclose([p * x0 + r * x, p2 * x0 + q2 * eps], out, rtol=1e-9, atol=1e-9)
            for (u, v), wanted in (
                (other.denoiser(t), x0),
                (other.probability_flow(t), field),
                ((other.score_skip(t), other.score_matrix(t)), -eps / std),
                *((other.converted(t, name), value) for name, value in targets.items()),
            ):
                # 1e-8: x_0 is a difference of terms sigma / alpha as large, up to 50.
                np.testing.assert_allclose(number(u) * x + number(v) * out, wanted, rtol=1e-8, atol=1e-8)
        flow, forcing = sde.data_flow(t)
        np.testing.assert_allclose(number(flow) * x + number(forcing) * x0, field, rtol=1e-9, atol=1e-9)


def test_edm_is_table_1_of_karras_et_al():
    """c_skip, c_out, c_in, c_noise, to rounding; and D = c_skip x + c_out F of the original's own network."""
    sde, s, d = pj.sde.EDM().preconditioned(), np.array([0.002, 0.1, 0.5, 7.0, 80.0]), 0.5
    c_skip, c_out, c_in, c_noise = sde.scalings(s)
    np.testing.assert_allclose(c_skip, d**2 / (s**2 + d**2), rtol=1e-14)
    np.testing.assert_allclose(c_out, s * d / np.sqrt(s**2 + d**2), rtol=1e-14)
    np.testing.assert_allclose(c_in, 1 / np.sqrt(s**2 + d**2), rtol=1e-14)
    np.testing.assert_allclose(c_noise, np.log(s) / 4, rtol=1e-14)
    np.testing.assert_allclose(number(sde.input_matrix(sde.time(s))), c_in, rtol=1e-14)
    levels = GOLDEN["edm_sigma"].astype(np.float64)
    c_skip, c_out, _, c_noise = (c[:, None, None, None] for c in sde.scalings(levels))
    denoised = c_skip * GOLDEN["edm_x"] + c_out * GOLDEN["edm_F"]
    np.testing.assert_allclose(denoised, GOLDEN["edm_D"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(c_noise[:, 0, 0], GOLDEN["edm_c_noise"], rtol=1e-12)
    with pytest.raises(ValueError, match="is not preconditioned"):
        pj.sde.EDM().scalings(s)


def test_schedules_of_the_originals():
    """EDM's grid and VP's levels, diffusers' tables and Karras levels, by their numbers."""
    sde = pj.sde.EDM()
    grid = pj.grids.edm(17, t_end=sde.t_end, sde=sde)
    calls = GOLDEN["edm_heun_sigmas"]  # of Heun: at the start of each step, and at its end unless that is 0
    np.testing.assert_allclose(sde.sigma(grid), calls[::2], rtol=1e-13)
    np.testing.assert_array_equal(pj.grids.get("karras")(17, t_end=sde.t_end, sde=sde), grid)
    vp = pj.sde.VPSDE(0.1, 20.0)
    np.testing.assert_allclose(vp.sigma(GOLDEN["vp_t"]), GOLDEN["vp_sigma_of_t"], rtol=1e-10)  # it subtracts 1
    inverse = GOLDEN["vp_sigma_inv"]
    # Its closed form subtracts numbers of order 0.1 from each other: 1e-16 of that in t.
    np.testing.assert_allclose(vp.time(GOLDEN["vp_levels"]), inverse, rtol=1e-9, atol=1e-15)
    for name, options in (("cosine", ("squaredcos_cap_v2",)), ("scaled_linear", ("scaled_linear", 0.00085, 0.012))):
        theirs = GOLDEN[f"{name}_alphas_cumprod"]
        discrete = pj.sde.Discrete(*options)
        at = discrete.time_of(37 * np.arange(len(theirs)))
        # A running product in float32: 1e-7 a factor, and the last of the cosine's is 1e-9.
        np.testing.assert_allclose(discrete.alpha(at) ** 2, theirs, rtol=2e-4 if name == "cosine" else 1e-5)
        np.testing.assert_allclose(discrete.index(at), 37 * np.arange(len(theirs)), atol=1e-9)
    own = pj.sde.Discrete(alphas_cumprod=GOLDEN["scaled_linear_all"])
    karras = pj.grids.edm(9, t_end=own.t_end, sde=own)
    np.testing.assert_allclose(own.sigma(karras), GOLDEN["karras_sigmas"][:-1], rtol=1e-5)  # float32
    # Theirs interpolate log sigma between levels by a straight line, as this clock of a network does; ours by a cubic.
    told = pj.scores.discrete_times(GOLDEN["scaled_linear_all"], own)(jnp.asarray(karras))
    np.testing.assert_allclose(told, GOLDEN["karras_timesteps"], atol=1e-4)  # float32, which is 6e-5 at 999
    np.testing.assert_allclose(own.index(karras), told, atol=2e-2)  # 0.013 apart between 6 and 7


@pytest.mark.parametrize("sigma", ["x", [1.0, [2.0]], {}])
@pytest.mark.parametrize(
    "sde", [pj.sde.PSLD(), pj.sde.EDM(), pj.sde.Flow(), pj.sde.VESDE()], ids=lambda s: type(s).__name__
)
def test_what_is_no_noise_level_is_named(sde, sigma):
    with pytest.raises(ValueError, match="^sigma=.* must be a noise level, or an array of them$"):
        sde.time(sigma)


@pytest.mark.parametrize("schedule", [[0.9, 0.5], np.array([0.9, 0.5]), None])
def test_levels_in_the_place_of_a_schedule_are_led_to_their_own(schedule):
    with pytest.raises(
        ValueError, match="linear, scaled_linear, squaredcos_cap_v2; levels of your own are alphas_cumprod"
    ):
        pj.sde.Discrete(schedule)


def test_discrete_levels_are_met_exactly_and_zero_terminal_snr_is_zero():
    levels = np.cumprod(1 - np.linspace(1e-3, 0.2, 40))
    sde = pj.sde.Discrete(alphas_cumprod=levels)
    t = sde.time_of(np.arange(40))
    np.testing.assert_allclose(sde.alpha(t) ** 2, levels, rtol=1e-13)
    np.testing.assert_allclose(sde.std(t) ** 2, 1 - levels, rtol=1e-12)
    zero, plain = pj.sde.Discrete(zero_terminal_snr=True), pj.sde.Discrete()
    first, last = plain.alpha(1e-3), plain.alpha(1.0)
    n = np.array([0, 10, 500, 998])
    shifted = (plain.alpha(plain.time_of(n)) - last) * first / (first - last)
    np.testing.assert_allclose(zero.alpha(zero.time_of(n)), shifted, rtol=1e-9)
    assert not zero.has_signal(1.0) and zero.prediction == "velocity" and zero.sigma(1.0) == np.inf
    assert pj.sde.Discrete(alphas_cumprod=[0.9, 0.5, 0.0]).prediction == "velocity"
    assert len({repr(pj.sde.Discrete(alphas_cumprod=a)) for a in (levels, levels**2)}) == 2


ALL = [name for name in pj.integrators.available() if pj.integrators.get(name).applies_to(pj.sde.VPSDE())]


@pytest.mark.parametrize("sde", NO_SIGNAL, ids=repr)
@pytest.mark.parametrize("name", ALL)
def test_samplers_start_where_there_is_no_signal(sde, name):
    """Every coefficient is finite from t = 1 on; the first step is exact for data of one point."""
    integrator = pj.integrators.get(name)
    if name == "sscs":
        with pytest.raises(ValueError, match="stationary law"):
            pj.tabulate(integrator, sde, [1.0, 0.5])
        return
    table = pj.tabulate(integrator, sde, [1.0, 0.6, 0.2, 0.05])
    assert all(np.isfinite(rows).all() for rows in table.rows().values() if rows is not None)


@pytest.mark.parametrize("sde", NO_SIGNAL, ids=repr)
@pytest.mark.parametrize("prediction", ["data", "eps_r"])
def test_the_first_step_from_no_signal_is_exact(sde, prediction):
    """For one data point a trajectory of the ODE is alpha x_0 + sigma eps: x_1 = sigma eps, then exactly that."""
    x0, eps = 0.7, -1.3
    (stage,) = pj.integrators.get("exponential_multistep", prediction=prediction, order=1).stages(sde, 1.0, 0.4)
    p, r = sde.target(1.0)
    x = sde.std(1.0) * eps
    q = number(stage.U) * x + number(stage.V) * (p * x0 + r * x)
    found = number(stage.A) * x + number(stage.B[0]) * q
    np.testing.assert_allclose(found, sde.alpha(0.4) * x0 + sde.std(0.4) * eps, rtol=1e-11)


@pytest.mark.slow
def test_one_diffusion_in_other_units_gives_the_same_samples():
    """The same family on the same noise levels under VP, VE, EDM and flow: x_0 is equal to 1e-8."""
    levels = np.geomspace(20.0, 0.05, 7)
    ends = {}
    noise = generator("test_one_diffusion_in_other_units_gives_the_same_samples").standard_normal((3, 2, 2, 1))
    for sde in (pj.sde.EDM(), pj.sde.VESDE(), pj.sde.VPSDE(), pj.sde.Flow(), pj.sde.Discrete()):
        score = pj.scores.mixture(DATA, 0.2, sde)
        grid = pj.grids.from_sigmas(sde, levels)
        z = (jnp.asarray(sde.std(grid[0]) * noise),)
        for name, options in (
            ("exponential_multistep", {"variable": "log_snr", "order": 3}),
            ("exponential_multistep", {"variable": "log_snr", "order": 2, "prediction": "eps_r"}),
            ("predictor_corrector", {"variable": "log_snr"}),
            ("exponential_runge_kutta", {"variable": "log_snr"}),
            ("ancestral", {}),
        ):
            integrator = pj.integrators.get(name, **options)
            table = pj.tabulate(integrator, sde, grid, denoise="exponential")
            draws = jnp.asarray(
                generator("test_one_diffusion_in_other_units_gives_the_same_samples").standard_normal(
                    (table.num_draws, *noise.shape)
                )
            )
            out = np.asarray(pj.sample(score, table, z, noise=(draws,))[0])
            ends.setdefault((name, str(options)), []).append(out)
    for case, (first, *others) in ends.items():
        for other in others:
            np.testing.assert_allclose(other, first, atol=1e-8, err_msg=str(case))


@pytest.mark.slow
def test_adaptive_solvers_know_a_schedule_with_kinks(rng):
    """The cosine schedule of N levels, whose last ones jump: as exact as a fine table of a sampler."""
    sde = pj.sde.Discrete("squaredcos_cap_v2", num_steps=50)
    score = pj.scores.mixture(DATA, 0.1, sde)
    z = (jnp.asarray(rng.standard_normal((2, 2, 2, 1))),)
    found, _ = pj.sample_ode(score, sde, z, rtol=1e-8, atol=1e-8)
    table = pj.tabulate(pj.integrators.get("dpm_solver_pp_3m"), sde, pj.grids.log_snr(800, t_end=sde.t_end, sde=sde))
    np.testing.assert_allclose(found[0], pj.sample(score, table, z)[0], atol=1e-5)  # the table's own, of 1 / 800 ** 2


@pytest.mark.parametrize("sde", [pj.sde.EDM(), pj.sde.Flow(), pj.sde.Discrete(zero_terminal_snr=True)], ids=repr)
def test_the_last_step_by_choice(sde):
    """Exponential: to E[x_0 | x]. With alpha = 1 and sigma linear in time Euler's is the same."""
    t = 0.2
    stages = {how: pj.tabulate(pj.integrators.get("euler"), sde, [0.5, t], denoise=how) for how in (True, "euler")}
    u, v = sde.denoiser(t)
    np.testing.assert_allclose(stages[True].A[-1], u)
    np.testing.assert_allclose(stages[True].B[-1, 0], v)
    same = np.allclose(stages[True].A[-1], stages["euler"].A[-1]) and np.allclose(
        stages[True].B[-1], stages["euler"].B[-1]
    )
    assert same == (not isinstance(sde, pj.sde.Discrete))  # of flow too: it is straight
    with pytest.raises(ValueError, match="denoise='last' must be one of euler, exponential"):
        pj.tabulate(pj.integrators.get("euler"), sde, [0.5, t], denoise="last")
    phase = pj.sde.PSLD()
    for how, wanted in ((True, "euler"), ("exponential", "exponential")):
        table = pj.tabulate(pj.integrators.get("euler"), phase, [0.5, t], denoise=how)
        euler = np.eye(2) - t * phase.drift(t)
        np.testing.assert_allclose(table.A[-1][1], euler[1])
        np.testing.assert_allclose(table.A[-1][0], phase.denoiser(t)[0][0] if wanted == "exponential" else euler[0])


def test_grids_in_noise_levels():
    sde, vp = pj.sde.EDM(), pj.sde.VPSDE()
    for name in ("edm", "log_snr"):
        for path in (sde, vp, pj.sde.Flow(), pj.sde.PSLD()):
            levels = path.sigma(pj.grids.get(name)(8, t_end=path.t_end, sde=path))
            inner = levels[1:] ** (1 / 7) if name == "edm" else np.log(levels[1:])
            np.testing.assert_allclose(np.diff(inner), np.diff(inner)[0], rtol=1e-6)
    np.testing.assert_allclose(sde.sigma(pj.grids.from_sigmas(sde, [80, 5.0, 0.002, 0])), [80, 5, 0.002])
    np.testing.assert_allclose(pj.grids.from_timesteps(sde, [1, 0.5]), [1, 0.5])
    np.testing.assert_allclose(pj.grids.from_timesteps(pj.sde.Discrete(), [999, 499, 0]), [1, 0.5, 0.001])
    for make, message in (
        (lambda: pj.grids.from_sigmas(sde, [1.0, 2.0]), "sigmas=.1. 2.. must be at least two numbers that fall"),
        (lambda: pj.grids.from_sigmas(sde, [81.0, 2.0]), r"sigma=81.0 is no noise level.*\[0, 80\]"),
        (lambda: pj.grids.from_timesteps(pj.sde.Discrete(), [1000, 3]), "0 to 999"),
        (lambda: pj.grids.from_timesteps(sde, [1.5, 0.5]), r"\(0, 1\]"),
        (lambda: pj.grids.edm(5, sde=sde, rho=0.0), "rho=0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


BAD = [
    (lambda: pj.sde.path(lambda t: 1 + t, lambda t: 1 + t), r"alpha / sigma must fall.*from t=0 to .*\(1 to 1\)"),
    (lambda: pj.sde.path(lambda t: 1 - 2 * t, lambda t: t), r"alpha\(0.5\) = 0 must be finite and > 0; it may vanish"),
    (lambda: pj.sde.path(lambda t: 1.0, lambda t: t - 0.5), r"sigma\(0\) = -0.5 must be finite"),
    (lambda: pj.sde.path(lambda t: np.log(t - 0.3), lambda t: t), r"alpha\(0\) = nan must be finite"),
    (lambda: pj.sde.path(lambda t: np.sqrt(1 - t**2), lambda t: t), "slope of alpha is .* at t = 1"),
    (lambda: pj.sde.path(2.0, lambda t: t), "alpha=2.0 must be a function"),
    (lambda: pj.sde.path(lambda t: t.nothing, lambda t: t), "alpha failed for times"),
    (lambda: pj.sde.path(lambda t: (1 - t)[0], lambda t: t), "alpha failed for times of .* IndexError"),
    (
        lambda: pj.sde.path(lambda t: np.max(1 - t), lambda t: t),
        "alpha .*of both 0.25 and 0.5 it gives .*of each alone",
    ),
    (lambda: pj.sde.path(lambda t: 1 - t, lambda t: t, t_end=0.0), "t_end=0.0"),
    (lambda: pj.sde.path(lambda t: 1 - t, lambda t: t, t_end="late"), "t_end='late'"),
    (lambda: pj.sde.path(lambda t: np.float32(1) - np.float32(t), lambda t: t), "it gives float32, which loses"),
    (lambda: pj.sde.EDM(sigma_min=1.0, sigma_max=0.5), "sigma_min=1.0, sigma_max=0.5"),
    (lambda: pj.sde.EDM(data_std=0.0), "data_std=0.0"),
    (lambda: pj.sde.VESDE(sigma_min=0.0), "sigma_min=0.0"),
    (lambda: pj.sde.SubVP(-1.0, 2.0), "beta_min=-1.0"),
    (lambda: pj.sde.SubVP(0.0, 0.0), "not both 0"),
    (lambda: pj.sde.Cosine(0.0), "offset=0.0"),
    (lambda: pj.sde.Flow(float("nan")), "shift=nan"),
    (lambda: pj.sde.Discrete("linaer"), "Did you mean 'linear'"),
    (lambda: pj.sde.Discrete(beta_start=0.5, beta_end=0.1), "beta_start=0.5"),
    (lambda: pj.sde.Discrete(num_steps=1), "num_steps=1"),
    (lambda: pj.sde.Discrete(alphas_cumprod=[0.5, 0.7]), "numbers that fall"),
    (lambda: pj.sde.Discrete(alphas_cumprod=[0.9, float("nan")]), "numbers that fall"),
    (lambda: pj.sde.Discrete(zero_terminal_snr=True, alphas_cumprod=[0.9, 0.5]), "as they are"),
    (lambda: pj.sde.EDM().predicting("noise"), "unknown prediction 'noise'"),
    (lambda: pj.sde.EDM().preconditioned().predicting("eps"), "is preconditioned"),
    (lambda: pj.sde.Flow().drift(1.0), "not finite at t=1.0"),
    (lambda: pj.sde.Flow().transition(0.5, 1.0), "alpha = 0 at t=1.0"),
    (lambda: pj.sde.Flow().predicting("eps").denoiser(1.0), "'eps' says nothing of x_0.*adaptive solvers do not"),
    (lambda: pj.sde.EDM().perturb(jnp.zeros((1, 2)), 1.5, (jnp.zeros((1, 2)),)), r"t must lie in \[0, 1\], got 1.5"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_input_is_one_line_that_names_it(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_own_functions_may_be_made_with_jax():
    """They compute in float64, whatever JAX does elsewhere."""
    theirs = pj.sde.path(lambda t: jnp.cos(0.5 * jnp.pi * t), jax.jit(lambda t: jnp.sin(0.5 * jnp.pi * t)))
    ours = pj.sde.path(lambda t: np.cos(0.5 * np.pi * t), lambda t: np.sin(0.5 * np.pi * t))
    t = np.linspace(0.01, 1, 20)
    with jax.enable_x64(False):
        for name in ("alpha", "std", "alpha_rate", "std_rate"):
            np.testing.assert_allclose(getattr(theirs, name)(t), getattr(ours, name)(t), rtol=1e-14, atol=1e-15)
    solved = pj.sde.VaryingSDE(
        lambda t: -jnp.sin(t)[..., None, None] * jnp.eye(1), lambda t: 2 * jnp.sin(t)[..., None, None] * jnp.eye(1)
    )
    np.testing.assert_allclose(solved.mean(0.5)[0, 0], np.exp(np.cos(0.5) - 1), rtol=1e-13)


@pytest.mark.parametrize("name", pj.sde.available())
def test_arguments_of_another_kind_are_named(name):
    """Everything that a configuration may hold, not only numbers that are too small."""
    for argument in pj.sde.parameters(name):
        for value in ("eight", (0.1, 0.2), 1j):
            with pytest.raises(ValueError, match=argument):
                pj.sde.get(name, **{argument: value})
    with pytest.raises(ValueError, match=f"unknown argument of the diffusion '{name}'"):
        pj.sde.get(name, sigma_low=1.0)


def test_prior_and_perturbed_data(key):
    for sde in PATHS:
        std = np.std(sde.prior_sample(key, (4, 50, 50, 1))[0])
        wanted = 1.0 if sde.variance_preserving else sde.std(1.0)
        np.testing.assert_allclose(std, wanted, rtol=0.035)  # 10,000 numbers, five standard deviations
    x0, eps = jnp.asarray(DATA[:2]), (jnp.ones((2, 2, 2, 1)),)
    for sde, t in itertools.product((pj.sde.Flow(), pj.sde.EDM()), (0.0, 0.3, 1.0)):
        np.testing.assert_allclose(sde.perturb(x0, t, eps)[0], sde.alpha(t) * x0 + sde.std(t), rtol=1e-6)
    traced = jax.jit(pj.sde.Flow().perturb)(x0, jnp.asarray(0.3), eps)[0]
    np.testing.assert_allclose(traced, 0.7 * x0 + 0.3, rtol=1e-8, atol=1e-8)
