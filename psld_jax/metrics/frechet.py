"""Frechet distance between Gaussians, and the statistics it compares, in float64."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax._runtime.checks import check_array

Array = Any

#: Covariances that were summed in float32 are off by less, relative to their largest number.
_ROUNDING = 1e-3


def statistics(samples: Array) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean ``[d]`` and covariance ``[d, d]`` (population, float64) of samples ``[n, ...]``, flattened.

    Raises:
      ValueError: for fewer than two samples, or NaN or infinite values.
    """
    samples = np.asarray(samples, np.float64)
    if samples.ndim < 2 or len(samples) < 2:
        raise ValueError(f"statistics need samples [n >= 2, ...], got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError("samples hold NaN or infinite values")
    samples = samples.reshape(len(samples), -1)
    mean = samples.mean(axis=0)
    centred = samples - mean
    return mean, centred.T @ centred / len(samples)


def mixture_statistics(data: Array, bandwidth: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute exact mean and covariance of the data set smoothed with a Gaussian of that standard deviation.

    ``data`` is ``[m, ...]``, flattened to ``d`` numbers each: float64 ``[d]`` and ``[d, d]``.
    """
    mean, cov = statistics(data)
    return mean, cov + bandwidth**2 * np.eye(len(mean))


def frechet_distance(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> float:
    """``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)`` (Dowson & Landau, 1982).

    Means ``[d]`` and covariances ``[d, d]``. By symmetric eigendecompositions, so singular covariances need no
    regularisation. Never negative.

    Raises:
      ValueError: if shapes disagree, numbers are not finite, or a matrix is no covariance: not symmetric, or with
        eigenvalues below 0.
    """
    mean1, cov1, mean2, cov2 = (np.asarray(a, np.float64) for a in (mean1, cov1, mean2, cov2))
    if mean1.shape != mean2.shape or cov1.shape != cov2.shape or cov1.shape != (len(mean1),) * 2:
        raise ValueError(f"shapes disagree: means {mean1.shape}, {mean2.shape}; covariances {cov1.shape}, {cov2.shape}")
    for name, array in (("mean1", mean1), ("cov1", cov1), ("mean2", mean2), ("cov2", cov2)):
        check_array(name, array)
    for name, cov in (("cov1", cov1), ("cov2", cov2)):
        if np.abs(cov - cov.T).max(initial=0) > _ROUNDING * np.abs(cov).max(initial=0):
            raise ValueError(f"{name} must be symmetric, as covariances are")
    values, vectors = np.linalg.eigh(cov1)
    largest = values.max(initial=0)
    _check_eigenvalues("cov1", values, largest)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov2 @ root)
    # Both may be of few directions, and have none in common: then these values are rounding, of either sign.
    _check_eigenvalues("cov2, where cov1 is not zero,", cross, largest * np.abs(cov2).max(initial=0))
    overlap = 2 * np.sqrt(np.maximum(cross, 0)).sum()
    distance = np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - overlap
    # A square of a metric. Zero eigenvalues come as 1e-16 of the largest, and their square roots as 1e-8: they make the
    # overlap of equal laws larger than the traces by that much, on one machine and not on another.
    return float(np.maximum(distance, 0))


def _check_eigenvalues(name: str, values: np.ndarray, scale: float) -> None:
    if values.min(initial=0) < -_ROUNDING * scale:
        raise ValueError(f"{name} must have no eigenvalue below 0, as covariances have none; got {values.min():.3g}")


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A Gaussian of features, float64.

    Attributes:
      mean: ``[d]``.
      cov: ``[d, d]``.
    """

    mean: np.ndarray
    cov: np.ndarray

    def distance(self, other: Gaussian) -> float:
        """:func:`frechet_distance`."""
        return frechet_distance(self.mean, self.cov, other.mean, other.cov)


class Moments:
    """Mean and covariance in one pass, float64. Features are added in parts of any size, and are not kept.

    Parts are joined by the formula of Chan, Golub & LeVeque (1983), which does not cancel.

    Args:
      num_kept: so many of the first features are kept, for measures that need them: :meth:`kept`.
    """

    def __init__(self, num_kept: int = 0) -> None:
        self.count, self.finite = 0, True
        self._num_kept, self._kept = num_kept, []
        self._mean: np.ndarray = np.zeros(0)
        self._scatter: np.ndarray = np.zeros((0, 0))

    def add(self, features: Array) -> None:
        """Add features ``[n, ...]``. After NaN or infinite ones ``finite`` is false, and there are no moments."""
        part = np.asarray(features, np.float64)
        self.finite = self.finite and bool(np.isfinite(part).all())
        if not self.finite or not len(part):
            return
        if self._num_kept > self.count:
            self._kept.append(np.asarray(features)[: self._num_kept - self.count])
        part = part.reshape(len(part), -1)
        mean = part.mean(axis=0)
        centred = part - mean
        self._join(len(part), mean, centred.T @ centred)

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if not self.count:
            self._mean, self._scatter = np.zeros_like(mean), np.zeros_like(scatter)
        apart, total = mean - self._mean, self.count + count
        self._scatter += scatter + np.outer(apart, apart) * (self.count * count / total)
        self._mean = self._mean + apart * (count / total)
        self.count = total

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the sums as arrays, for :meth:`joined`.

        Two numbers, the mean ``[d]``, the scatter ``[d, d]``, and what is kept, ``[k, ...]``.
        """
        numbers = {"count": np.array(self.count), "finite": np.array(self.finite)}
        kept = {"kept": self.kept()} if self._kept else {}
        return {**numbers, **kept, "mean": self._mean, "scatter": self._scatter}

    @classmethod
    def joined(cls, parts: list[dict[str, np.ndarray]], num_kept: int = 0) -> Moments:
        """Join the :meth:`arrays` of several processes, as if the features had come in that order.

        Means ``[d]`` and scatters ``[d, d]``, as there.
        """
        whole = cls(num_kept)
        whole.finite = all(part["finite"] for part in parts)
        for part in (part for part in parts if part["count"]):
            if num_kept > whole.count:
                whole._kept.append(part["kept"][: num_kept - whole.count])
            whole._join(int(part["count"]), part["mean"], part["scatter"])
        return whole

    def kept(self) -> np.ndarray:
        """The first features that were to be kept, ``[k, ...]``."""
        return np.concatenate(self._kept)

    def gaussian(self, unbiased: bool = False) -> Gaussian:
        """Return the moments so far: covariance over ``n``, or over ``n - 1`` if ``unbiased`` (numpy.cov, pytorch-fid).

        Raises:
          ValueError: for fewer than two samples, or NaN or infinite values.
        """
        if not self.finite or self.count < 2:
            raise ValueError(f"moments need at least two samples, all finite; got {self.count}, finite: {self.finite}")
        return Gaussian(self._mean, self._scatter / (self.count - unbiased))


class FrechetTarget(NamedTuple):
    """A set of samples to which the Frechet distance of other samples is computed; make it with :meth:`of`.

    With ``C1 = X1^T X1`` and ``C2 = Y2^T Y2`` the overlap ``tr (C1^1/2 C2 C1^1/2)^1/2`` is the nuclear norm of
    ``X1 Y2^T``, so no matrix is larger than the number of samples. Equal to :func:`frechet_distance` of the
    :func:`statistics`.
    """

    mean: Array
    factor: Array
    trace: float

    @classmethod
    def of(cls, samples: Array) -> FrechetTarget:
        """Make the target of samples ``[m, ...]``, float64."""
        centred, mean = _centred(np.asarray(samples, np.float64))
        # Y2: the samples themselves, or where they are many, the triangular factor of them.
        factor = centred if len(centred) <= centred.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))
        return cls(mean, factor, float(np.sum(factor**2)))

    def distance(self, samples: Array) -> Array:
        """Return the distance of samples ``[n, ...]``: float64 for numpy arrays; JAX arrays can be differentiated."""
        xp = jnp if isinstance(samples, jax.Array) else np
        dtype = jnp.result_type(float) if xp is jnp else np.float64
        centred, mean = _centred(xp.asarray(samples, dtype))
        overlap = xp.linalg.svd(centred @ self.factor.T, compute_uv=False).sum()
        distance = xp.sum((mean - self.mean) ** 2) + xp.sum(centred**2) + self.trace - 2 * overlap
        return xp.maximum(distance, 0)  # a square; sums that cancel leave rounding of either sign


def _centred(samples: Array) -> tuple[Array, Array]:
    """Return ``X`` with ``X^T X`` the covariance of the samples, and their mean."""
    samples = samples.reshape(len(samples), -1)
    mean = samples.mean(axis=0)
    return (samples - mean) / np.sqrt(len(samples)), mean
