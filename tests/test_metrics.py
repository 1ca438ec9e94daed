"""Frechet distance against closed forms."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm

import psld_jax as pj


def random_law(rng, d=5, rank=5):
    root = rng.standard_normal((d, rank))
    return rng.standard_normal(d), root @ root.T


def test_distance_is_the_textbook_formula_and_a_metric_s_square(rng):
    a, b = random_law(rng), random_law(rng)
    expected = np.sum((a[0] - b[0]) ** 2) + np.trace(a[1] + b[1] - 2 * sqrtm(a[1] @ b[1]).real)
    np.testing.assert_allclose(pj.metrics.frechet_distance(*a, *b), expected, rtol=1e-9)
    np.testing.assert_allclose(pj.metrics.frechet_distance(*b, *a), expected, rtol=1e-9)
    np.testing.assert_allclose(pj.metrics.frechet_distance(*a, *a), 0.0, atol=1e-12)


def test_singular_covariances_need_no_regularisation(rng):
    mean, zero = np.zeros(3), np.zeros((3, 3))
    np.testing.assert_allclose(pj.metrics.frechet_distance(mean, zero, mean + 2, np.diag([1.0, 4.0, 0.0])), 12 + 5)
    for _ in range(50):
        low = random_law(rng, rank=2)
        # The square roots of zero eigenvalues that rounding made positive, 1e-8 each, lower it: it is clipped at 0.
        assert 0 <= pj.metrics.frechet_distance(*low, *low) < 1e-7
        samples = rng.standard_normal((3, 5))
        assert 0 <= pj.metrics.FrechetTarget.of(samples).distance(samples) < 1e-7


def test_statistics_are_those_of_the_smoothed_data(rng):
    data = rng.standard_normal((7, 2, 2, 1))
    mean, cov = pj.metrics.mixture_statistics(data, 0.5)
    np.testing.assert_allclose(mean, data.reshape(7, -1).mean(0))
    np.testing.assert_allclose(cov, np.cov(data.reshape(7, -1).T, bias=True) + 0.25 * np.eye(4))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="NaN"):
        pj.metrics.statistics(np.array([[1.0, np.nan], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="n >= 2"):
        pj.metrics.statistics(np.ones((1, 4)))
    with pytest.raises(ValueError, match="shapes disagree"):
        pj.metrics.frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match="cov2: 4 of 4 values are not finite"):
        pj.metrics.frechet_distance(np.zeros(2), np.eye(2), np.zeros(2), np.full((2, 2), np.nan))
    for number, covs in enumerate([(-np.eye(2), np.eye(2)), (np.eye(2), -np.eye(2))], 1):
        with pytest.raises(ValueError, match=rf"cov{number}.* no eigenvalue below 0, .* got -1"):
            pj.metrics.frechet_distance(np.zeros(2), covs[0], np.zeros(2), covs[1])
    with pytest.raises(ValueError, match="cov1 must be symmetric"):
        pj.metrics.frechet_distance(np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="'mnist' are of images in .-1, 1., which psld_jax.normalise"):
        pj.metrics.features("mnist")(np.zeros((1, 32, 32, 1), np.uint8))
    for door in (pj.metrics.features, pj.metrics.judge):
        with pytest.raises(ValueError, match=r"unknown .* \['mnist'\]. Allowed: fashion_mnist, mnist"):
            door(["mnist"])


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m", "d"), [(20, 30, 7), (6, 8, 15), (30, 5, 12), (4, 50, 12)])
def test_the_distance_to_fixed_samples_is_the_distance(rng, n, m, d):
    samples, target = rng.standard_normal((n, d)), 2 + 3 * rng.standard_normal((m, d))
    expected = pj.metrics.frechet_distance(*pj.metrics.statistics(samples), *pj.metrics.statistics(target))
    fixed = pj.metrics.FrechetTarget.of(target)
    np.testing.assert_allclose(fixed.distance(samples), expected, rtol=1e-7)  # square roots of zero eigenvalues
    np.testing.assert_allclose(fixed.distance(jnp.asarray(samples)), expected, rtol=1e-7)
    chex.assert_numerical_grads(fixed.distance, (jnp.asarray(samples),), order=1, modes=["rev"])
