"""Making networks and running them once: quick to build and compile, whatever that costs at run time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from seeds import generator

_QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


def _known(options):
    """Those of the options that this XLA knows: they are not promised, and one that is gone is not needed."""
    known = {}
    for name, value in options.items():
        try:
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


jit = functools.partial(jax.jit, compiler_options=_known(_QUICK))


def fill(network, arrays):
    """The abstract network with arrays by path."""
    graph, state = nnx.split(network)
    flat = [(path, leaf.replace(arrays[path])) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def random(network, dtype=jnp.float32, seed=0):
    """The abstract network with random weights that keep the size of activations."""
    rng = generator(f"network {seed}")
    shapes = {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(network))}
    weights = {
        path: rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1])) + (path[-1] == "scale")
        for path, shape in shapes.items()
    }
    return fill(network, {path: jnp.asarray(weight, dtype) for path, weight in weights.items()})


def logits_and_gradient(network, z, t, y):
    """Logits, ``log p(y | z, t)`` of the asked classes, and the gradient of their sum by ``z``."""

    def selected(z):
        logits = network(z, t)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)[:, 0]
        return chosen.sum(), (logits, chosen)

    gradient, (logits, chosen) = jax.grad(selected, has_aux=True)(z)
    return logits, chosen, gradient


@jit
def run(network, z, t):
    """``network(z, t)``."""
    return network(z, t)
