"""``--dry_run``: print what a run would do and what it needs, without doing it."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
from flax import nnx
from rich.console import Console

from psld_jax import build
from psld_jax._runtime.distributed import Devices
from psld_jax.checkpoints import directory as checkpoint
from psld_jax.evaluation import evaluate
from psld_jax.modes._common import prepared, sampled_model
from psld_jax.modes._unused import tell_unused
from psld_jax.sampling.sampler import Sampler
from psld_jax.training import losses, train
from psld_jax.training.step import create_state

_MEBI = 2**20


def dry_run(mode: str, config: Any, console: Console) -> None:
    """Print the configuration with all overrides, and the cost of ``sample``, ``program``, ``evaluate`` or ``train``.

    Programs are compiled for their memory, on the devices that are there, and not run.

    Raises:
      ValueError: as the mode would.
    """
    build.check_fields(config)
    for name, value in checkpoint.flatten(json.loads(config.to_json()), separator=".").items():
        console.print(f"config.{name}={value!r}")
    tell_unused(config, mode, console)
    if mode in ("sample", "program"):
        model = sampled_model(config)
        conditions = build.steer_options(config, model)[0] if mode == "sample" else {}
        _sampling(prepared(model, config, **conditions), config, console)
    elif mode == "evaluate":
        _evaluation(config, console)
    elif mode == "train":
        _training(config, console)


def _sampling(sampler: Sampler, config: Any, console: Console) -> None:
    n, size = config.sampling.num_samples, min(config.sampling.batch_size, config.sampling.num_samples)
    setting = "adaptive" if sampler.setting is None else sampler.setting.describe()
    evaluations = f"{sampler.nfe} evaluations" if sampler.nfe else "as many evaluations as it takes"
    console.print(f"sampler: {setting}, {evaluations}; {n:,} samples, {size} at a time")
    _memory("sampling a batch", sampler.lowered(size), console)


def _evaluation(config: Any, console: Console) -> None:
    c, model = config.evaluate, sampled_model(config)
    tuned = build.tuned_rows(model, c.tuned)
    jobs = list(evaluate.jobs(model, c.samplers, c.nfe, tuned, build.sampler_options(config)))
    evaluations = len(c.seeds) * c.num_samples * sum(sampler.nfe or 0 for _, _, sampler in jobs)
    console.print(
        f"{len(jobs) * len(c.seeds)} cells ({len(jobs)} samplers and budgets, {len(c.seeds)} seeds) of "
        f"{c.num_samples:,} samples: {evaluations:,} evaluations of the network, without those of adaptive solvers"
    )


def _training(config: Any, console: Console) -> None:
    c = config.train
    train.check(config, Devices(c.split_state))
    data, net = build.build_data(config, "train"), build.abstract_network(config)
    build.warn_of_data_std(config, data)
    size = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net)))
    console.print(f"{data.describe()}; {size:,} parameters; {c.steps:,} steps of {c.batch_size} images")
    step, arguments = training_program(config, data.image_shape[-1])
    _memory("a training step", step.lower(*arguments), console)


def training_program(config: Any, channels: int) -> tuple[Any, tuple[Any, ...]]:
    """Return a jitted training step, and shapes of what it takes: images ``[batch_size, H, W, channels]``."""
    c, devices = config.train, Devices(config.train.split_state)
    loss, (transformation, rate) = build.build_loss(config), build.build_optimizer(config)
    net, shape = build.abstract_network(config), build.network_images(config)[:2]
    state = jax.eval_shape(lambda: create_state(build.initial_network(config), transformation, c.ema_decay > 0))
    shardings = devices.state_shardings(state)
    state = jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), state, shardings)
    coefficients = loss.coefficients(losses.draw_times(0, 0, c.batch_size, c.t_min, c.time_sampling)).cast(np.float32)
    images = np.zeros((c.batch_size, *shape, channels), np.float32)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=devices.split),
        (images, np.zeros(c.batch_size, np.int32), coefficients),
    )
    step = train.configured_step(config, net, loss, transformation, rate, devices, state)
    return step, (state, jax.random.key(0), *batch)


def _memory(what: str, lowered: Any, console: Console) -> None:
    memory = lowered.compile().memory_analysis()
    if memory is None:
        console.print(f"{what}: this backend does not tell the memory")
        return
    kept, scratch = (x / _MEBI for x in (memory.argument_size_in_bytes, memory.temp_size_in_bytes))
    console.print(f"{what}: {kept:,.1f} MiB of arguments and {scratch:,.1f} MiB of scratch on each device")
