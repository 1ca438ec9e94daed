"""Functions that several modes share: the model, the sampler, and what a report says of a run."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib import metadata
from typing import Any

import jax
import numpy as np

from psld_jax import build
from psld_jax._runtime import distributed
from psld_jax._version import __version__
from psld_jax.sampling.adaptive import SOLVERS
from psld_jax.sampling.generate import prepare
from psld_jax.sampling.sampler import Sampler


def sampled_model(config: Any) -> build.Model:
    """Return the score network, or exact score, of a configuration; raise a ``ValueError`` for a classifier."""
    model = build.build_model(config)
    if not isinstance(model, build.Model):
        raise ValueError("a classifier cannot be sampled from; give a score network")
    return model


def prepared(model: build.Model, config: Any, **conditions: Any) -> Sampler:
    """Make the sampler that ``config.sampler`` describes, with these conditions; ``ValueError`` if it is not sound."""
    options = build.sampler_options(config)
    del options["seed"]  # of the samples, not of the sampler
    if config.sampler.name in SOLVERS:
        del options["t_start"]  # adaptive solvers have no grid; that it has no effect has been said
    # A measurement says itself where to start.
    return prepare(model, **{**options, **conditions})


def identity(model: build.Model, config: Any) -> dict[str, Any]:
    """Identify the model that files were made with, so that another run can check it before it goes on with them."""
    about = {"model": build.tuned_for(model.config, model.sde), "checkpoint": config.model.checkpoint}
    # A training run that went on has other weights in the same place.
    return {**about, "network": model.fingerprint}


def exact_images(model: build.Model, config: Any, count: int, seed: int) -> np.ndarray:
    """Draw from the law whose score is exact, float64 ``[count, H, W, C]``."""
    assert model.data is not None
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, *model.image_shape))
    return model.data[rng.integers(len(model.data), size=count)] + config.model.bandwidth * noise


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on, for reports."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "diffrax", "numpy", "scipy")
    others = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), "psld_jax": __version__, **others}


def _device() -> str:
    """Describe what the computation ran on, for reports."""
    devices, processes = jax.local_devices(), distributed.count()
    kind = platform.machine() if devices[0].platform == "cpu" else devices[0].device_kind
    several = f", {processes} processes" if processes > 1 else ""
    return f"{len(devices)} x {devices[0].platform} ({kind}), {os.cpu_count()} cores{several}"


def circumstances(config: Any) -> dict[str, Any]:
    """Return device, command, configuration and versions of a run, for its report."""
    return {
        "device": _device(),
        "command": sys.argv,
        "config": json.loads(config.to_json()),
        "versions": versions(),
    }


def now() -> str:
    """Return date and time, for reports."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
