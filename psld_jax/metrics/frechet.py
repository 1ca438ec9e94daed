"""Frechet distance between Gaussians, and the statistics it compares, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any


def statistics(samples: Array) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``[d]`` and covariance ``[d, d]`` (population, float64) of samples ``[n, ...]``, flattened.

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
    """Exact mean and covariance of the data set smoothed with a Gaussian of that standard deviation."""
    mean, cov = statistics(data)
    return mean, cov + bandwidth**2 * np.eye(len(mean))


def frechet_distance(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> float:
    """``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)`` (Dowson & Landau, 1982).

    By symmetric eigendecompositions, so singular covariances need no regularisation.

    Raises:
      ValueError: if shapes disagree.
    """
    mean1, cov1, mean2, cov2 = (np.asarray(a, np.float64) for a in (mean1, cov1, mean2, cov2))
    if mean1.shape != mean2.shape or cov1.shape != cov2.shape or cov1.shape != (len(mean1),) * 2:
        raise ValueError(f"shapes disagree: means {mean1.shape}, {mean2.shape}; covariances {cov1.shape}, {cov2.shape}")
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov2 @ root)
    overlap = 2 * np.sqrt(np.maximum(cross, 0)).sum()
    return float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - overlap)
