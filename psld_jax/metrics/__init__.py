"""Distances between sets of samples."""

from psld_jax.metrics.frechet import frechet_distance, mixture_statistics, statistics

__all__ = ["frechet_distance", "mixture_statistics", "statistics"]
