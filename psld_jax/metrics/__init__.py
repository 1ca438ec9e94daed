"""Distances between sets of samples."""

from psld_jax.metrics.frechet import FrechetTarget, frechet_distance, mixture_statistics, statistics

__all__ = ["FrechetTarget", "frechet_distance", "mixture_statistics", "statistics"]
