"""A run step by step has the numbers of the loop, whoever holds it."""

import functools

import closed_forms
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj

SDE = pj.sde.PSLD()
#: History, two evaluations a step, noise after and before an evaluation.
NAMES = ("exponential_multistep", "heun", "COBA", "euler_maruyama")


def table(name, nfe=7, sde=SDE):
    integrator = pj.integrators.get(name)
    return pj.tabulate(integrator, sde, pj.grids.for_budget("quadratic", integrator, nfe))


def state(n=3, dtype=jnp.float32):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), SDE.prior_sample(jax.random.key(0), (n, 2, 2, 1)))


def run(step, stepper, begun):
    for _ in range(stepper.num_steps):
        begun = step(begun)
    return begun


def same_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_sample_to_the_bit(name, key):
    z, t = state(), table(name)
    stepper = pj.stepper(t)
    by_hand = run(functools.partial(stepper.step, closed_forms.smooth_eps), stepper, stepper.init(z, key))
    same_bits(by_hand.z, pj.sample(closed_forms.smooth_eps, t, z, key))
    assert int(by_hand.step) == stepper.num_steps == len(stepper.times) - 1


def test_every_step_is_that_of_the_trajectory(key):
    z, t = state(), table("exponential_runge_kutta", 9)
    path = pj.sample(closed_forms.smooth_eps, t, z, key, return_trajectory=True)
    stepper = pj.stepper(t)
    now = stepper.init(z, key)
    for number in range(stepper.num_steps + 1):
        same_bits(now.z, jax.tree.map(lambda leaf, i=number: leaf[i], path))
        now = stepper.step(closed_forms.smooth_eps, now)
    assert int(now.step) == stepper.num_steps  # one more step than there are changes nothing
    same_bits(now.z, jax.tree.map(lambda leaf: leaf[-1], path))


def test_one_program_serves_samplers_budgets_and_draws(key):
    traces = []

    def traced(z, t):
        traces.append(t)
        return closed_forms.smooth_eps(z, t)

    for name, nfe in (("exponential_multistep", 7), ("ddim", 5), ("COBA", 9), ("euler_maruyama", 4)):
        stepper = pj.stepper(table(name, nfe))
        run(functools.partial(stepper.step, traced), stepper, stepper.init(state(), key))
    assert len(traces) == 1


@pytest.mark.slow
def test_a_step_within_a_program_of_ones_own(key):
    z, stepper = state(), pj.stepper(table("COBA"))
    step = jax.jit(functools.partial(stepper.step, closed_forms.smooth_eps))
    same_bits(run(step, stepper, stepper.init(z, key)).z, pj.sample(closed_forms.smooth_eps, stepper.table, z, key))


def test_the_network_is_asked_as_often_as_the_table_says(key):
    count = []

    def counted(z, t):
        jax.debug.callback(lambda t: count.append(float(t)), t)
        return closed_forms.smooth_eps(z, t)

    t = table("heun", 8)
    stepper = pj.stepper(t)
    jax.block_until_ready(run(functools.partial(stepper.step, counted), stepper, stepper.init(state(), key)))
    jax.effects_barrier()
    assert len(count) == t.nfe == 7
    np.testing.assert_allclose(count, t.tau, rtol=1e-6)  # float32


@pytest.mark.slow
def test_the_gradient_of_a_run_is_that_of_sample(key):
    t, z = table("ddim", 3), state(2, jnp.float64)
    stepper = pj.stepper(t)

    def by_hand(eps_fn):
        return run(functools.partial(stepper.step, eps_fn), stepper, stepper.init(z, key)).z

    def loss(scale, solve):
        scaled = jax.tree_util.Partial(lambda s, z, t: closed_forms.linear_eps((s * z[0], s * z[1]), t), scale)
        return jnp.sum(solve(scaled)[0] ** 2)

    mine = jax.grad(loss)(jnp.float64(1.0), by_hand)
    expected = jax.grad(loss)(jnp.float64(1.0), lambda eps_fn: pj.sample(eps_fn, t, z, key))
    np.testing.assert_allclose(mine, expected, rtol=1e-12)  # float64; sums in another order


def test_recorded_draws_and_known_pixels(rng):
    z, t = state(), table("COBA")
    known = pj.known_pixels(SDE, t, jnp.ones((3, 2, 2, 1), jnp.float32), jnp.eye(2)[None, :, :, None])
    draws = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal((t.num_draws + known.num_draws, *leaf.shape)), leaf.dtype), z
    )
    stepper = pj.stepper(t)
    out = run(
        functools.partial(stepper.step, closed_forms.smooth_eps), stepper, stepper.init(z, noise=draws, known=known)
    )
    same_bits(out.z, pj.sample(closed_forms.smooth_eps, t, z, noise=draws, known=known))


def test_what_does_not_fit_is_refused_before_a_step(key):
    stepper = pj.stepper(table("COBA"))
    with pytest.raises(ValueError, match="pass key="):
        stepper.init(state())
    with pytest.raises(ValueError, match="1 blocks, the sampler's SDE has 2"):
        stepper.init(state()[:1], key)
    with pytest.raises(ValueError, match="eps_fn returned"):
        stepper.step(lambda z, t: z[:1], stepper.init(state(), key))
    with pytest.raises(ValueError, match="state"):
        stepper.step(closed_forms.smooth_eps, state())
    with pytest.raises(ValueError, match="table"):
        pj.stepper("ddim")
