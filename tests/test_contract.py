"""What every integrator must do. Members are discovered: a new one is tested by being there."""

import functools
import re

import closed_forms
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj

ALL = pj.integrators.available()
# Methods that split position from momentum need K = 2; all others work for any K.
SPLITTING = tuple(name for name in ALL if closed_forms.is_splitting(name))
ANY_K = tuple(name for name in ALL if name not in SPLITTING)
CASES = [(name, pj.sde.PSLD()) for name in ALL] + [(name, pj.sde.VPSDE()) for name in ANY_K]


def case_id(value):
    return value if isinstance(value, str) else f"K{value.num_blocks}"


every_integrator = pytest.mark.parametrize("name", ALL)
every_case = pytest.mark.parametrize(("name", "sde"), CASES, ids=case_id)


def table_of(name, sde, n_steps=4, denoise=True, **hyper):
    return pj.tabulate(pj.integrators.get(name, **hyper), sde, pj.grids.quadratic(n_steps), denoise=denoise)


SHAPE = (3, 2, 4, 1)  # of all states here, so that they share their programs


def draws_like(rng, table, z):
    """Recorded noise for ``table``: one leading axis for the draws."""
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal((table.num_draws, *leaf.shape)), leaf.dtype), z)


@every_case
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_structure_shape_and_dtype_are_kept(key, name, sde, dtype):
    z = sde.prior_sample(key, SHAPE, dtype)
    table = table_of(name, sde)
    out = pj.sample(closed_forms.smooth_eps, table, z, key)
    assert type(out) is type(z)
    jax.tree.map(
        lambda a, b: (np.testing.assert_equal(a.shape, b.shape), np.testing.assert_equal(a.dtype, dtype)), out, z
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out))
    path = pj.sample(closed_forms.smooth_eps, table, z, key, return_trajectory=True)
    assert type(path) is type(z)
    assert path[0].shape == (table.num_steps + 1, *SHAPE) == (len(table.times), *SHAPE)
    np.testing.assert_array_equal(path[0][0], z[0])
    # The same arithmetic in another program (it also stores the states): a few roundings apart.
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-13
    np.testing.assert_allclose(path[0][-1], out[0], rtol=tolerance, atol=tolerance)


CALLS = []


def counted_eps(z, t):
    jax.debug.callback(lambda t: CALLS.append(float(t)), t)
    return closed_forms.smooth_eps(z, t)


@every_case
@pytest.mark.parametrize("denoise", [True, False])
def test_reported_nfe_is_the_number_of_calls(key, name, sde, denoise):
    table = table_of(name, sde, denoise=denoise)
    CALLS.clear()
    jax.block_until_ready(pj.sample(counted_eps, table, sde.prior_sample(key, SHAPE), key))
    jax.effects_barrier()
    integrator = pj.integrators.get(name)
    assert len(CALLS) == table.nfe == 4 * integrator.nfe_per_step + denoise
    np.testing.assert_allclose(sorted(CALLS), sorted(table.tau), rtol=1e-6)


@pytest.mark.slow
@every_integrator
@pytest.mark.parametrize("denoise", [True, False])
def test_a_budget_is_used_but_never_exceeded(name, denoise):
    integrator, sde = pj.integrators.get(name), pj.sde.PSLD()
    least = integrator.nfe_per_step + denoise
    for nfe in range(least, least + 9):
        grid = pj.grids.for_budget("quadratic", integrator, nfe, denoise)
        table = pj.tabulate(integrator, sde, grid, denoise)
        assert nfe - integrator.nfe_per_step < table.nfe <= nfe
    with pytest.raises(ValueError, match=f"nfe={least - 1} is too small .* >= {least}"):
        pj.grids.for_budget("quadratic", integrator, least - 1, denoise)


TRACES = []


def traced_eps(scale, z, t):
    TRACES.append(None)
    return jax.tree.map(lambda leaf: scale * leaf, z)


@every_integrator
def test_other_numbers_never_recompile(key, name):
    """Lambda, grid, SDE parameters, weights of the network: data, not program."""
    hyper = pj.integrators.get(name).hyper
    others = [{}] + [{key: 0.3} for key in ("lam", "lam_s", "B") if key in hyper]
    if "noise_scaling" in hyper:
        others.append({"noise_scaling": "mean_time"})
    sdes = [
        pj.sde.PSLD(),
        pj.sde.PSLD(gamma=0.25, nu=4.25, beta_min=4.0, beta_max=9.0, kappa=0.1, decomposition="upper"),
    ]
    grids = [pj.grids.uniform(5), pj.grids.power(5, t_end=1e-4, rho=3.0)]
    z = sdes[0].prior_sample(key, SHAPE)
    TRACES.clear()
    counts = []
    for scale, sde, grid in zip((0.5, 0.7), sdes, grids, strict=True):
        for other in others:
            table = pj.tabulate(pj.integrators.get(name, **other), sde, grid)
            eps_fn = jax.tree_util.Partial(traced_eps, jnp.float32(scale))
            pj.sample(eps_fn, table, z, jax.random.fold_in(key, len(counts)))
            counts.append(len(TRACES))
    # An integrator may reuse another one's program (then even the first run traces nothing); it may not add any later.
    assert len(set(counts)) == 1


@every_case
def test_keys_are_the_noise_of_the_key_schedule(key, name, sde):
    """Draw d of sample i comes from fold_in(fold_in(key, i), d): the documented schedule, replayed by hand."""
    table, z = table_of(name, sde), sde.prior_sample(key, SHAPE, jnp.float64)
    keys = pj.sample_keys(key, jnp.arange(3))

    def one(i, d, block):
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(keys[i], d), block), SHAPE[1:], jnp.float64)

    noise = tuple(
        jnp.stack([jnp.stack([one(i, d, block) for i in range(3)]) for d in range(table.num_draws)])
        if table.num_draws
        else jnp.zeros((0, *SHAPE))
        for block in range(sde.num_blocks)
    )
    keyed = pj.sample(closed_forms.smooth_eps, table, z, key)
    recorded = pj.sample(closed_forms.smooth_eps, table, z, noise=sde.state(*noise))
    np.testing.assert_allclose(np.stack(keyed), np.stack(recorded), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@every_integrator
def test_sample_i_is_the_same_bits_whatever_the_batch_split(name, few_digits):
    with jax.enable_x64(False):
        whole = pj.generate(few_digits, name, nfe=13, n=11, seed=4, batch_size=11)
        for batch_size in (1, 4):
            parts = pj.generate(few_digits, name, nfe=13, n=11, seed=4, batch_size=batch_size)
            np.testing.assert_array_equal(parts, whole)


@pytest.mark.slow
@every_integrator
def test_float32_sampling_agrees_with_float64_at_100_nfe(rng, key, name, few_digits):
    sde, integrator = few_digits.sde, pj.integrators.get(name)
    table = pj.tabulate(integrator, sde, pj.grids.for_budget("quadratic", integrator, 100))
    single = sde.prior_sample(key, (16, 8, 8, 1))
    noise = draws_like(rng, table, single)
    low = pj.sample(few_digits.eps_fn, table, single, noise=noise)
    double, double_noise = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (single, noise))
    high = pj.sample(few_digits.eps_fn, table, double, noise=double_noise)
    for a, b in zip(low, high, strict=True):
        assert np.linalg.norm(np.asarray(a, np.float64) - b) < 1e-4 * np.linalg.norm(b)


@every_case
def test_permuting_pixels_permutes_samples(rng, key, name, sde):
    table, z = table_of(name, sde), sde.prior_sample(key, SHAPE, jnp.float64)
    noise, order = draws_like(rng, table, z), np.array([3, 0, 1, 2])
    run = functools.partial(pj.sample, closed_forms.smooth_eps, table)
    out = run(z, noise=noise)
    z, noise = jax.tree.map(lambda leaf: leaf[..., order, :], (z, noise))
    moved = run(z, noise=noise)
    np.testing.assert_allclose(np.stack(moved), np.stack(out)[..., order, :], rtol=1e-13, atol=1e-13)


@every_case
def test_with_a_linear_eps_the_sampler_is_linear_in_state_and_noise(rng, key, name, sde):
    table, z = table_of(name, sde), sde.prior_sample(key, SHAPE, jnp.float64)
    noise = draws_like(rng, table, z)
    run = functools.partial(pj.sample, closed_forms.linear_eps, table)
    zero = functools.partial(jax.tree.map, jnp.zeros_like)
    parts = np.stack(run(z, noise=zero(noise))) + np.stack(run(zero(z), noise=noise))
    np.testing.assert_allclose(parts, np.stack(run(z, noise=noise)), rtol=1e-9, atol=1e-9 * np.abs(parts).max())
    doubled = run(zero(z), noise=jax.tree.map(lambda leaf: 2 * leaf, noise))
    np.testing.assert_array_equal(np.stack(doubled), 2 * np.stack(run(zero(z), noise=noise)))
    if pj.integrators.get(name).stochastic:
        assert np.abs(np.stack(doubled)).max() > 0


@every_integrator
def test_its_docstring_states_order_and_cost(name):
    integrator, text = pj.integrators.get(name), pj.integrators.describe(name)
    assert f"NFE {integrator.nfe_per_step}" in text
    assert f"rder {integrator.order}" in text
    assert ("Weak order" in text) == integrator.stochastic
    assert ("draw" in text) == integrator.stochastic


@pytest.mark.parametrize("name", ALL)
def test_everything_says_who_it_is_of(name):
    assert re.fullmatch(r"[A-Z].*, \d{4}", pj.integrators.source(name))


def test_aliases_reach_the_paper_s_acronyms():
    for alias, name in {
        "EM": "euler_maruyama",
        "rse": "reduced_symplectic_euler",
        "RVV": "reduced_velocity_verlet",
        "ROBA": "reduced_oba",
        "NOBAB": "naive_obab",
        "CVV": "conjugate_velocity_verlet",
        "CSPS-D": "conjugate_velocity_verlet",
        "CSPS-S": "conjugate_obab",
        "lambda-DDIM-II": "lambda_ddim_ii",
    }.items():
        assert pj.integrators.get(alias).name == name


@pytest.mark.parametrize("name", SPLITTING)
def test_splitting_says_why_it_cannot_do_one_block(name):
    with pytest.raises(ValueError, match="K = 2.*K = 1"):
        pj.tabulate(pj.integrators.get(name), pj.sde.VPSDE(), pj.grids.uniform(3))
