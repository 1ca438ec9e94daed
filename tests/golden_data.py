"""Reading the reference numbers of the original implementation (tests/golden)."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import psld_jax as pj

_DIRECTORY = Path(__file__).parent / "golden"


def load(name):
    """The description (dict) and the arrays of one reference file."""
    return json.loads((_DIRECTORY / f"{name}.json").read_text()), np.load(_DIRECTORY / f"{name}.npz")


def build_sde(description):
    """The SDE of a reference run."""
    d = description
    if d.get("name", "psld") != "psld":
        return pj.sde.VPSDE(d["beta_min"], d["beta_max"])
    return pj.sde.PSLD(
        d["gamma"], d["nu"], d["beta_min"], d["beta_max"], d["kappa"], d["decomp_mode"], d["numerical_eps"]
    )


def state(sde, array, axis=1):
    """Split an augmented array (data half first) into a float64 state."""
    return sde.state(*np.split(np.asarray(array, np.float64), sde.num_blocks, axis))


def eps_fn(formula, sde):
    """The stand-in for the network: computes in float32 and sees float32 state and time, as there."""
    linear, half = "sin(2*" in formula, "split" in formula

    def apply(a, b, t):
        if linear:
            return (0.6 + 1.4 * t) * a + 0.3 * jnp.sin(2 * a + b)
        return (0.8 + 1.1 * t) * a + 0.25 * jnp.cos(1.7 * a - 0.6 * b) * (1 - t)

    def eps(z, t):
        blocks, t = [leaf.astype(jnp.float32) for leaf in z], jnp.asarray(t, jnp.float32)
        if not half:
            out = [apply(a, 0.0, t) for a in blocks]
        elif sde.gamma == 0:
            out = [jnp.zeros_like(blocks[0]), apply(blocks[1], blocks[0], t)]
        else:
            out = [apply(blocks[0], blocks[1], t), jnp.zeros_like(blocks[1])]
        return tuple(leaf.astype(z[0].dtype) for leaf in out)

    return eps
