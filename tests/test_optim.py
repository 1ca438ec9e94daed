"""Learning rates, clipping, Adam and the moving average, against the formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seeds import generator

from psld_jax.training import optim

RATE = 1e-2


def tree(seed, dtype=np.float64, scale=1.0):
    """A pytree of parameters or gradients."""
    rng = generator(f"tree {seed}")
    return {
        "kernel": jnp.asarray(scale * rng.standard_normal((3, 4)), dtype),
        "layer": [jnp.asarray(scale * rng.standard_normal(4), dtype)],
    }


def vector(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# The learning rate. 1e-6: schedules are float32.


@given(st.floats(1e-6, 1), st.integers(0, 5000), st.integers(0, 20_000))
def test_the_rate_warms_up_linearly_and_stays(lr, warmup, count):
    rate = optim.learning_rate(lr, warmup, "constant", 1)
    expected = lr * min(count / warmup, 1) if warmup else lr
    np.testing.assert_allclose(rate(count), expected, rtol=1e-6)
    # float32, and the rate is the difference of two that are as large as the last one.
    np.testing.assert_allclose(rate(jnp.asarray(count, jnp.int32)), expected, rtol=1e-6, atol=1.2e-7 * lr)


@given(st.floats(1e-6, 1), st.integers(0, 500), st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_the_rate_falls_along_a_cosine_to_its_final_fraction(lr, warmup, fall, final, where):
    steps = warmup + fall
    rate = optim.learning_rate(lr, warmup, "cosine", steps, final)
    count = round(where * steps)
    progress = max(count - warmup, 0) / fall
    expected = lr * (final + (1 - final) * (1 + np.cos(np.pi * progress)) / 2)
    if count < warmup:
        expected = lr * count / warmup
    # 1e-7 of the largest rate: the cosine ends in a cancellation.
    np.testing.assert_allclose(rate(count), expected, rtol=1e-6, atol=2e-7 * lr)
    np.testing.assert_allclose(rate(warmup), lr, rtol=1e-6)
    for end in (steps, steps + 1, 10 * steps):
        np.testing.assert_allclose(rate(end), final * lr, rtol=1e-6, atol=2e-7 * lr)


def test_update_0_of_a_warm_up_has_rate_0():
    assert optim.learning_rate(1e-3, 3, "constant", 10)(0) == 0
    transformation = optim.optimizer("adam", optim.learning_rate(1e-3, 3, "constant", 10))
    updates, state = transformation.update(tree(1), transformation.init(tree(0)), tree(0))
    np.testing.assert_array_equal(vector(updates), 0)
    assert np.all(vector(optax.tree.get(state, "mu")) != 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1e-3, 0, "cosin", 10), "unknown learning rate schedule 'cosin'. Did you mean 'cosine'"),
        ((0.0, 0, "constant", 10), "learning rate 0.0 must be a finite number > 0"),
        ((-1e-3, 0, "cosine", 10), "learning rate -0.001 must be a finite number > 0"),
        ((float("nan"), 0, "constant", 10), "learning rate nan must be a finite number > 0"),
        ((1e-3, 10, "cosine", 10), "warmup=10 must be less than steps=10"),
        ((1e-3, 11, "cosine", 10), "warmup=11 must be less than steps=10"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        optim.learning_rate(*arguments)


# Clipping.


def torch_clipped(gradient, max_norm):
    """``torch.nn.utils.clip_grad_norm_``."""
    return gradient * min(1.0, max_norm / (np.sqrt(np.sum(gradient**2)) + 1e-6))


@given(st.integers(0, 100), st.sampled_from([1e-9, 1e-6, 1e-3, 1.0, 1e3]), st.floats(1e-6, 10))
def test_clipping_is_pytorch_s(seed, scale, max_norm):
    """Gradients of about the size of its 1e-6 as well, where the norm it leaves is less than the one asked for."""
    gradient = tree(seed, scale=scale)
    clipped, _ = optim.clip_by_global_norm(max_norm).update(gradient, optax.EmptyState())
    # 1e-12: float64.
    np.testing.assert_allclose(vector(clipped), torch_clipped(vector(gradient), max_norm), rtol=1e-12)
    assert jax.tree.structure(clipped) == jax.tree.structure(gradient)


def test_clipping_leaves_small_gradients_and_none_alone():
    small = tree(0, np.float32, scale=1e-3)
    clipped, _ = optim.clip_by_global_norm(1.0).update(small, optax.EmptyState())
    np.testing.assert_array_equal(vector(clipped), vector(small))
    assert clipped["kernel"].dtype == np.float32
    zero, _ = optim.clip_by_global_norm(1.0).update(tree(0, scale=0.0), optax.EmptyState())
    np.testing.assert_array_equal(vector(zero), 0)


# Adam.


def torch_adam(p, gradients, rates, beta_1, beta_2, eps, weight_decay, grad_clip, decoupled):
    """``torch.optim.Adam``, or ``AdamW`` if ``decoupled``, after clipping (0: none)."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for k, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        if grad_clip:
            g = torch_clipped(g, grad_clip)
        if decoupled:
            p = p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * p
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        p = p - lr / (1 - beta_1**k) * m / (np.sqrt(v) / np.sqrt(1 - beta_2**k) + eps)
    return p, m, v


@pytest.mark.parametrize("grad_clip", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_adam_is_pytorch_s(name, weight_decay, grad_clip):
    hyper = {"beta_1": 0.8, "beta_2": 0.95, "eps": 1e-3, "weight_decay": weight_decay, "grad_clip": grad_clip}
    rate = optim.learning_rate(RATE, 2, "constant", 6)
    transformation = optim.optimizer(name, rate, **hyper)
    params, gradients = tree(0), [tree(1 + k) for k in range(6)]
    state = transformation.init(params)
    for gradient in gradients:
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)

    rates = RATE * np.minimum(np.arange(6) / 2, 1)
    expected = torch_adam(vector(tree(0)), [*map(vector, gradients)], rates, **hyper, decoupled=name == "adamw")
    actual = (params, optax.tree.get(state, "mu"), optax.tree.get(state, "nu"))
    for ours, theirs in zip(actual, expected, strict=True):
        # 1e-6: the rate and the bias corrections are float32 in optax. Of the largest: sums of both signs may cancel.
        np.testing.assert_allclose(vector(ours), theirs, rtol=1e-6, atol=1e-6 * np.abs(theirs).max())


def test_the_default_is_adam_with_its_published_numbers():
    updates = []
    for hyper in ({}, {"beta_1": 0.9, "beta_2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "grad_clip": 0.0}):
        transformation = optim.optimizer("adam", optax.constant_schedule(RATE), **hyper)
        state = transformation.init(tree(0))
        for seed in (1, 2):
            update, state = transformation.update(tree(seed), state, tree(0))
        updates.append(vector(update))
    np.testing.assert_array_equal(*updates)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="unknown optimizer 'adamx'. Did you mean 'adam"):
        optim.optimizer("adamx", optax.constant_schedule(RATE))


# The moving average.


@given(st.floats(0, 1), st.integers(0, 10**7), st.booleans())
def test_the_average_is_the_formula_s_for_every_array(decay, step, warmup):
    """Parameters and frozen arrays alike: it takes any pytree."""
    average, params = (({"params": tree(seed), "frozen": tree(seed + 10)}) for seed in (0, 1))
    ours = optim.ema_update(average, params, decay, jnp.asarray(step, jnp.int32), warmup)
    d = min(decay, (1 + step) / (10 + step)) if warmup else decay
    # 5e-7: the warm-up's ratio of integers is float32, times differences of up to 4.
    np.testing.assert_allclose(vector(ours), d * vector(average) + (1 - d) * vector(params), rtol=0, atol=5e-7)
    assert jax.tree.structure(ours) == jax.tree.structure(average)


def test_a_warm_up_forgets_the_first_weights():
    """After n updates the first weights have the product of all decays: with a warm-up, a tenth after one."""
    first, later = {"a": jnp.ones(3)}, {"a": jnp.zeros(3)}
    for warmup, expected in ((False, 0.999**5), (True, np.prod([(1 + k) / (10 + k) for k in range(5)]))):
        average = first
        for step in range(5):
            average = optim.ema_update(average, later, 0.999, jnp.asarray(step), warmup)
        np.testing.assert_allclose(average["a"], expected, rtol=1e-6)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_of_constant_weights_does_not_move(key, warmup):
    """Not even by a rounding a step: frozen Fourier frequencies enter a sine of thousands of radians."""
    params = average = {"a": 16 * jax.random.normal(key, (64,), jnp.float32)}
    for step in range(20):
        average = optim.ema_update(average, params, 0.9999, jnp.asarray(step), warmup)
    assert average["a"].dtype == np.float32
    np.testing.assert_array_equal(average["a"], params["a"])
