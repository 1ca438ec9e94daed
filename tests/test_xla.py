"""What XLA is told: that it changes no result, and that XLA listens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psld_jax._runtime import xla
from psld_jax.models.fir import convolve
from psld_jax.models.layers import group_norm


def chain(biases, between):
    """Residual blocks: the gradient to every bias is a sum over the gradients of all blocks behind it."""
    x = weight = jnp.cos(jnp.arange(32.0)[:, None] * jnp.arange(32.0) / 32)
    for bias in biases:
        x = between(x + x @ weight / 32 + bias)
    return jnp.sum(x**2)


def operations(fn, *args):
    """Floating-point operations of the compiled program, those that it does twice counted twice."""
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


def test_what_is_materialised_is_computed_once_in_gradients_as_well():
    def growth(between):
        short, long = (
            operations(jax.grad(functools.partial(chain, between=between)), jnp.ones((k, 32))) for k in (4, 16)
        )
        return long / short

    # Four times the blocks. XLA of JAX 0.12 has learned to keep the barrier alone; before, it was dropped.
    assert growth(xla.materialise) < 4.5
    assert growth(jax.lax.optimization_barrier) > 4.5 or jax.__version_info__ >= (0, 11)


@pytest.mark.slow
def test_materialising_changes_no_value_and_no_derivative(key):
    biases, v = (jax.random.normal(jax.random.fold_in(key, k), (3, 32), jnp.float64) for k in range(2))
    plain, apart = (functools.partial(chain, between=between) for between in (lambda x: x, xla.materialise))
    for transform in (
        lambda f: f(biases),
        lambda f: jax.jvp(f, (biases,), (v,)),
        lambda f: jax.grad(f)(biases),
        lambda f: jax.jvp(jax.grad(f), (biases,), (v,)),
        lambda f: jax.vmap(jax.grad(f))(jnp.stack([biases, v])),
        lambda f: jax.grad(jax.checkpoint(f))(biases),
    ):
        for got, wanted in zip(jax.tree.leaves(transform(apart)), jax.tree.leaves(transform(plain)), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-10)  # float64, terms in another order


def test_a_program_for_an_accelerator_knows_nothing_of_it():
    traced = jax.jit(xla.materialise).trace(jnp.ones(3))
    assert "inlineable" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "inlineable" not in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the options are for a CPU")
def test_convolutions_and_their_gradients_are_left_to_xla_itself():
    x, kernel = jnp.ones((4, 16, 16, 24), jnp.float32), jnp.ones((3, 3, 24, 24), jnp.float32)  # not for winograd

    def gradient(kernel):
        return jax.grad(lambda kernel: jnp.sum(convolve(x, kernel) ** 2))(kernel)

    given_away = jax.jit(gradient).lower(kernel).compile().as_text()
    kept = jax.jit(gradient, compiler_options=xla.options()).lower(kernel).compile().as_text()

    def own(text):
        """Convolutions that are instructions of the program itself; inside of a fusion they are YNNPACK's."""
        return text[text.index("ENTRY") :].count(" convolution(")

    assert own(kept) == 2
    # JAX 0.10.0 gives none away; if this fails for a newer one, XLA has mended it.
    assert own(given_away) == 0 or jax.__version_info__ <= (0, 10, 0)


def test_options_that_this_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(xla, "_CPU", {"xla_cpu_no_such_option": "true"})
    xla.options.cache_clear()
    try:
        assert xla.options() == {}
    finally:
        xla.options.cache_clear()


def test_jit_takes_its_options_where_it_is_outermost_and_works_inside_of_all_others():
    twice = xla.jit(lambda x, *, n: x * n, static_argnames="n")
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(twice(x, n=2), [0, 2, 4])
    np.testing.assert_array_equal(jax.jit(lambda x: twice(x, n=2))(x), [0, 2, 4])
    np.testing.assert_array_equal(jax.jit(lambda: twice(np.arange(3.0), n=2))(), [0, 2, 4])  # nothing of it is traced
    np.testing.assert_array_equal(jax.grad(lambda x: twice(x, n=2).sum())(x), [2, 2, 2])
    np.testing.assert_array_equal(jax.vmap(lambda x: twice(x, n=2))(x), [0, 2, 4])
    np.testing.assert_array_equal(jax.lax.scan(lambda c, _: (twice(c, n=2), None), x, None, length=2)[0], [0, 4, 8])


@pytest.mark.slow
def test_the_derivative_that_group_norm_states_is_the_one_of_its_formula(key):
    x, v, w = (jax.random.normal(jax.random.fold_in(key, k), (2, 3, 5, 16), jnp.float64) for k in range(3))
    scale, bias = (1 + 0.3 * jax.random.normal(jax.random.fold_in(key, k), (16,), jnp.float64) for k in range(3, 5))

    def formula(x, scale, bias):
        y = x.reshape(2, 15, 4, 4)
        mean, var = y.mean((1, 3), keepdims=True), y.var((1, 3), keepdims=True)
        return ((y - mean) / jnp.sqrt(var + 1e-6)).reshape(x.shape) * scale + bias

    def ours(x, scale, bias):  # 16 channels make four groups
        return group_norm(x.reshape(2, 15, 16), scale, bias, 4, 1e-6).reshape(x.shape)

    arguments, tangents = (x, scale, bias), (v, bias, scale)
    for transform in (
        lambda f: f(*arguments),
        lambda f: jax.jvp(f, arguments, tangents),
        lambda f: jax.vjp(f, *arguments)[1](w),
        lambda f: jax.jvp(lambda *a: jax.vjp(f, *a)[1](w), arguments, tangents),
    ):
        for got, wanted in zip(jax.tree.leaves(transform(ours)), jax.tree.leaves(transform(formula)), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-11)  # float64; sums in another order
