"""Choose samplers, grids and hyper-parameters for a model and a budget, and learn solvers."""

from psld_jax.tuning.gits import gits_grid
from psld_jax.tuning.learn import Learned, learn
from psld_jax.tuning.projection import fit_projection
from psld_jax.tuning.tune import DEFAULT_SAMPLERS, Row, Tuning, tune

__all__ = ["DEFAULT_SAMPLERS", "Learned", "Row", "Tuning", "fit_projection", "gits_grid", "learn", "tune"]
