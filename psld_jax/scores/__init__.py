"""Things that predict eps."""

from psld_jax.conditioning.clipping import Clipped, clipped
from psld_jax.conditioning.guidance import (
    ClassifierFree,
    ClassifierGuided,
    PosteriorGuided,
    classifier_free,
    classifier_guided,
    posterior_guided,
)
from psld_jax.scores.clocks import CLOCKS, DiscreteTimes, clock, discrete_times
from psld_jax.scores.family import FamilyScore, family
from psld_jax.scores.function import FunctionScore, function
from psld_jax.scores.mixture import MixtureScore, mixture
from psld_jax.scores.network import NetworkLogits, NetworkScore, classifier, network

__all__ = [
    "CLOCKS",
    "ClassifierFree",
    "ClassifierGuided",
    "Clipped",
    "DiscreteTimes",
    "FamilyScore",
    "FunctionScore",
    "MixtureScore",
    "NetworkLogits",
    "NetworkScore",
    "PosteriorGuided",
    "classifier",
    "classifier_free",
    "classifier_guided",
    "clipped",
    "clock",
    "discrete_times",
    "family",
    "function",
    "mixture",
    "network",
    "posterior_guided",
]
