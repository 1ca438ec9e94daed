"""Networks to measure: those of the published configurations, with random weights, or small ones of the same kind."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psld_jax import build

#: One for each network that is published; the ``_vp`` configurations differ in their channels in and out only.
CONFIGS = ("mnist", "cifar10", "cifar10_55m", "cifar10_sota", "celeba64", "afhqv2_64", "afhqv2_128")

#: Networks of EDM, measured where they are asked for.
EDM_CONFIGS = ("edm_cifar10_uncond_vp", "edm_cifar10_uncond_ve")

_SMALL_EDM = {
    "model.edm.image_size": 16,
    "model.edm.model_channels": 8,
    "model.edm.channel_mult": (1, 2),
    "model.edm.num_blocks": 1,
    "model.edm.attn_resolutions": (8,),
}
_SMALL = {
    "model.image_size": 16,
    "model.nf": 8,
    "model.ch_mult": (1, 2),
    "model.num_res_blocks": 1,
    "model.attn_resolutions": (8,),
}


def load_config(name: str, small: bool = False, **overrides: Any) -> Any:
    """The configuration of that name, with ``small`` cut down to what compiles in a second; ``model`` overridden."""
    values = {f"model.{key}": value for key, value in overrides.items()}
    less = _SMALL | (_SMALL_EDM if name in EDM_CONFIGS else {}) if small else {}
    return build.override(build.load_config(name), less | values)


def random_network(config: Any) -> Any:
    """The network with random weights that keep the size of activations: initial ones are nearly zero in places."""
    net = build.abstract_network(config)
    rng, (graph, state) = np.random.default_rng(0), nnx.split(net)

    def draw(path: tuple, shape: tuple[int, ...]) -> jax.Array:
        scale = np.float32(1 / np.sqrt(np.prod(shape[:-1])))
        weights = rng.standard_normal(shape, np.float32) * scale
        return jnp.asarray(weights + (path[-1] == "scale"))

    flat = [(path, leaf.replace(draw(path, leaf.shape))) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))
