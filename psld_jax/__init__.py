"""psld_jax: fast samplers for diffusion models, in JAX.

The data flow is config -> sde -> tableau (float64, host) -> scan (device) -> samples -> metrics.
"""

from psld_jax import analysis, assets, blocks, grids, integrators, metrics, scores, sde
from psld_jax.analysis import stability
from psld_jax.blocks import PhaseState
from psld_jax.build import Model, load
from psld_jax.generate import generate, generate_states
from psld_jax.random import sample_keys
from psld_jax.solve import sample, sample_ode
from psld_jax.tableau import Tableau, tabulate

__all__ = [
    "Model",
    "PhaseState",
    "Tableau",
    "analysis",
    "assets",
    "blocks",
    "generate",
    "generate_states",
    "grids",
    "integrators",
    "load",
    "metrics",
    "sample",
    "sample_keys",
    "sample_ode",
    "scores",
    "sde",
    "stability",
    "tabulate",
]
