"""Linear diffusions in numpy float64, one file for each, and their base class.

Phase space: :class:`PSLD`, :class:`CLD`, :class:`ThirdOrder`. One block: :class:`VPSDE`, :class:`VESDE`, :class:`EDM`,
:class:`SubVP`, :class:`Cosine`, :class:`Flow`, :class:`Discrete`; :func:`path` makes one of two functions of your own.
Any functions ``F(t)``, ``D(t)``: :class:`VaryingSDE`. Every module here is discovered, none needs to be listed.
"""

from psld_jax.sde._linear_algebra import cholesky, linear_flow
from psld_jax.sde.base import LinearSDE, check_sde
from psld_jax.sde.cld import CLD
from psld_jax.sde.cosine import Cosine
from psld_jax.sde.discrete import Discrete
from psld_jax.sde.edm import EDM
from psld_jax.sde.flow import Flow
from psld_jax.sde.named import available, get, parameters, register
from psld_jax.sde.one_block import OneBlock
from psld_jax.sde.own import path
from psld_jax.sde.psld import PSLD
from psld_jax.sde.subvp import SubVP
from psld_jax.sde.third_order import ThirdOrder
from psld_jax.sde.varying import VaryingSDE
from psld_jax.sde.vesde import VESDE
from psld_jax.sde.vpsde import VPSDE

__all__ = [
    "CLD",
    "EDM",
    "PSLD",
    "VESDE",
    "VPSDE",
    "Cosine",
    "Discrete",
    "Flow",
    "LinearSDE",
    "OneBlock",
    "SubVP",
    "ThirdOrder",
    "VaryingSDE",
    "available",
    "check_sde",
    "cholesky",
    "get",
    "linear_flow",
    "parameters",
    "path",
    "register",
]
