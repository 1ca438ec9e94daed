"""The scan and the adaptive solver: any pytree, clear errors, true counts."""

import functools

import chex
import closed_forms
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seeds import generator

import psld_jax as pj
from psld_jax._runtime.device import TimeFunction

PSLD, VP = pj.sde.PSLD(), pj.sde.VPSDE()
TABLES = {
    (name, sde.num_blocks): pj.tabulate(pj.integrators.get(name), sde, pj.grids.quadratic(3))
    for name, sde in (("reduced_baoab", PSLD), ("sscs", PSLD), ("heun", PSLD), ("sscs", VP), ("ddim", VP))
}
SHAPES = st.lists(st.integers(1, 3), min_size=0, max_size=3).map(tuple)
TREES = st.recursive(
    SHAPES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=2),
        st.dictionaries(st.sampled_from("ab"), inner, min_size=1, max_size=2),
    ),
    max_leaves=3,
)


def is_shape(node):
    return isinstance(node, tuple)


@pytest.mark.slow
@settings(max_examples=10)  # each is a program or two
@given(
    case=st.sampled_from(sorted(TABLES)),
    tree=TREES,
    n=st.integers(1, 3),
    dtype=st.sampled_from([jnp.float32, jnp.float64]),
)
def test_any_pytree_goes_through_and_each_leaf_is_on_its_own(case, tree, n, dtype):
    table = TABLES[case]
    k = case[1]
    rng = generator("leaves")

    def array(shape, *lead):
        return jnp.asarray(rng.standard_normal((*lead, n, *shape)), dtype)

    z = tuple(jax.tree.map(array, tree, is_leaf=is_shape) for _ in range(k))
    noise = tuple(jax.tree.map(lambda s: array(s, table.num_draws), tree, is_leaf=is_shape) for _ in range(k))
    out = pj.sample(closed_forms.smooth_eps, table, z, noise=noise)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, z)
    chex.assert_tree_all_finite(out)
    # Leaf by leaf it is the sampler of that leaf alone: nothing leaks between leaves.
    leaves = [jax.tree.leaves(block) for block in z], [jax.tree.leaves(block) for block in noise]
    for i, expected in enumerate(zip(*map(jax.tree.leaves, out), strict=True)):
        alone = pj.sample(
            closed_forms.smooth_eps,
            table,
            tuple(block[i] for block in leaves[0]),
            noise=tuple(block[i] for block in leaves[1]),
        )
        tolerance = 1e-5 if dtype == jnp.float32 else 1e-12
        chex.assert_trees_all_close(alone, tuple(expected), rtol=tolerance, atol=tolerance)


def test_integer_keys_draws_and_blocks_that_do_not_fit_are_named(key):
    table = TABLES["reduced_baoab", 2]
    z = PSLD.prior_sample(key, (3, 4))
    run, eps = pj.sample, closed_forms.smooth_eps
    with pytest.raises(ValueError, match="1 blocks.*has 2"):
        run(eps, table, (z.x,), key)
    with pytest.raises(ValueError, match="tuple of 2 blocks, got ArrayImpl"):
        run(eps, table, z.x, key)
    with pytest.raises(ValueError, match="floating dtype.*int"):
        run(eps, table, jax.tree.map(lambda leaf: leaf.astype(int), z), key)
    with pytest.raises(ValueError, match="one floating dtype.*float32.*float64"):
        run(eps, table, pj.PhaseState(z.x, z.m.astype(jnp.float64)), key)
    with pytest.raises(ValueError, match="same structure and shapes"):
        run(eps, table, pj.PhaseState(z.x, z.m[:, :2]), key)
    with pytest.raises(ValueError, match="same leading batch axis"):
        run(eps, table, ({"a": z.x, "b": z.x[:2]},) * 2, key)
    with pytest.raises(ValueError, match="pass key=... or noise=..."):
        run(eps, table, z)
    with pytest.raises(ValueError, match="key=0 is not a random key; make one with"):
        run(eps, table, z, 0)
    with pytest.raises(ValueError, match=r"noise must hold 3 draws.*\(3, 3, 4\).*\(2, 3, 4\)"):
        run(eps, table, z, noise=jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), z))
    with pytest.raises(ValueError, match="2 random keys for a batch of 3"):
        run(eps, table, z, jax.random.split(key, 2))


def test_an_eps_fn_that_returns_the_wrong_thing_is_named(key):
    z = PSLD.prior_sample(key, (3, 4))
    with pytest.raises(ValueError, match="eps_fn returned"):
        pj.sample(lambda z, t: z[0], TABLES["heun", 2], z)
    with pytest.raises(ValueError, match="eps_fn returned"):
        pj.sample(lambda z, t: (z[0], z[1][:, :2]), TABLES["heun", 2], z)


def test_raw_and_typed_keys_give_the_same_samples(key):
    z = PSLD.prior_sample(key, (3, 4))
    run = functools.partial(pj.sample, closed_forms.smooth_eps, TABLES["sscs", 2], z)
    chex.assert_trees_all_equal(run(key), run(jax.random.key_data(key)))


def test_the_scan_can_be_differentiated_through_its_table(key):
    """What a tuner needs: the gradient of the result by the coefficients."""
    table = TABLES["heun", 2]
    z = PSLD.prior_sample(key, (3, 4), jnp.float64)

    def loss(table):
        return sum(jnp.sum(leaf**2) for leaf in pj.sample(closed_forms.smooth_eps, table, z))

    gradient = jax.grad(loss, allow_int=True)(table)
    step = 1e-6
    bumped = jax.tree.map(lambda leaf: leaf, table)
    bumped.A[1, 0, 0] += step
    up = loss(bumped)
    bumped.A[1, 0, 0] -= 2 * step
    np.testing.assert_allclose(gradient.A[1, 0, 0], (up - loss(bumped)) / (2 * step), rtol=1e-6)


def each_solver(name, values):
    """Every solver with one of the values, in turn; the other pairs are slow tests. Each is a program of its own."""
    pairs = [
        (s, v, (i + j) % 2) for i, s in enumerate(("rk23", "rk45", "tsit5", "dopri8")) for j, v in enumerate(values)
    ]
    cases = [pytest.param(s, v, marks=[pytest.mark.slow] * other, id=f"{s}-{v}") for s, v, other in pairs]
    return pytest.mark.parametrize(("solver", name), cases)


@each_solver("sde", (VP, PSLD))
def test_adaptive_solution_is_the_closed_form(key, solver, sde):
    data = closed_forms.GaussianData(sde)
    z = sde.prior_sample(key, (5, 3), jnp.float64)
    out, nfe = pj.sample_ode(data.eps_fn(), sde, z, t_end=0.02, solver=solver, rtol=1e-6, atol=1e-6, denoise=False)
    matrix, shift = data.ode_flow(1.0, 0.02)
    exact = np.einsum("kl,l...->k...", matrix, np.stack(z)) + shift[..., None]
    np.testing.assert_allclose(np.stack(out), exact, rtol=2e-4, atol=2e-4)
    assert nfe.shape == (5,) and nfe.dtype == jnp.int64


@pytest.mark.slow
@each_solver("denoise", (True, False))
def test_adaptive_nfe_is_the_number_of_calls(key, solver, denoise):
    calls = []

    def count(t):
        calls.append(float(t))
        return t

    def eps(z, t):
        # The time goes through the host, so that no evaluation whose value is used can be left out of the count.
        return closed_forms.smooth_eps(z, jax.pure_callback(count, jax.ShapeDtypeStruct(t.shape, t.dtype), t))

    z = PSLD.prior_sample(key, (3, 4), jnp.float64)
    _, nfe = pj.sample_ode(eps, PSLD, z, solver=solver, rtol=1e-4, atol=1e-4, denoise=denoise, step_control="batch")
    assert len(calls) == nfe[0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64], ids=lambda dtype: dtype.__name__)
def test_nothing_needs_dtypes_to_be_promoted(key, dtype):
    """Whoever asks JAX to refuse implicit promotion can draw with every loop."""
    integrator = pj.integrators.get("reduced_oba")
    table = pj.tabulate(integrator, PSLD, pj.grids.quadratic(4))
    z = PSLD.prior_sample(key, (2, 3), dtype)
    with jax.numpy_dtype_promotion("strict"):
        out, nfe = pj.sample_ode(closed_forms.smooth_eps, PSLD, z, rtol=1e-2, atol=1e-2)
        path = pj.sample(closed_forms.smooth_eps, table, z, key, return_trajectory=True)
        stepper = pj.stepper(table)
        state = stepper.step(closed_forms.smooth_eps, stepper.init(z, key))
    assert nfe.shape == (2,) and {leaf.dtype for leaf in (*out, *path, *state.z)} == {jnp.dtype(dtype)}


@pytest.mark.slow
def test_step_control_by_sample_is_independent_of_the_batch(key):
    z = PSLD.prior_sample(key, (4, 6), jnp.float64)
    z = jax.tree.map(lambda leaf: leaf * jnp.asarray([1.0, 1.0, 30.0, 1.0])[:, None], z)
    near = jax.tree.map(lambda leaf: leaf.at[1:].set(leaf[:1]), z)  # the first sample, among others
    for control in ("sample", "batch"):
        (one, nfe), (other, nfe_other) = (
            pj.sample_ode(closed_forms.smooth_eps, PSLD, state, step_control=control) for state in (z, near)
        )
        if control == "sample":
            chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf: leaf[0], state) for state in (one, other)))
            assert nfe[0] == nfe_other[0] and nfe[2] > nfe[0]
        else:  # the original's: it does depend
            assert np.abs(np.asarray(one[0][0] - other[0][0])).max() > 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "rk54"}, "unknown ODE solver 'rk54'. Did you mean 'rk45'"),
        ({"rtol": 0.0}, "rtol=0.0"),
        ({"t_end": 0.0}, "t_end=0.0"),
        ({"t_end": 1.0}, "t_end < t_start"),
        ({"step_control": "pixel"}, "Allowed: batch, sample"),
    ],
)
def test_bad_solver_options_are_named(key, options, message):
    z = PSLD.prior_sample(key, (2, 4))
    with pytest.raises(ValueError, match=message):
        pj.sample_ode(closed_forms.smooth_eps, PSLD, z, **options)


def test_time_functions_are_accurate_and_refuse_what_is_not_smooth():
    fn = TimeFunction(lambda t: np.stack([1 / np.sqrt(t), np.exp(-8 * t)], axis=-1))
    t = np.geomspace(1e-6, 1.0, 1001)
    exact = np.stack([1 / np.sqrt(t), np.exp(-8 * t)], axis=-1)
    # 1e-9 of the largest entry at that time.
    assert (np.abs(jax.jit(fn)(t) - exact).max(axis=1) / exact.max(axis=1)).max() < 1e-9
    # A function may vanish at 1, where the error is relative to what it was a little before.
    vanishing = TimeFunction(lambda t: (1 - t) / ((1 - t) ** 2 + 1e-3 * t**2))
    t = 1 - np.geomspace(1e-9, 0.1, 1001)
    exact = (1 - t) / ((1 - t) ** 2 + 1e-3 * t**2)
    assert np.abs(jax.jit(vanishing)(t) - exact).max() < 1e-9 * exact.max()
    with pytest.raises(ValueError, match="is it smooth"):
        TimeFunction(lambda t: np.abs(np.sin(1 / t)))
    with pytest.raises(ValueError, match="0 < t_min < t_max"):
        TimeFunction(lambda t: t, t_min=0.0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("knots", [(), (0.5,)], ids=["smooth", "knots"])
def test_time_functions_take_half_precision(dtype, knots):
    """They were NaN at t = 1, and so was every sample of a state in half precision."""
    fn = jax.jit(TimeFunction(lambda t: np.exp(-8 * t) + np.abs(t - 0.5) * bool(knots), knots=knots))
    t = jnp.asarray([1.0, 0.5, 0.1, 1e-3], dtype)
    found, expected = fn(t), fn(t.astype(jnp.float32))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected.astype(dtype))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)
def test_samples_in_half_precision_are_near_those_of_float32(few_digits, key, dtype):
    table = pj.Setting("predictor_corrector").table(few_digits.sde, 10)
    z = few_digits.sde.prior_sample(key, (8, *few_digits.image_shape))
    z = jax.tree.map(lambda leaf: leaf.astype(dtype), z)
    exact = pj.sample(few_digits.eps_fn, table, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), z))
    found = pj.sample(few_digits.eps_fn, table, z)
    # Most images; rounding may lead one that is between two digits to the other one..
    off = np.sqrt(np.mean((np.asarray(found.x, np.float32) - exact.x) ** 2, axis=(1, 2, 3)))
    assert found.x.dtype == dtype and np.median(off) < (0.05 if dtype == jnp.bfloat16 else 0.01)


@pytest.mark.slow
def test_a_time_function_may_have_kinks_at_known_times(rng):
    """Piecewise between them: a few pieces each."""
    knots = np.sort(rng.uniform(0.01, 0.99, 100))
    heights = rng.uniform(1, 2, 100)

    def fn(t):
        return np.stack([np.sqrt(t) * np.interp(t, knots, heights), t], axis=-1)

    made = TimeFunction(fn, knots=rng.permutation(knots))
    assert made.coefficients.shape[0] < 2000
    t = np.concatenate([np.geomspace(1e-9, 1.0, 1001), knots])
    exact = fn(t)
    assert (np.abs(made(jnp.asarray(t)) - exact).max(axis=1) / exact.max(axis=1)).max() < 2e-9
    assert np.isnan(made(jnp.asarray([0.5e-9, 1.1]))).all()
    assert made(jnp.float32(0.5)).shape == (2,) and made(jnp.float32(0.5)).dtype == np.float32
