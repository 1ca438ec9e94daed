"""Scores of features against closed forms and double loops, and files of statistics."""

import re
import warnings

import numpy as np
import pytest
from psld_jax.convert import convert
from scipy.linalg import sqrtm

import psld_jax as pj
from psld_jax.metrics import Gaussian, frechet_distance, quality, statistics


def test_inception_score_of_certain_classes_is_their_number():
    """``p(y | x)`` one-hot and ``p(y)`` uniform over 7 of 20 classes; and of one class, or of no knowledge, 1."""
    logits = 1e3 * np.eye(20)[np.tile(np.arange(7), 30)]
    np.testing.assert_allclose(quality.inception_score(logits, 10), (7, 0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(quality.inception_score(logits[:1].repeat(10, axis=0)), (1, 0), rtol=1e-12)
    np.testing.assert_allclose(quality.inception_score(np.zeros((10, 20))), (1, 0), rtol=1e-12)


def test_inception_score_by_hand(rng):
    """The formula in probabilities, with parts as the original code makes them.

    A constant added to a sample's logits changes nothing.
    """
    logits = rng.standard_normal((23, 5))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = []
    for part in (p[:7], p[7:15], p[15:]):
        marginal = part.mean(axis=0)
        scores.append(np.exp(np.mean([sum(q * np.log(q / m) for q, m in zip(x, marginal, strict=True)) for x in part])))
    shifted = logits + 1e3 * rng.standard_normal((23, 1))
    np.testing.assert_allclose(quality.inception_score(logits, 3), (np.mean(scores), np.std(scores)), rtol=1e-12)
    # Logits of 1e3 keep 13 digits after the point.
    np.testing.assert_allclose(quality.inception_score(shifted, 3), (np.mean(scores), np.std(scores)), rtol=1e-9)


def test_kernel_distance_is_the_double_loop(rng):
    """All samples in one subset, so that their order does not matter."""
    a, b = rng.standard_normal((6, 4)), 1 + rng.standard_normal((6, 4))

    def mean_kernel(x, y, skip):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not (skip and i == j)]
        return sum((np.dot(x[i], y[j]) / 4 + 1) ** 3 for i, j in pairs) / len(pairs)

    expected = mean_kernel(a, a, True) + mean_kernel(b, b, True) - 2 * mean_kernel(a, b, False)
    np.testing.assert_allclose(quality.kid(a, b, subset_size=6, subsets=2), (expected, 0), rtol=1e-12, atol=1e-12)


def test_kernel_distance_of_one_law_is_zero(rng):
    """Unbiased: zero within its error, and below; and far from zero for another law. The seed decides."""
    a, b = rng.standard_normal((2, 2000, 8))
    mean, std = quality.kid(a, b, subset_size=200, subsets=50)
    assert abs(mean) < 4 * std / np.sqrt(2000 / 200)  # ten independent subsets' worth of samples
    assert quality.kid(a, b, subset_size=200, subsets=50) == (mean, std)
    assert quality.kid(a, b, subset_size=200, subsets=50, seed=1) != (mean, std)
    single = [quality.kid(a, b, subset_size=50, subsets=1, seed=seed)[0] for seed in range(40)]
    assert min(single) < 0 < max(single)
    assert quality.kid(a, b + 0.5, subset_size=200, subsets=50)[0] > 10 * std


def test_precision_and_recall_of_equal_and_of_far_sets(rng):
    real = 100 + rng.standard_normal((300, 16))  # a mean of a hundred deviations, against cancellation
    assert quality.precision_recall(real, real) == (1, 1)
    assert quality.precision_recall(real, rng.permutation(real)) == (1, 1)
    assert quality.precision_recall(real, real + 100) == (0, 0)
    # Samples of one mode are precise and recall little.
    modes = np.concatenate([real, real + 100])
    precision, recall = quality.precision_recall(modes, rng.permutation(real))
    assert (precision, recall) == (1, 0.5)
    # Repeated ones have balls of radius zero, which hold them.
    repeated = real[:10].repeat(5, axis=0)
    assert quality.precision_recall(repeated, repeated) == (1, 1)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [1, 40, 2**24])
def test_precision_and_recall_are_the_double_loops(rng, monkeypatch, k, block):
    """Whatever the size of the blocks."""
    monkeypatch.setattr(quality, "_BLOCK", block)
    real, generated = rng.standard_normal((17, 3)), 0.5 + 1.2 * rng.standard_normal((12, 3))

    def share(points, centres):
        radii = [sorted(np.linalg.norm(c - other) for other in centres)[k] for c in centres]
        inside = [any(np.linalg.norm(x - c) <= r for c, r in zip(centres, radii, strict=True)) for x in points]
        return np.mean(inside)

    precision, recall = quality.precision_recall(real, generated, k)
    assert (precision, recall) == (share(generated, real), share(real, generated))
    assert 0 < precision < 1 or k > 1


def test_bad_input_is_named():
    good = np.ones((5, 3))
    with pytest.raises(ValueError, match="4 samples cannot be split in 10 parts"):
        quality.inception_score(np.ones((4, 3)))
    with pytest.raises(ValueError, match="splits=0 must be"):
        quality.inception_score(good, 0)
    with pytest.raises(ValueError, match="logits hold NaN"):
        quality.inception_score(np.full((20, 3), np.nan))
    with pytest.raises(ValueError, match=r"logits must have shape \[n, d\], got \(5,\)"):
        quality.inception_score(np.ones(5))
    with pytest.raises(ValueError, match="subset_size=1000 is more than the 5 samples there are; take at most 5"):
        quality.kid(good, good)
    with pytest.raises(ValueError, match="subset_size=1 must be an integer >= 2"):
        quality.kid(good, good, subset_size=1)
    with pytest.raises(ValueError, match="features_a have 3 dimensions and features_b 2"):
        quality.kid(good, good[:, :2])
    with pytest.raises(ValueError, match="generated features hold NaN"):
        quality.precision_recall(good, np.full((5, 3), np.inf))
    with pytest.raises(ValueError, match="k=5 neighbours need more than 5 samples of each, got 5 and 5"):
        quality.precision_recall(good, good, 5)


def low_rank(rng, d, rank):
    root = rng.standard_normal((d, rank))
    return root @ root.T


def graded(rng, d, decades):
    """Eigenvalues from 1 down by so many decades, on random axes."""
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return (axes * np.logspace(0, -decades, d)) @ axes.T


COVARIANCES = {
    "full rank": lambda rng: (low_rank(rng, 40, 60), low_rank(rng, 40, 60)),
    "one singular": lambda rng: (low_rank(rng, 40, 60), low_rank(rng, 40, 11)),
    "both singular": lambda rng: (low_rank(rng, 40, 15), low_rank(rng, 40, 11)),
    "rank one": lambda rng: (low_rank(rng, 40, 1), low_rank(rng, 40, 1)),
    "ill-conditioned": lambda rng: (graded(rng, 40, 12), graded(rng, 40, 14)),
    "ill-conditioned against singular": lambda rng: (1e4 * graded(rng, 40, 10), low_rank(rng, 40, 5)),
    "opposite scales": lambda rng: (1e8 * low_rank(rng, 40, 60), 1e-8 * low_rank(rng, 40, 60)),
    "the same axes": lambda rng: same_axes(rng)[:2],
}


def same_axes(rng, d=40):
    """Two covariances with the same axes, and their eigenvalues."""
    axes, values = np.linalg.qr(rng.standard_normal((d, d)))[0], np.logspace(0, -12, d)
    return (axes * values) @ axes.T, (axes * values[::-1]) @ axes.T, values, values[::-1]


@pytest.mark.parametrize("case", COVARIANCES)
def test_frechet_distance_against_a_matrix_square_root(rng, case):
    """``tr (C1 C2)^1/2`` by Schur decomposition, as the reference implementations of FID take it."""
    cov1, cov2 = COVARIANCES[case](rng)
    mean1, mean2 = rng.standard_normal((2, 40))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy says that singular matrices may have no square root
        root = sqrtm(cov1 @ cov2)
    expected = np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root).real
    # Zero eigenvalues come as 1e-16 of the largest, and their square roots as 1e-8: of d of them 1e-6 at most.
    scale = np.trace(cov1) + np.trace(cov2)
    assert abs(frechet_distance(mean1, cov1, mean2, cov2) - expected) < 1e-6 * scale


def test_frechet_distance_on_common_axes_is_closed(rng):
    """``sum (a^1/2 - b^1/2)^2``; to the square root of rounding where eigenvalues are below it."""
    cov1, cov2, a, b = same_axes(rng)
    distance = frechet_distance(np.zeros(40), cov1, np.zeros(40), cov2)
    np.testing.assert_allclose(distance, np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), rtol=1e-6)


def test_statistics_files(rng, tmp_path):
    law = Gaussian(*statistics(rng.standard_normal((50, 6))))
    path = tmp_path / "stats.other"
    quality.write_statistics(path, law)
    assert [p.name for p in tmp_path.iterdir()] == ["stats.other"]
    read = quality.read_statistics(path, 6)
    np.testing.assert_array_equal(read.mean, law.mean)
    np.testing.assert_array_equal(read.cov, law.cov)
    assert law.distance(read) < 1e-12
    # As of EDM: other keys beside, float32, symmetric to rounding only.
    cov = law.cov.astype(np.float32)
    cov[0, 1] *= 1 + 1e-6
    np.savez(tmp_path / "edm.npz", mu=law.mean.astype(np.float32), sigma=cov, images=np.arange(3))
    read = quality.read_statistics(tmp_path / "edm.npz", 6)
    assert read.mean.dtype == read.cov.dtype == np.float64
    np.testing.assert_array_equal(read.cov, read.cov.T)
    np.testing.assert_allclose(read.cov, law.cov, rtol=1e-5, atol=1e-7)  # float32


MU, SIGMA = np.zeros(4), np.eye(4)
SKEW = SIGMA + np.diag([0.1] * 3, 1)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"mu": MU}, "it has no sigma; its keys are mu"),
        ({"mean": MU, "cov": SIGMA}, "it has no mu and no sigma; its keys are mean, cov"),
        ({"mu": np.zeros(5), "sigma": np.eye(5)}, r"mu has shape \(5,\), but statistics of 4 features need \(4,\)"),
        ({"mu": MU, "sigma": np.zeros((4, 5))}, r"sigma has shape \(4, 5\)"),
        ({"mu": MU, "sigma": np.full((4, 4), np.nan)}, "sigma holds NaN"),
        ({"mu": MU + np.inf, "sigma": SIGMA}, "mu holds NaN or infinite"),
        ({"mu": MU, "sigma": SKEW}, r"sigma is not symmetric: entries differ by up to 0\.1"),
        ({"mu": MU, "sigma": SIGMA.astype(complex)}, "sigma holds complex128"),
        ({"mu": MU.astype(object), "sigma": SIGMA}, "Python objects"),
    ],
)
def test_bad_statistics_files(tmp_path, arrays, message):
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(ValueError, match=rf"stats\.npz holds no statistics: .*{message}"):
        quality.read_statistics(tmp_path / "stats.npz", 4)


def test_files_that_are_no_archives(tmp_path):
    path = tmp_path / "stats.npz"
    with pytest.raises(FileNotFoundError):
        quality.read_statistics(path, 4)
    np.savez(path, mu=MU, sigma=SIGMA)
    whole = path.read_bytes()
    np.save(tmp_path / "array.npy", SIGMA)
    damaged = bytearray(whole)
    damaged[200] ^= 255
    for content in (b"", b"mu,sigma", whole[:300], bytes(damaged), (tmp_path / "array.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"stats\.npz holds no statistics"):
            quality.read_statistics(path, 4)


@pytest.mark.parametrize("path", [3, None, ["stats.npz"], b"stats.npz"], ids=repr)
def test_what_is_no_path_is_named(path):
    gaussian = quality.Gaussian(MU, SIGMA)
    for door in (
        lambda: quality.read_statistics(path, 4),
        lambda: quality.write_statistics(path, gaussian),
        lambda: pj.metrics.read_inception(path),
        lambda: convert(path, "", "out"),
        lambda: convert("psld.ckpt", "", path),
    ):
        with pytest.raises(ValueError, match=re.escape(f"={path!r} must be ")):
            door()


def test_statistics_are_not_written_into_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="there is no directory .*none; make it first"):
        quality.write_statistics(tmp_path / "none" / "stats.npz", quality.Gaussian(MU, SIGMA))


def test_too_few_samples_are_warned_of():
    with pytest.warns(UserWarning, match="2048 samples of 2048 features: their covariance is singular, of rank 2047"):
        quality.check_count(2048)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quality.check_count(2049)
    with pytest.raises(ValueError, match="n=0 must be"):
        quality.check_count(0)


def test_the_bias_that_the_warning_tells_of(rng):
    """Of n samples of N(0, I) in d dimensions: ``d / n`` for the mean, ``d (d + 1) / (4 n)`` for the covariance."""
    d, n, draws = 50, 5000, 10
    distances = [
        frechet_distance(np.zeros(d), np.eye(d), *statistics(rng.standard_normal((n, d)))) for _ in range(draws)
    ]
    # One distance has a deviation of ((d / 2)^2 + 2 d)^1/2 / n. Terms of order 1/n^2 are a hundredth of the rest.
    expected, deviation = d / n + d * (d + 1) / (4 * n), np.sqrt((d / 2) ** 2 + 2 * d) / n
    assert abs(np.mean(distances) - expected) < 5 * deviation / np.sqrt(draws) + 0.01 * expected
