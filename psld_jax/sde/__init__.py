"""Linear diffusions in closed form, numpy float64: :class:`PSLD`, :class:`VPSDE`, and the base of both."""

from psld_jax.sde.base import LinearSDE, cholesky, linear_flow
from psld_jax.sde.psld import PSLD
from psld_jax.sde.vpsde import VPSDE

__all__ = ["PSLD", "VPSDE", "LinearSDE", "cholesky", "linear_flow"]
