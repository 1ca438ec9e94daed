"""Samplers as data: one file per family; every module here is discovered, none needs to be listed."""

from psld_jax.integrators.base import Integrator, Stage, available, describe, get, register

__all__ = ["Integrator", "Stage", "available", "describe", "get", "register"]
