"""Samplers as data, one file for each family. Every module here is found, and none needs to be listed."""

from psld_jax.integrators.base import Integrator, Stage, aliases, available, describe, get, register, source

__all__ = ["Integrator", "Stage", "aliases", "available", "describe", "get", "register", "source"]
