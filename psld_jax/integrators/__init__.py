"""Samplers as data: one file per family; every module here is discovered, none needs to be listed."""

from psld_jax.integrators.base import Integrator, Stage, aliases, available, describe, get, register, source

__all__ = ["Integrator", "Stage", "aliases", "available", "describe", "get", "register", "source"]
