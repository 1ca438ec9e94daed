"""What several modes do."""

from __future__ import annotations

from typing import Any

import numpy as np

from psld_jax import build
from psld_jax.sampling.generate import prepare
from psld_jax.sampling.sampler import Sampler


def sampled_model(config: Any) -> build.Model:
    """The score network, or exact score, of a configuration; ``ValueError`` for a classifier."""
    model = build.build_model(config)
    if not isinstance(model, build.Model):
        raise ValueError("a classifier cannot be sampled from; give a score network")
    return model


def prepared(model: build.Model, config: Any, **conditions: Any) -> Sampler:
    """The sampler that ``config.sampler`` describes, with these conditions; ``ValueError`` if it makes no sense."""
    options = build.sampler_options(config)
    del options["seed"]  # of the samples, not of the sampler
    return prepare(model, **options, **conditions)


def identity(model: build.Model, config: Any) -> dict[str, Any]:
    """Which model files were made with, for those who would go on with them."""
    return {"model": build.tuned_for(model.config, model.sde), "checkpoint": config.model.checkpoint}


def exact_images(model: build.Model, config: Any, count: int, seed: int) -> np.ndarray:
    """Draws from the law whose score is exact, float64 ``[count, H, W, C]``."""
    assert model.data is not None
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, *model.image_shape))
    return model.data[rng.integers(len(model.data), size=count)] + config.model.bandwidth * noise
