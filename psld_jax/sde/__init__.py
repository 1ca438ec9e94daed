"""Linear diffusions in closed form, numpy float64: :class:`PSLD`, :class:`VPSDE`, and the base of both.

One file each; every module here is discovered, none needs to be listed.
"""

from psld_jax.sde.base import LinearSDE, cholesky, linear_flow
from psld_jax.sde.named import available, get, parameters, register
from psld_jax.sde.psld import PSLD
from psld_jax.sde.vpsde import VPSDE

__all__ = ["PSLD", "VPSDE", "LinearSDE", "available", "cholesky", "get", "linear_flow", "parameters", "register"]
