"""The score networks (NCSN++ and its classifier, EDM's networks, UNet2D) in flax.nnx, channels last."""

from psld_jax.models import families
from psld_jax.models.layers import Frozen
from psld_jax.models.ncsnpp import NCSNpp, NCSNppClassifier, abstract
from psld_jax.models.original import SourceParameter, source_parameters
from psld_jax.models.structure import Entry, NCSNppConfig, plan

__all__ = [
    "Entry",
    "Frozen",
    "NCSNpp",
    "NCSNppClassifier",
    "NCSNppConfig",
    "SourceParameter",
    "abstract",
    "families",
    "plan",
    "source_parameters",
]
