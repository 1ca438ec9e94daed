"""Propagation of Gaussians, step maps, and stability."""

import closed_forms
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj

SDE = pj.sde.PSLD(0.25, 4.25, beta_min=3.0, beta_max=9.0)
GRID = pj.grids.quadratic(6, t_end=0.01)


MOST = 32  # a batch that has room for all draws of every integrator


def affine_eps(matrix, shift, z, t):
    out = pj.blocks.apply(matrix, z)
    return pj.PhaseState(*(leaf + c for leaf, c in zip(out, shift, strict=True)))


@pytest.mark.parametrize("name", pj.integrators.available())
def test_propagation_is_what_the_scan_does(name):
    """With eps = J z + c the device loop is affine: read its matrices off by running it, noise included."""
    jacobian, shift = np.array([[0.5, -0.2], [0.3, 0.8]]), np.array([0.4, -0.1])
    table = pj.tabulate(pj.integrators.get(name), SDE, GRID)
    start = np.array([0.3, 0.7]), np.array([[1.0, 0.2], [0.2, 0.5]])
    eps = jax.tree_util.Partial(affine_eps, jacobian, shift)

    # One batch: nothing at all, a one in each block of the state, and one in each block of each draw.
    draws = table.num_draws
    z, noise = np.zeros((MOST, 2)), np.zeros((draws, MOST, 2))
    z[1:3] = np.eye(2)
    noise[:, 3 : 3 + 2 * draws] = np.eye(2 * draws).reshape(2 * draws, draws, 2).swapaxes(0, 1)
    z, noise = (pj.PhaseState(*jnp.moveaxis(jnp.asarray(a), -1, 0)) for a in (z, noise))
    out = np.stack(pj.sample(eps, table, z, noise=noise), axis=-1)
    base, by_state, by_noise = out[:1], out[1:3] - out[0], out[3 : 3 + 2 * draws] - out[0]
    mean, cov = pj.analysis.propagate(table, jacobian, *start, lambda t: shift)
    np.testing.assert_allclose(mean, start[0] @ by_state + base[0], rtol=1e-10)
    np.testing.assert_allclose(cov, by_state.T @ start[1] @ by_state + by_noise.T @ by_noise, rtol=1e-9, atol=1e-12)


def test_gaussian_jacobian_is_the_derivative_of_the_exact_eps():
    data = closed_forms.GaussianData(SDE, mean=0.0, variance=0.3)
    for t in (1e-3, 0.4, 1.0):
        np.testing.assert_allclose(pj.analysis.gaussian_jacobian(SDE, 0.3)(t), data.jacobian(t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ddim", "lambda_ddim_ii", "heun", "reduced_velocity_verlet", "euler_maruyama"])
def test_step_maps_multiply_to_the_whole(name):
    """The exact maps against an independent solve; the integrator's against the table of the whole grid."""
    data, integrator = closed_forms.GaussianData(SDE, mean=0.0), pj.integrators.get(name)
    steps, flows = pj.analysis.step_maps(integrator, SDE, GRID, data.jacobian)
    table = pj.tabulate(integrator, SDE, GRID, denoise=False)
    whole = [pj.analysis.propagate(table, data.jacobian, e, np.zeros((2, 2)))[0] for e in np.eye(2)]
    np.testing.assert_allclose(np.linalg.multi_dot(steps[::-1]), np.stack(whole, axis=1), rtol=1e-9)
    if not integrator.stochastic:
        np.testing.assert_allclose(np.linalg.multi_dot(flows[::-1]), data.ode_flow(1.0, 0.01)[0], rtol=1e-8)


def test_stability_of_ddim_is_the_theorem_s_matrix():
    """Paper, theorem 2: with B = 0 the step is A(s)^-1 (I + dPhi J); relative to the exact flow, its radius."""
    jacobian = np.array([[0.5, -0.2], [0.3, 0.8]])
    ddim, t, s = pj.integrators.get("ddim"), 0.7, 0.5
    radius = pj.stability(ddim, SDE, np.array([t, s]), jacobian)
    stage = ddim.stages(SDE, t, s)[0]

    from scipy.integrate import solve_ivp

    def velocity(u, y):
        matrix = SDE.drift(u) - 0.5 * SDE.diffusion(u) @ SDE.score_matrix(u) @ jacobian
        return (matrix @ y.reshape(2, 2)).ravel()

    flow = solve_ivp(velocity, (t, s), np.eye(2).ravel(), rtol=1e-12, atol=1e-14).y[:, -1].reshape(2, 2)
    expected = np.abs(np.linalg.eigvals((stage.A + stage.B[0] @ jacobian) @ np.linalg.inv(flow))).max()
    np.testing.assert_allclose(radius, [expected], rtol=1e-8)


@pytest.mark.slow
def test_stability_tends_to_one_and_tells_good_steps_from_bad():
    data = closed_forms.GaussianData(pj.sde.PSLD(), mean=0.0, variance=0.3)
    euler = pj.integrators.get("euler")
    fine = pj.stability(euler, data.sde, pj.grids.uniform(500, t_end=0.1), data.jacobian)
    # One step of Euler is off by about (h |F|)^2 / 2, |F| = 18: 5e-4 for 500 steps, of order one for four.
    assert fine.shape == (500,) and np.abs(fine - 1).max() < 2e-3
    coarse = pj.stability(euler, data.sde, pj.grids.uniform(4, t_end=0.1), data.jacobian)
    assert coarse.min() > 1.5


@pytest.mark.slow
def test_the_estimated_jacobian_is_the_mean_diagonal(rng, key):
    data = rng.uniform(-1, 1, (20, 2, 3, 1))
    eps_fn, t = pj.scores.mixture(data, 0.1, SDE), 0.4
    z = SDE.perturb(jnp.asarray(data[:4]), t, SDE.prior_sample(jax.random.fold_in(key, 64), (4, 2, 3, 1), jnp.float64))
    jacobian = jax.jacrev(lambda z: tuple(eps_fn(z, t)))(z)
    exact = np.array([[np.trace(np.reshape(jacobian[i][j], (24, 24))) / 24 for j in (0, 1)] for i in (0, 1)])
    estimates = [pj.analysis.estimate_jacobian(eps_fn, z, t, jax.random.fold_in(key, i)) for i in range(64)]
    # Hutchinson: unbiased; the spread of 64 probes says how close their mean has to be.
    error = np.std(estimates, axis=0) / np.sqrt(len(estimates))
    assert np.all(np.abs(np.mean(estimates, axis=0) - exact) < 5 * error + 1e-12)
