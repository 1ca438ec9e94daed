"""Distances between sets of samples, and the features they are taken of."""

from psld_jax.metrics.features import Features, ImageClassifier, features, judge
from psld_jax.metrics.frechet import (
    FrechetTarget,
    Gaussian,
    Moments,
    frechet_distance,
    mixture_statistics,
    statistics,
)

__all__ = [
    "Features",
    "FrechetTarget",
    "Gaussian",
    "ImageClassifier",
    "Moments",
    "features",
    "frechet_distance",
    "judge",
    "mixture_statistics",
    "statistics",
]
