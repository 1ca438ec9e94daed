"""Reading the reference numbers of the original implementation (tests/golden)."""

import json
from pathlib import Path

import jax
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


def eps_fn(formula, sde, ulp=0.0):
    """The stand-in for the network: computes in float32 and sees float32 state and time, as there.

    One function for all formulas, so that runs share a program: what they differ in are numbers. ``ulp`` moves its
    output by so much, relative, up or down as if by chance.
    """
    half, momentum = "split" in formula, getattr(sde, "gamma", None) == 0
    outputs = (not half or not momentum, not half or momentum)
    return jax.tree_util.Partial(_eps, np.array(["sin(2*" in formula, half, *outputs, ulp], np.float32))


def _eps(weights, z, t):
    blocks, t = [leaf.astype(jnp.float32) for leaf in z], jnp.asarray(t, jnp.float32)
    sine, half, outputs, ulp = weights[0], weights[1], weights[2:4], weights[4]
    out = []
    for i, a in enumerate(blocks):
        b = half * blocks[1 - i] if len(blocks) == 2 else 0.0
        one = (0.6 + 1.4 * t) * a + 0.3 * jnp.sin(2 * a + b)
        other = (0.8 + 1.1 * t) * a + 0.25 * jnp.cos(1.7 * a - 0.6 * b) * (1 - t)
        e = outputs[i] * jnp.where(sine, one, other)
        out.append(e * (1 + ulp * jnp.sign(jnp.sin(1e4 * e))))
    return tuple(leaf.astype(z[0].dtype) for leaf in out)
