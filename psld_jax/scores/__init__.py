"""Things that predict eps."""

from psld_jax.scores.mixture import MixtureScore, mixture
from psld_jax.scores.network import NetworkLogits, NetworkScore, classifier, network

__all__ = ["MixtureScore", "NetworkLogits", "NetworkScore", "classifier", "mixture", "network"]
