"""Distances between sets of samples, and the features in which they are computed."""

from psld_jax.metrics.features import Features, ImageClassifier, features, judge
from psld_jax.metrics.frechet import (
    FrechetTarget,
    Gaussian,
    Moments,
    frechet_distance,
    mixture_statistics,
    statistics,
)
from psld_jax.metrics.inception import InceptionV3, inception_features, read_inception
from psld_jax.metrics.quality import (
    check_count,
    inception_score,
    kid,
    precision_recall,
    read_statistics,
    write_statistics,
)
from psld_jax.metrics.restoration import psnr, ssim

__all__ = [
    "Features",
    "FrechetTarget",
    "Gaussian",
    "ImageClassifier",
    "InceptionV3",
    "Moments",
    "check_count",
    "features",
    "frechet_distance",
    "inception_features",
    "inception_score",
    "judge",
    "kid",
    "mixture_statistics",
    "precision_recall",
    "psnr",
    "read_inception",
    "read_statistics",
    "ssim",
    "statistics",
    "write_statistics",
]
