"""psld_jax: fast samplers for diffusion models, in JAX.

The data flow is config -> sde -> tableau (float64, host) -> loop (device) -> samples -> metrics.
"""

from psld_jax import assets, blocks, integrators, metrics, models, scores, sde
from psld_jax._runtime.checks import NotFinite, normalise
from psld_jax._runtime.random import sample_keys
from psld_jax._runtime.xla import clear_programs
from psld_jax._version import __version__
from psld_jax.blocks import PhaseState, ThirdOrderState
from psld_jax.build import Classifier, Model, from_denoiser, from_function, load
from psld_jax.conditioning import operators
from psld_jax.conditioning.conjugate import measurement_pull
from psld_jax.conditioning.inpainting import known_pixels
from psld_jax.conditioning.steering import Steering
from psld_jax.evaluation import analysis
from psld_jax.evaluation.analysis import stability
from psld_jax.integrators import grids
from psld_jax.integrators.tableau import Tableau, tabulate
from psld_jax.latent.codes import decode, encode, interpolate
from psld_jax.latent.likelihood import dequantize, log_likelihood
from psld_jax.report.citation import citation
from psld_jax.sampling.adaptive import sample_ode
from psld_jax.sampling.generate import generate, generate_states
from psld_jax.sampling.loop import sample
from psld_jax.sampling.particles import sample_posterior
from psld_jax.sampling.settings import Setting, Tuned
from psld_jax.sampling.solver import Solver, load_solver
from psld_jax.sampling.stepper import stepper
from psld_jax.tuning import fit_projection, gits_grid, learn, tune

__all__ = [
    "Classifier",
    "Model",
    "NotFinite",
    "PhaseState",
    "Setting",
    "Solver",
    "Steering",
    "Tableau",
    "ThirdOrderState",
    "Tuned",
    "__version__",
    "analysis",
    "assets",
    "blocks",
    "citation",
    "clear_programs",
    "decode",
    "dequantize",
    "encode",
    "fit_projection",
    "from_denoiser",
    "from_function",
    "generate",
    "generate_states",
    "gits_grid",
    "grids",
    "integrators",
    "interpolate",
    "known_pixels",
    "learn",
    "load",
    "load_solver",
    "log_likelihood",
    "measurement_pull",
    "metrics",
    "models",
    "normalise",
    "operators",
    "sample",
    "sample_keys",
    "sample_ode",
    "sample_posterior",
    "scores",
    "sde",
    "stability",
    "stepper",
    "tabulate",
    "tune",
]
