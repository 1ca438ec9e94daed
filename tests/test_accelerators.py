"""What runs here lowers for accelerators too: programs for CUDA and TPU are made on a CPU, and not run."""

import jax
import jax.numpy as jnp
import numpy as np
import train_support
from jax import export

import psld_jax as pj
from psld_jax import build
from psld_jax.modes.dry_run import training_program
from psld_jax.sampling.generate import prepare
from psld_jax.sampling.loop import run_rows
from psld_jax.sampling.rows import padded

ACCELERATORS = ("cuda", "tpu")
SMALL = {"model.nf": 8, "train.batch_size": 2}


def lower(fn, *arguments):
    """Lower for both; raises where anything has no rule for one of them."""
    jitted = fn if hasattr(fn, "lower") else jax.jit(fn)
    assert export.export(jitted, platforms=ACCELERATORS)(*arguments).platforms == ACCELERATORS


def test_sampling_a_network(digits_model):
    config = train_support.config(SMALL)
    net = build.initial_network(config)
    sde = build.build_sde(config)
    eps_fn, z = pj.scores.network(net, sde), sde.prior_sample(jax.random.key(0), (2, 8, 8, 1), jnp.float32)
    table = prepare(digits_model, "ROBA", nfe=5).table
    keys = jax.random.split(jax.random.key(1), 2)
    lower(lambda *inputs: run_rows(eps_fn, *inputs, None, None), *padded(table, jnp.float32), z, keys)


def test_a_training_step():
    with jax.enable_x64(False):
        step, arguments = training_program(train_support.config(SMALL), 1)
        lower(step, *arguments)


def test_features_of_evaluation():
    images = jax.ShapeDtypeStruct((2, 32, 32, 1), np.float32)
    lower(pj.metrics.features("mnist").fn, images)
