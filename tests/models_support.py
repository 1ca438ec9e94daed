"""Making networks and running them once: quick to build and compile, whatever that costs at run time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psld_jax import models

jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
    },
)


def abstract(config, n_classes=None):
    """The network without arrays: the classifier if ``n_classes`` is given."""
    if n_classes is None:
        return nnx.eval_shape(lambda: models.NCSNpp(config, rngs=nnx.Rngs(0)))
    return nnx.eval_shape(lambda: models.NCSNppClassifier(config, n_classes, rngs=nnx.Rngs(0)))


def fill(network, arrays):
    """The abstract network with arrays by path."""
    graph, state = nnx.split(network)
    flat = [(path, leaf.replace(arrays[path])) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def random(network, dtype=jnp.float32, seed=0):
    """The abstract network with random weights that keep the size of activations."""
    rng = np.random.default_rng(seed)
    shapes = {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(network))}
    weights = {
        path: rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1])) + (path[-1] == "scale")
        for path, shape in shapes.items()
    }
    return fill(network, {path: jnp.asarray(weight, dtype) for path, weight in weights.items()})


@jit
def run(network, z, t):
    """``network(z, t)``."""
    return network(z, t)
