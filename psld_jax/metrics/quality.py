"""Inception Score, kernel distance, precision and recall of features, and files of Gaussian statistics; float64."""

from __future__ import annotations

import os
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from psld_jax._runtime.errors import check_counts, check_kind, why
from psld_jax._runtime.journal import in_one_go
from psld_jax.metrics.frechet import Gaussian

Array = Any

#: Distances that are held at a time: 128 MiB of float64, and as much again to compute them.
_BLOCK = 2**24


def _matrix(values: Array, what: str) -> np.ndarray:
    """Return ``values`` as float64 ``[n, d]``; raise a ``ValueError`` if they are not that, or not finite."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"{what} must have shape [n, d], got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{what} hold NaN or infinite values")
    return values


def _matrices(a: Array, b: Array, what_a: str, what_b: str) -> tuple[np.ndarray, np.ndarray]:
    a, b = _matrix(a, what_a), _matrix(b, what_b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{what_a} have {a.shape[1]} dimensions and {what_b} {b.shape[1]}; both need the same")
    return a, b


def inception_score(logits: Array, splits: int = 10) -> tuple[float, float]:
    """Inception Score ``exp(mean_x KL(p(y | x) | p(y)))``, ``p(y)`` the mean of ``p(y | x)`` (Salimans et al., 2016).

    Args:
      logits: ``[n, classes]``. Samples should come in random order: the parts are consecutive.
      splits: number of parts, each of which has its own ``p(y)`` and score.

    Returns:
      mean and standard deviation (over ``splits``) of the parts' scores.

    Raises:
      ValueError: for fewer samples than parts, another shape, or NaN or infinite values.
    """
    logits = _matrix(logits, "logits")
    check_counts(splits=splits)
    if len(logits) < splits:
        raise ValueError(f"{len(logits)} samples cannot be split in {splits} parts; take fewer splits or more samples")
    log_p, scores = log_softmax(logits, axis=1), []
    ends = [i * len(log_p) // int(splits) for i in range(1, int(splits))]
    for part in np.split(log_p, ends):
        # Not log(mean(p)): of a class that no sample has, that is log(0), and 0 times it NaN.
        log_mean = logsumexp(part, axis=0) - np.log(len(part))
        scores.append(np.exp(np.mean(np.sum(np.exp(part) * (part - log_mean), axis=1))))
    return float(np.mean(scores)), float(np.std(scores))


def kid(
    features_a: Array, features_b: Array, subset_size: int = 1000, subsets: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance: unbiased estimate of the squared MMD with ``k(x, y) = (x . y / d + 1)^3`` (Binkowski, 2018).

    ``mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)``, which may be negative.

    Args:
      features_a, features_b: ``[n, d]`` and ``[m, d]``.
      subset_size: samples of each that one estimate takes, without replacement.
      subsets: number of estimates.
      seed: of the choice of samples.

    Returns:
      mean and standard deviation (over ``subsets``) of the estimates.

    Raises:
      ValueError: for subsets larger than the sets, shapes that disagree, or NaN or infinite values.
    """
    a, b = _matrices(features_a, features_b, "features_a", "features_b")
    check_counts(2, subset_size=subset_size)
    check_counts(subsets=subsets)
    size, smallest = int(subset_size), min(len(a), len(b))
    if size > smallest:
        raise ValueError(f"subset_size={size} is more than the {smallest} samples there are; take at most {smallest}")
    rng, estimates = np.random.default_rng(seed), []
    for _ in range(int(subsets)):
        x, y = (values[rng.choice(len(values), size, replace=False)] for values in (a, b))
        within = [_kernel(z, z) for z in (x, y)]
        apart = sum((k.sum() - np.trace(k)) / (size * (size - 1)) for k in within)
        estimates.append(apart - 2 * _kernel(x, y).mean())
    return float(np.mean(estimates)), float(np.std(estimates))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def precision_recall(real: Array, generated: Array, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al., 2019).

    Precision is the share of generated samples that lie in a ball around a real one, whose radius is the distance to
    that one's ``k``-th nearest real neighbour. Recall is the same with the sets exchanged. Both depend on the sizes of
    the sets: compare them at equal ones (the paper takes 50,000). Memory beyond the features is bounded.

    Args:
      real, generated: features ``[n, d]`` and ``[m, d]``.
      k: which neighbour.

    Raises:
      ValueError: for sets of ``k`` samples or fewer, shapes that disagree, or NaN or infinite values.
    """
    real, generated = _matrices(real, generated, "real features", "generated features")
    check_counts(k=k)
    if min(len(real), len(generated)) <= k:
        raise ValueError(
            f"k={k} neighbours need more than {k} samples of each, got {len(real)} and {len(generated)}; lower k"
        )
    centre = real.mean(axis=0)  # distances do not change, but their rounding errors do
    real, generated = real - centre, generated - centre
    return _share_inside(generated, real, int(k)), _share_inside(real, generated, int(k))


def _share_inside(points: np.ndarray, centres: np.ndarray, k: int) -> float:
    """Return the share of points in at least one of the balls around ``centres``."""
    # The smallest distance is that of a centre to itself.
    radii = np.concatenate([np.partition(d, k, axis=1)[:, k] for d in _squared_distances(centres, centres)])
    inside = [(distances <= radii).any(axis=1) for distances in _squared_distances(points, centres)]
    return float(np.concatenate(inside).mean())


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
    """Yield squared distances ``[rows, m]`` of a few rows of ``a [n, d]`` at a time to all of ``b [m, d]``."""
    rows, norms = max(1, _BLOCK // len(b)), np.sum(b**2, axis=1)
    for start in range(0, len(a), rows):
        part = a[start : start + rows]
        scale = np.sum(part**2, axis=1)[:, None] + norms
        distances = scale - 2 * (part @ b.T)
        # Equal points get 0, so that balls of radius 0 around repeated ones hold them: rounding is about 1e-16 d^1/2.
        distances[distances < 1e-13 * scale] = 0
        yield distances


def read_statistics(path: str | os.PathLike[str], dims: int = 2048) -> Gaussian:
    """Read mean and covariance from a .npz with ``mu`` and ``sigma``, as EDM, pytorch-fid and this package write.

    Args:
      path: the file; nothing in it is executed.
      dims: number of features that it should be of.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: for another kind of file, missing keys, another number of features, NaN or infinite values, or a
        ``sigma`` that is not symmetric.
    """
    check_kind("path", path, (str, os.PathLike), "the .npz of the statistics, as text or a path")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := {"mu", "sigma"} - set(archive.files):
                raise ValueError(
                    f"it has no {' and no '.join(sorted(missing))}; its keys are {', '.join(archive.files)}"
                )
            mean, cov = archive["mu"], archive["sigma"]
        for key, array, shape in (("mu", mean, (dims,)), ("sigma", cov, (dims, dims))):
            if array.shape != shape:
                raise ValueError(f"{key} has shape {array.shape}, but statistics of {dims} features need {shape}")
            if not np.issubdtype(array.dtype, np.floating):
                raise ValueError(f"{key} holds {array.dtype}, not floating-point numbers")
            if not np.isfinite(array).all():
                raise ValueError(f"{key} holds NaN or infinite values")
        mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
        skew = np.abs(cov - cov.T).max()
        if skew > 1e-5 * np.abs(cov).max():  # a hundred times what sums in float32 leave
            raise ValueError(f"sigma is not symmetric: entries differ by up to {skew:.3g}")
    # numpy raises TypeError (an array is no archive) for a .npy, and BadZipFile for a damaged .npz.
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{os.fspath(path)} holds no statistics: {why(error)}") from None
    return Gaussian(mean, (cov + cov.T) / 2)


def write_statistics(path: str | os.PathLike[str], gaussian: Gaussian) -> None:
    """Write what :func:`read_statistics` and pytorch-fid read, to exactly that path.

    Raises:
      ValueError: for what is no path, or lies in a directory that does not exist.
    """
    check_kind("path", path, (str, os.PathLike), "the .npz to write, as text or a path")
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no directory {path.parent}; make it first")
    with in_one_go(path) as temporary, temporary.open("wb") as file:  # a file, as numpy would append .npz to a name
        np.savez(file, mu=np.asarray(gaussian.mean, np.float64), sigma=np.asarray(gaussian.cov, np.float64))


def check_count(n: int, dims: int = 2048) -> None:
    """Warn if ``n`` samples are too few for the Frechet distance of ``dims`` features: ``n <= dims``.

    The distance of ``n`` samples is biased upwards by ``O(1/n)`` (Binkowski et al., 2018): ``tr(C) / n`` for the mean,
    and for the covariance about ``v dims^2 / (4 n)`` where all ``dims`` features have the variance ``v``, less where
    few of them carry most of it.

    Raises:
      ValueError: for counts that are no whole numbers of at least 1.
    """
    check_counts(n=n, dims=dims)
    if n <= dims:
        warnings.warn(
            f"{n} samples of {dims} features: their covariance is singular, of rank {n - 1} at most. The Frechet "
            f"distance is biased upwards by O(1/n), up to about dims^2 / (4 n) = {dims**2 / (4 * n):.3g} variances; "
            "distances with different numbers of samples are not comparable. Take more (FID is defined with 50,000)",
            stacklevel=2,
        )
