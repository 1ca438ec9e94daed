"""Matrices that vary in time, and three blocks: against the closed forms of every diffusion that has a name."""

from fractions import Fraction

import jax
import numpy as np
import pytest

import psld_jax as pj

T = np.array([1e-6, 1e-4, 1e-2, 0.3, 0.8, 0.95])
CASES = [
    *(sde for sde in map(pj.sde.get, pj.sde.available()) if not isinstance(sde, pj.sde.Discrete)),
    pj.sde.PSLD(0.25, 4.25, 3.0, 9.0, jitter=0.0),
    pj.sde.PSLD(gamma=0.0, nu=4.0, kappa=0.0),
    pj.sde.ThirdOrder(3.0, 9.0, decomposition="upper", jitter=0.0),
    pj.sde.Discrete(num_steps=6),  # a spline of a thousand pieces needs as many panels
    pj.sde.path(lambda t: 1 - t, lambda t: t),
]


def relative(found, exact):
    scale = np.maximum(np.abs(exact).max(axis=(-1, -2)), np.finfo(float).tiny)
    return (np.abs(found - exact).max(axis=(-1, -2)) / scale).max()


@pytest.mark.parametrize("sde", CASES, ids=repr)
def test_the_solve_is_the_closed_form(sde):
    """Transition, covariance and everything made of them to 1e-12 of their size, also for steps of 1e-8."""
    options = {"initial_cov": sde.initial_cov, "jitter": sde.jitter, "decomposition": sde.decomposition}
    # At t = 1 the drift of some is infinite.
    solved = pj.sde.VaryingSDE(sde.drift, sde.diffusion, t_max=0.96, **options)
    pairs = [
        (solved.transition(T, 0.0), sde.transition(T, 0.0)),
        (solved.transition(T, 0.02), sde.transition(T, 0.02)),
        (solved.noise_cov(T), sde.noise_cov(T)),
        (solved.noise_cov(T[3:], 0.02), sde.noise_cov(T[3:], 0.02)),
        (solved.mean(T), sde.mean(T)),
        (solved.cov(T), sde.cov(T)),
    ]
    assert max(relative(*pair) for pair in pairs) < 1e-12
    step = 1e-8
    middle = sde.diffusion(0.5 + step / 2)
    short = solved.noise_cov(0.5 + step, 0.5)
    # D (t - s), up to a step's length times F; blocks without noise of their own get even less.
    assert relative(short, middle * ((0.5 + step) - 0.5)) < 1e-6


def test_third_order_is_its_matrix_exponential_and_keeps_its_law():
    sde = pj.sde.ThirdOrder(3.0, 9.0)
    general = pj.sde.LinearSDE(
        sde.unit_drift, sde.unit_diffusion, beta_min=3.0, beta_max=9.0, initial_cov=sde.initial_cov, jitter=sde.jitter
    )
    assert relative(sde.transition(T, 0.3), general.transition(T, 0.3)) < 1e-11
    assert relative(sde.cov(T), general.cov(T)) < 1e-11
    assert relative(sde.prior_cov(), general.prior_cov()) < 1e-13
    psi = sde.transition(0.9, 0.1)
    np.testing.assert_allclose(psi @ psi.T + sde.noise_cov(0.9, 0.1), np.eye(3), atol=1e-13)
    # Critical damping: one eigenvalue three times; near t = 0 the noise of x is b^5 / 20 g^2 2 x.
    np.testing.assert_allclose(np.linalg.eigvals(sde.unit_drift), -np.sqrt(3), atol=1e-4)
    b = sde.beta_integral(1e-4)
    np.testing.assert_allclose(sde.noise_cov(1e-4)[0, 0], 2 * np.sqrt(27) * 8 * b**5 / 20, rtol=1e-3)


def test_a_factor_keeps_its_digits_where_the_covariance_is_nearly_singular():
    """Without jitter, a short time after the start, against rational numbers: a Cholesky factor of cov(t) had five."""
    sde, t = pj.sde.ThirdOrder(jitter=0.0), 1e-5
    rational = np.vectorize(Fraction, otypes=[object])
    f, d, cov = (rational(matrix) for matrix in (sde.unit_drift, sde.unit_diffusion, sde.initial_cov))
    # d cov / db = f cov + cov f^T + d, as a series in b.
    b, term, total = Fraction(sde.beta_integral(t)), cov, cov
    for n in range(1, 12):
        term = (f @ term + term @ f.T + (d if n == 1 else 0)) * b / n
        total = total + term
    # L D L^T without roots, then the roots.
    rest, columns = total.copy(), []
    for k in range(3):
        pivot, column = rest[k, k], rest[:, k] / rest[k, k]
        rest = rest - pivot * np.outer(column, column)
        columns.append(column.astype(float) * float(pivot) ** 0.5)
    exact = np.stack(columns, axis=1)
    np.testing.assert_allclose(sde.factor(t), exact, rtol=1e-9, atol=0)
    # So have noise levels, which were those of a negative SNR here.
    times = np.logspace(-6, 0, 50)
    assert np.all(np.diff(sde.sigma(times)) > 0)
    np.testing.assert_allclose(sde.time(sde.sigma(times)), times, rtol=1e-6)
    options = {"initial_cov": sde.initial_cov, "prior_cov": np.eye(3)}
    solved = pj.sde.VaryingSDE(sde.drift, sde.diffusion, **options)
    np.testing.assert_allclose(solved.factor(t), exact, rtol=1e-6, atol=0)


def test_covariances_that_are_none_are_refused():
    for message, wrong in (
        ("negative eigenvalue -1", -np.eye(2)),
        ("must be finite and symmetric", np.array([[1.0, 0.5], [0.0, 1.0]])),
        ("must be finite and symmetric", np.full((2, 2), np.nan)),
    ):
        for name in ("initial_cov", "prior_cov"):
            with pytest.raises(ValueError, match=f"{name}.*{message}"):
                pj.sde.VaryingSDE(constant, lambda t: np.eye(2), **{name: wrong})
        for arguments in ({"diffusion": wrong}, {"diffusion": np.eye(2), "initial_cov": wrong}):
            with pytest.raises(ValueError, match=message):
                pj.sde.LinearSDE(-np.eye(2), **arguments, beta_min=1.0, beta_max=1.0)


THIRD = pj.sde.ThirdOrder()
K3 = [name for name in pj.integrators.available() if pj.integrators.get(name).applies_to(THIRD)]


@pytest.mark.slow
def test_three_blocks_on_the_digits():
    """Every integrator that is no splitting draws digits: their law is nearer than the prior's to that of the data."""
    model = pj.load("digits", {"sde.name": "third_order_langevin", "data.num_points": 100})
    law = pj.metrics.mixture_statistics(model.data, model.config.model.bandwidth)
    assert {"ancestral", "exponential_multistep", "predictor_corrector", "ddim", "heun", "sscs"} <= set(K3)
    start = model.sde.prior_sample(jax.random.key(0), (32, 8, 8, 1))
    assert isinstance(start, pj.ThirdOrderState)
    before = pj.metrics.frechet_distance(*pj.metrics.statistics(start.x), *law)
    for name in K3:
        nfe = {"euler": 500, "heun": 200}.get(name, 100)  # explicit, and the equations are stiff
        state, counts = pj.generate_states(model, name, nfe=nfe, n=32)
        assert isinstance(state, pj.ThirdOrderState) and counts.max() <= nfe
        after = pj.metrics.frechet_distance(*pj.metrics.statistics(state.x), *law)
        assert after < before / 5, name
    x0 = model.data[:2]
    z = model.sde.perturb(x0, 1e-3, model.sde.state(*[np.zeros_like(x0)] * 3))
    np.testing.assert_allclose(model.denoise(z, 1e-3), x0, atol=0.05)  # the bandwidth


def test_samplers_take_a_varying_diffusion():
    """PSLD through two functions of time gives PSLD's coefficients, to 1e-10."""
    closed = pj.sde.PSLD()
    options = {"initial_cov": closed.initial_cov, "jitter": closed.jitter, "prior_cov": closed.prior_cov()}
    solved = pj.sde.VaryingSDE(closed.drift, closed.diffusion, **options)
    for name in ("exponential_multistep", "ancestral", "lambda_ddim_ii", "reduced_velocity_verlet"):
        tables = [pj.tabulate(pj.integrators.get(name), sde, pj.grids.quadratic(4)) for sde in (closed, solved)]
        for ours, theirs in zip(*(table.rows().values() for table in tables), strict=True):
            if ours is not None:
                np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10 * np.abs(ours).max())
    with pytest.raises(ValueError, match="stationary law"):
        pj.tabulate(pj.integrators.get("sscs"), solved, [1.0, 0.5])


def constant(t):
    return -np.eye(2)


BAD = [
    (lambda: pj.sde.VaryingSDE(lambda t: -1.0, lambda t: 1.0), "expected a square matrix"),
    (lambda: pj.sde.VaryingSDE(constant, lambda t: np.eye(3)), "diffusion gives shape"),
    (lambda: pj.sde.VaryingSDE(constant, lambda t: np.diag([1.0, -1.0])), "negative eigenvalue -1"),
    (lambda: pj.sde.VaryingSDE(constant, lambda t: np.array([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
    (lambda: pj.sde.VaryingSDE(constant, lambda t: np.eye(2) / (1 - t)), "diffusion is not finite at t=1;"),
    (lambda: pj.sde.VaryingSDE(constant, constant, t_max=2.0), "t_max=2.0"),
    (lambda: pj.sde.VaryingSDE(constant, lambda t: np.eye(2), t_max=None), "t_max=None"),
    (lambda: pj.sde.VaryingSDE(constant, np.eye(2)), "diffusion=an array.*a function of time"),
    (lambda: pj.sde.VaryingSDE(lambda t: t.nothing, constant), "drift or diffusion failed at t=0.5"),
    (lambda: pj.sde.VaryingSDE(constant, lambda t: np.eye(2), initial_cov=np.eye(3)), "initial_cov has shape"),
    (lambda: pj.sde.VaryingSDE(constant, lambda t: np.eye(2), prior_cov=np.eye(3)), "prior_cov has shape"),
    (lambda: pj.sde.VaryingSDE(constant, lambda t: np.eye(2), t_max=0.9).transition(1.0, 0.5), r"lie in \[0, 0.9\]"),
    (lambda: pj.sde.VaryingSDE(lambda t: -np.eye(1) / (t - 0.51234) ** 2, lambda t: np.eye(1)), "does not converge"),
    (lambda: pj.sde.ThirdOrder(kappa=-1.0), "kappa=-1.0"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


REAL = {"diffusion": np.eye(2), "beta_min": 1.0, "beta_max": 1.0}
UNUSABLE = [
    (lambda: pj.sde.LinearSDE(-1j * np.eye(2), **REAL), "drift=.* must be a matrix of real numbers"),
    (lambda: pj.sde.LinearSDE([[-1.0, 0.0], [1.0]], **REAL), "drift=.* must be a matrix of real numbers"),
    (lambda: pj.sde.LinearSDE(constant, **REAL), "drift=.* must be a matrix of real numbers"),
    (lambda: pj.sde.LinearSDE(-np.eye(2), **REAL, initial_cov="none"), "initial_cov='none' must be a matrix"),
    (lambda: pj.sde.LinearSDE(-np.eye(2), **(REAL | {"diffusion": np.zeros((2, 2))})), "does not reach 0, 1 "),
    (lambda: pj.sde.LinearSDE(-np.eye(2), **(REAL | {"diffusion": np.diag([1.0, 0.0])})), "does not reach 1 "),
    (lambda: pj.sde.LinearSDE(-np.eye(2), **(REAL | {"diffusion": np.ones((2, 2))})), "does not reach some comb"),
    (lambda: pj.sde.VaryingSDE(constant, lambda t: np.diag([0.0, 1.0])), "does not reach 0 "),
    (lambda: pj.sde.VaryingSDE(lambda t: -1j * np.eye(2), lambda t: np.eye(2)), "it gives complex numbers"),
    (lambda: pj.sde.VaryingSDE(constant, lambda t: np.eye(2), prior_cov="none"), "prior_cov='none' must be a matrix"),
    (lambda: pj.sde.VaryingSDE(lambda t: np.float32(1 + t) * constant(t), lambda t: np.eye(2)), "in float64"),
]


@pytest.mark.parametrize(("make", "message"), UNUSABLE)
def test_matrices_that_make_no_diffusion_are_named(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("blocks", [2, 3, 4, 6])
def test_noise_in_the_last_of_a_chain_of_blocks_reaches_the_first(blocks):
    """Also where blocks have other units, and where the noise of a short time is one of high powers of it."""
    pull = np.diag(np.arange(1.0, blocks), 1)
    drift = pull - pull.T - np.diag(np.eye(blocks)[-1])
    units = np.diag(1e-3 ** np.arange(blocks))
    drift, diffusion = units @ drift @ np.linalg.inv(units), units @ np.diag(np.eye(blocks)[-1]) @ units
    sde = pj.sde.LinearSDE(drift, diffusion, beta_min=0.1, beta_max=0.1)
    solved = pj.sde.VaryingSDE(sde.drift, sde.diffusion, prior_cov=sde.prior_cov())
    np.testing.assert_allclose(solved.noise_cov(1.0), sde.noise_cov(1.0), rtol=1e-7)


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_a_matrix_of_any_size_makes_a_conjugate_integrator(blocks, rng):
    matrix = 0.1 * rng.standard_normal((blocks, blocks))
    sde = pj.sde.LinearSDE(-np.eye(blocks), 2 * np.eye(blocks), beta_min=4.0, beta_max=4.0)
    table = pj.tabulate(pj.integrators.get("conjugate", B=matrix), sde, [1.0, 0.5, 0.1])
    assert table.nfe == 3 and np.isfinite(table.A).all()
    with pytest.raises(ValueError, match="must be a finite number or a finite"):
        pj.integrators.get("conjugate", B=1j * matrix)
