"""Things that predict eps."""

from psld_jax.scores.mixture import MixtureScore, mixture

__all__ = ["MixtureScore", "mixture"]
