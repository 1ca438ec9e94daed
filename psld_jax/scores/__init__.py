"""Everything that predicts eps: exact scores, networks, functions and guidance."""

from psld_jax.conditioning.clipping import Clipped, clipped
from psld_jax.conditioning.guidance import (
    Autoguided,
    ClassifierFree,
    ClassifierGuided,
    autoguided,
    classifier_free,
    classifier_guided,
)
from psld_jax.conditioning.measurements import PosteriorGuided, posterior_guided
from psld_jax.conditioning.weights import Weight, weight_of
from psld_jax.scores.clocks import CLOCKS, DiscreteTimes, clock, discrete_times
from psld_jax.scores.family import FamilyScore, family
from psld_jax.scores.function import FunctionScore, function
from psld_jax.scores.mixture import MixtureScore, mixture
from psld_jax.scores.network import NetworkLogits, NetworkScore, classifier, network

__all__ = [
    "CLOCKS",
    "Autoguided",
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
    "Weight",
    "autoguided",
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
    "weight_of",
]
