"""One compiled program for a network and a batch shape, whatever the sampler; and programs that are given back."""

import functools
import gc
import itertools

import closed_forms
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj
from psld_jax.integrators.base import Stage
from psld_jax.sampling import rows

SDE = pj.sde.PSLD()
SAMPLERS = (
    *("ddim", "lambda_ddim_ii", "exponential_multistep", "predictor_corrector", "exponential_runge_kutta", "ancestral"),
    *("euler", "heun", "euler_maruyama", "sscs", "reduced_velocity_verlet", "reduced_oba", "naive_baoab", "COBA"),
)
BUDGETS = (5, 10, 20, 50, 100)
GRIDS = ("quadratic", "uniform", "power")
LAMBDAS = (-1.0, 0.5, 2.0)


class Counted:
    """A network that counts how often it is traced, which is what happens when a program with it is compiled."""

    def __init__(self):
        self.traces = 0
        self.eps_fn = jax.tree_util.Partial(self._apply, jnp.ones((), jnp.float32))

    def _apply(self, scale, z, t):
        self.traces += 1
        return closed_forms.smooth_eps(jax.tree.map(lambda leaf: scale * leaf, z), t)


def table(name, nfe, grid="quadratic", **hyper):
    integrator = pj.integrators.get(name, **hyper)
    return pj.tabulate(integrator, SDE, pj.grids.for_budget(grid, integrator, nfe))


def state(n):
    return SDE.prior_sample(jax.random.key(0), (n, 2, 2, 1))


def test_every_sampler_budget_grid_and_lambda_shares_one_compilation():
    net, key, z, first = Counted(), jax.random.key(1), state(3), None
    assert len(SAMPLERS) == 14
    for name, nfe, grid in itertools.product(SAMPLERS, BUDGETS, GRIDS):
        integrator = pj.integrators.get(name)
        # Larger budgets on one grid with one lambda: making 630 tables on the host is what would take long here.
        few = nfe > 10
        if nfe <= integrator.nfe_per_step or (few and grid != "quadratic"):
            continue
        for lam in (LAMBDAS[1:2] if few else LAMBDAS) if "lam" in integrator.hyper else (None,):
            hyper = {} if lam is None else {"lam": lam}
            out = pj.sample(net.eps_fn, table(name, nfe, grid, **hyper), z, key)
            assert out[0].shape == z[0].shape
            first = first or net.traces
    assert net.traces == first
    pj.sample(net.eps_fn, table("heun", 9), state(4), key)
    pj.sample(net.eps_fn, table("ROBA", 12), state(4), key)
    assert net.traces == 2 * first
    other = jax.tree_util.Partial(net.eps_fn.func, jnp.full((), 2.0, jnp.float32))  # other weights
    pj.sample(other, table("heun", 9), state(4), key)
    assert net.traces == 2 * first


@pytest.mark.parametrize("name", ["exponential_multistep", "COBA", "euler_maruyama"])
def test_the_padded_loop_is_the_scan_over_the_rows(name):
    """To the last bits: the scan inside ``jax.jit`` has the rows that there are, and no history beyond the table's."""
    t, z, key = table(name, 11), state(3), jax.random.key(1)
    run = functools.partial(pj.sample, closed_forms.smooth_eps, t)
    loop, scan, path = run(z, key), jax.jit(run)(z, key), run(z, key, return_trajectory=True)
    # float32 sums in another order: a few roundings of the largest number on the way.
    tolerance = {"rtol": 1e-5, "atol": 1e-5 * float(np.abs(np.stack(path)).max())}
    np.testing.assert_allclose(np.stack(loop), np.stack(scan), **tolerance)
    np.testing.assert_allclose(np.stack(loop), np.stack(path)[:, -1], **tolerance)
    assert path[0].shape[0] == t.num_steps + 1


def test_what_ran_before_changes_no_bit():
    z, key = state(3), jax.random.key(1)
    run = functools.partial(pj.sample, closed_forms.smooth_eps)
    pj.clear_programs()
    alone = run(table("ROBA", 10), z, key)
    pj.clear_programs()
    run(table("exponential_multistep", 50), z, key)
    after = run(table("ROBA", 10), z, key)
    np.testing.assert_array_equal(np.stack(alone), np.stack(after))


def test_the_last_smaller_batch_does_not_compile(digits_model):
    net = Counted()
    model = pj.Model(digits_model.sde, net.eps_fn, digits_model.config, (2, 2, 1))
    pj.generate(model, "ROBA", nfe=6, n=4, batch_size=4)
    first = net.traces
    images = pj.generate(model, "ddim", nfe=9, n=11, batch_size=4)
    assert net.traces == first > 0
    assert images.shape == (11, 2, 2, 1)


def test_capacities():
    assert [rows.capacity(n, 64) for n in (1, 64, 65, 128, 129)] == [64, 64, 128, 128, 256]
    assert [rows.history_capacity(n) for n in (1, 4, 5, 16)] == [4, 4, 8, 16]
    with pytest.raises(ValueError, match="combines 17 predictions, the loop keeps at most 16"):
        rows.history_capacity(17)
    padded, count = rows.padded(table("ROBA", 10), jnp.float32)
    assert count == 10
    assert {leaf.shape[0] for leaf in jax.tree.leaves(padded)} == {rows.MIN_ROWS}
    assert padded["A"].dtype == jnp.float32


def test_more_rows_than_the_smallest_capacity():
    t, z = table("euler", rows.MIN_ROWS + 3), state(2)
    out = pj.sample(closed_forms.smooth_eps, t, z)
    assert t.nfe == rows.MIN_ROWS + 3
    run = jax.jit(functools.partial(pj.sample, closed_forms.smooth_eps, t))
    np.testing.assert_allclose(np.stack(out), np.stack(run(z)), rtol=1e-4, atol=1e-4)  # 1,027 roundings of 6e-8


def test_reverse_mode_goes_through():
    t, z = table("exponential_multistep", 8), jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), state(2))

    def loss(shift):
        return jnp.sum(pj.sample(closed_forms.smooth_eps, t, (z[0] + shift, z[1]))[0] ** 2)

    numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
    # Central differences are off by the square of their step, here times a third derivative that is large.
    np.testing.assert_allclose(jax.grad(loss)(0.0), numeric, rtol=1e-5)


def test_a_stage_of_a_longer_history_than_any_is_named():
    identity = np.eye(2)
    long = Stage(A=identity, B=(identity,) * 17, tau=0.5)
    integrator = pj.integrators.get("euler")
    object.__setattr__(integrator, "fn", lambda sde, t, s: [long])
    t = pj.tabulate(integrator, SDE, np.array([1.0, 0.5]), denoise=False)
    with pytest.raises(ValueError, match="combines 17 predictions"):
        pj.sample(closed_forms.smooth_eps, t, state(2))


@pytest.mark.slow
def test_programs_that_are_not_used_are_given_back(few_programs):
    """As many as are kept stay compiled; one more sends the oldest away, whose network is traced again."""
    nets, z, t = [Counted() for _ in range(few_programs + 1)], state(2), table("ddim", 4)
    for net in nets[:-1]:
        pj.sample(net.eps_fn, t, z)
    once = nets[0].traces
    pj.sample(nets[0].eps_fn, t, z)
    assert nets[0].traces == once
    pj.sample(nets[-1].eps_fn, t, z)  # sends away nets[1], the least recently used
    pj.sample(nets[0].eps_fn, t, z)
    assert nets[0].traces == once
    pj.sample(nets[1].eps_fn, t, z)
    assert nets[1].traces == 2 * once
    pj.clear_programs()
    pj.sample(nets[0].eps_fn, t, z)
    assert nets[0].traces == 2 * once


def _resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


@pytest.mark.slow
@pytest.mark.usefixtures("few_programs")
def test_memory_stays(rng, digits_model):
    """MiB beyond what the first five of a kind needed."""
    images = np.zeros((8, 8, 8, 1), np.float32)
    draw = functools.partial(pj.generate, digits_model, n=8)
    names = ("exponential_multistep", "predictor_corrector", "reduced_oba", "ddim", "ancestral", "RVV", "EM", "CVV")

    def grows(jobs):
        for i, job in enumerate(jobs):
            job()
            if i == 4:
                before = _resident()
        return _resident() - before

    budgets = itertools.product(names, range(6, 56, 2))
    assert grows([functools.partial(draw, name, nfe=nfe) for name, nfe in budgets]) < 50

    def operated(k):
        weights = jnp.asarray(rng.standard_normal((8, 8, 1)).astype(np.float32))
        draw("ancestral", nfe=5, operator=lambda x: weights * x, measurement=images)

    assert grows([functools.partial(operated, k) for k in range(50)]) < 50

    def conditioned(k):
        mask = (rng.random((1, 8, 8, 1)) > 0.5).astype(int)
        blur = {"operator": pj.operators.blur(0.5 + k / 10), "measurement": images}
        draw("ancestral", nfe=5 + k, **({"known": images, "mask": mask} if k % 2 else blur))

    assert grows([functools.partial(conditioned, k) for k in range(20)]) < 50
