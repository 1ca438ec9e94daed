"""Things that predict eps."""

from psld_jax.scores.guidance import ClassifierGuided, PosteriorGuided, classifier_guided, posterior_guided
from psld_jax.scores.mixture import MixtureScore, mixture
from psld_jax.scores.network import NetworkLogits, NetworkScore, classifier, network

__all__ = [
    "ClassifierGuided",
    "MixtureScore",
    "NetworkLogits",
    "NetworkScore",
    "PosteriorGuided",
    "classifier",
    "classifier_guided",
    "mixture",
    "network",
    "posterior_guided",
]
