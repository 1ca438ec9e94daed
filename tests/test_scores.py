"""The exact score of a smoothed data set."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from seeds import generator

import psld_jax as pj

DATA = generator("data").uniform(-1, 1, (37, 2, 3, 1))
BANDWIDTH = 0.1
VP = pj.sde.VPSDE()
THIRD_ORDER = pj.sde.LinearSDE(
    [[0.0, 1.0, 0.0], [-1.0, 0.0, 2.0], [0.0, -2.0, -3.0]],
    np.diag([0.0, 0.0, 6.0]),
    beta_min=4.0,
    beta_max=4.0,
    jitter=1e-9,
)
SDES = [
    pj.sde.PSLD(),
    pj.sde.PSLD(0.25, 4.25, decomposition="upper"),
    pj.sde.PSLD(gamma=0.0, nu=4.0),
    pj.sde.VPSDE(),
    THIRD_ORDER,
]


@jax.jit
def call(eps_fn, z, t):
    return eps_fn(z, t)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None, None))
@jax.grad
def slope_of_log_density(z, mu, total):
    """Of log p_t(z) of one sample, z [K, d]: the mixture of mean ``mu x_i`` and covariance, summed by brute force."""
    residual = z[None] - mu[None] * DATA.reshape(len(DATA), 1, -1)
    exponents = -0.5 * jnp.einsum("nkd,kl,nld->n", residual, jnp.linalg.inv(total), residual)
    return jax.scipy.special.logsumexp(exponents)


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES, ids=lambda s: f"K{s.num_blocks}-{type(s).__name__}-{s.decomposition}")
@pytest.mark.parametrize("data_block", [8, 1000])
def test_score_is_the_gradient_of_the_log_density(rng, sde, data_block):
    eps_fn = pj.scores.mixture(DATA, BANDWIDTH, sde, data_block=data_block)
    k = sde.num_blocks
    x0 = DATA[:5] + 0.05 * rng.standard_normal((5, 2, 3, 1))
    for t in (0.02, 0.3, 1.0):
        z = sde.perturb(jnp.asarray(x0), t, sde.state(*jnp.asarray(rng.standard_normal((k, 5, 2, 3, 1)))))
        eps = np.stack(call(eps_fn, z, t))
        score = np.einsum("kl,l...->k...", sde.score_matrix(t), eps)
        mu = sde.mean(t)
        flat = np.stack(z).reshape(k, 5, -1).swapaxes(0, 1)
        expected = slope_of_log_density(flat, mu, sde.cov(t) + BANDWIDTH**2 * mu @ mu.T)
        expected = np.moveaxis(np.asarray(expected), 0, 1).reshape(score.shape)
        # 1e-7: the coefficients of time go through a spline good to 1e-9; the score is large where the law is narrow.
        np.testing.assert_allclose(score, expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())


def test_one_data_point_is_a_gaussian(rng):
    sde, t = pj.sde.PSLD(), 0.4
    z = sde.state(*jnp.asarray(rng.standard_normal((2, 4, 2, 3, 1))))
    eps = np.stack(pj.scores.mixture(DATA[:1], BANDWIDTH, sde)(z, t))
    mu = sde.mean(t)
    total = sde.cov(t) + BANDWIDTH**2 * mu @ mu.T
    residual = np.stack(z) - np.einsum("k,...->k...", mu[:, 0], DATA[0])[:, None]
    score = -np.einsum("kl,l...->k...", np.linalg.inv(total), residual)
    np.testing.assert_allclose(np.einsum("kl,l...->k...", sde.score_matrix(t), eps), score, rtol=1e-8, atol=1e-8)


def test_parameters_are_leaves_and_float32_agrees(rng):
    sde = pj.sde.PSLD()
    eps_fn = pj.scores.mixture(DATA, BANDWIDTH, sde)
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(eps_fn)) >= DATA.size
    z = sde.state(*jnp.asarray(rng.standard_normal((2, 4, 2, 3, 1))))
    single = call(eps_fn, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), z), jnp.float32(0.5))
    assert all(leaf.dtype == jnp.float32 for leaf in single)
    np.testing.assert_allclose(np.stack(single), np.stack(call(eps_fn, z, 0.5)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrap", [lambda fn: fn, lambda fn: pj.scores.clipped(fn, VP, 0.5)], ids=["score", "clipped"])
def test_a_score_can_be_given_to_jit(rng, wrap):
    """JAX asks a function for its hash, and arrays have none."""
    eps_fn = wrap(pj.scores.mixture(DATA, BANDWIDTH, VP))
    z = (rng.standard_normal((4, 2, 3, 1)),)
    # Its arrays are constants of this program, and arguments of the other one: rounding may differ.
    np.testing.assert_allclose(jax.jit(eps_fn)(z, 0.5)[0], call(eps_fn, z, 0.5)[0], atol=1e-12)


def test_memory_does_not_grow_with_batch_times_data():
    """60,000 points of 784 pixels, 1,000 samples: the compiled program's scratch space stays below 100 MB."""
    sde = pj.sde.PSLD()
    small = pj.scores.mixture(DATA.reshape(37, -1), BANDWIDTH, sde)
    blocks, block = 8, 8192
    shape = jax.ShapeDtypeStruct
    big = type(small)(
        shape((blocks, block, 784), jnp.float32),
        shape((blocks, block), jnp.float32),
        shape((784,), jnp.float32),
        small.coefficients,
        (784,),
    )
    z = sde.state(*[shape((1000, 784), jnp.float32)] * 2)
    compiled = jax.jit(lambda f, z, t: f(z, t)).lower(big, z, shape((), jnp.float32)).compile()
    # The naive matrix of distances, 1,000 x 60,000 float32, would be 240 MB.
    assert compiled.memory_analysis().temp_size_in_bytes < 100e6


def test_outside_its_times_the_score_is_nan_not_a_clamped_number():
    sde = pj.sde.PSLD()
    eps_fn = pj.scores.mixture(DATA, BANDWIDTH, sde, t_min=1e-4)
    z = sde.state(*jnp.ones((2, 1, 2, 3, 1)))
    assert np.isfinite(np.stack(eps_fn(z, 1e-4))).all() and np.isnan(np.stack(eps_fn(z, 5e-5))).all()


@pytest.mark.parametrize(
    ("data", "bandwidth", "message"),
    [
        (np.where(np.arange(37)[:, None, None, None] == 5, np.nan, DATA), 0.1, "1 of 37 points, first at index 5"),
        (DATA, 0.0, "bandwidth=0.0"),
        (DATA, np.inf, "bandwidth=inf"),
        (DATA, "wide", "bandwidth='wide'"),
        (np.zeros((0, 4)), 0.1, "non-empty"),
        (np.zeros(4), 0.1, "shape"),
    ],
)
def test_bad_data_are_named(data, bandwidth, message):
    with pytest.raises(ValueError, match=message):
        pj.scores.mixture(data, bandwidth, pj.sde.PSLD())


def test_a_state_of_the_wrong_shape_is_named():
    eps_fn = pj.scores.mixture(DATA, BANDWIDTH, pj.sde.PSLD())
    with pytest.raises(ValueError, match=r"\[n, 2, 3, 1\]"):
        eps_fn(pj.PhaseState(jnp.ones((4, 3, 2, 1)), jnp.ones((4, 3, 2, 1))), 0.5)


def test_the_brute_force_density_is_itself_right():
    """The oracle integrates to one: K = 1, one pixel, on a fine line."""
    sde, t = pj.sde.VPSDE(), 0.3
    x = np.linspace(-8, 8, 4001)
    data = np.array([-0.5, 0.7])
    mu, total = sde.mean(t)[0, 0], sde.cov(t)[0, 0] + BANDWIDTH**2 * sde.mean(t)[0, 0] ** 2
    log_p = (
        logsumexp(-0.5 * (x[:, None] - mu * data) ** 2 / total, axis=1) - 0.5 * np.log(2 * np.pi * total) - np.log(2)
    )
    np.testing.assert_allclose(np.trapezoid(np.exp(log_p), x), 1.0, rtol=1e-10)
    eps_fn = pj.scores.mixture(data[:, None], BANDWIDTH, sde)
    eps = eps_fn((jnp.asarray(x[:, None]),), t)[0][:, 0]
    score = sde.score_matrix(t)[0, 0] * np.asarray(eps)
    np.testing.assert_allclose(score[1:-1], np.gradient(log_p, x)[1:-1], atol=1e-4)


def test_derivatives_are_finite_in_float32(key):
    """Where logits that are computed twice round differently, none equals their maximum: its derivative is 0 / 0."""
    with jax.enable_x64(False):
        model = pj.load("digits", {"data.num_points": 300})
        x = jnp.asarray(model.data[3:4])
        z = model.sde.state(x, 0.1 * jax.random.normal(key, x.shape))
        ones = jax.tree.map(jnp.ones_like, z)
        times = jnp.linspace(0.05, 0.6, 2000, dtype=jnp.float32)
        slopes = jax.jit(jax.vmap(lambda t: jax.jvp(lambda z: model.eps_fn(z, t), (z,), (ones,))[1]))(times)
    assert all(np.isfinite(leaf).all() for leaf in slopes)
