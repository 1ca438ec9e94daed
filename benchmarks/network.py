"""Groups ``network``, ``train_step`` and ``convolution``: a forward pass of every network, a step of its training."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.networks import load_config, random_network
from psld_jax import build, scores
from psld_jax._runtime import winograd
from psld_jax.models import families
from psld_jax.training import losses
from psld_jax.training.step import create_state, make_train_step


def network(options: measure.Options) -> Iterator[dict[str, Any]]:
    """Seconds, GFLOP/s and memory of ``eps_fn(z, t)``, beside a bare convolution."""
    for name in options.configs:
        config = load_config(name, options.small, dtype=options.dtype)
        for batch in options.batches:
            arguments = evaluation(config, batch)
            program, facts = measure.compiled(lambda f, z, t: f(z, t), *arguments)
            yield _row(name, batch, functools.partial(program, *arguments), facts, options)


def train_step(options: measure.Options) -> Iterator[dict[str, Any]]:
    """The same of a whole training step: loss, gradient, clipping, Adam and EMA, with the configuration's dropout."""
    for name in options.configs:
        config = load_config(name, options.small, dtype=options.dtype)
        for batch in options.batches:
            run, facts = training(config, batch)
            yield _row(name, batch, run, facts, options)


def convolution(options: measure.Options) -> Iterator[dict[str, Any]]:
    """A forward pass and a training step with our convolutions and with XLA's, by turns, and how far outputs differ."""
    for name in options.configs:
        config = load_config(name, options.small)
        for batch in options.batches:
            forward, step, outputs = {}, {}, []
            for how in ("auto", "off"):
                with _winograd(how):
                    arguments = evaluation(config, batch)
                    program, _ = measure.compiled(lambda f, z, t: f(z, t), *arguments)
                    forward[how] = functools.partial(program, *arguments)
                    step[how], _ = training(config, batch)
                outputs.append(jax.tree.leaves(forward[how]())[0])
            row: dict[str, Any] = {"case": {"config": name, "batch": batch}}
            for what, programs in (("forward", forward), ("step", step)):
                times = measure.by_turns(programs, options.rounds)
                row |= {f"{what}_seconds": measure.spread(times["auto"])}
                row |= {f"{what}_of_xla": measure.spread(times["auto"] / times["off"])}
            largest = jnp.max(jnp.abs(outputs[1]))
            yield row | {"difference": float(jnp.max(jnp.abs(outputs[0] - outputs[1])) / largest)}


@contextlib.contextmanager
def _winograd(how: str) -> Iterator[None]:
    """Programs that are compiled within have the environment say ``how``."""
    before = os.environ.get(winograd.VARIABLE, "auto")

    def say(value: str) -> None:
        os.environ[winograd.VARIABLE] = value
        winograd.missing.cache_clear()

    say(how)
    try:
        yield
    finally:
        say(before)


def evaluation(config: Any, batch: int) -> tuple[Any, Any, Any]:
    """``(eps_fn, z, t)`` for one evaluation of the configuration's network."""
    sde = build.build_sde(config)
    size, channels = config.model.image_size, config.model.in_ch // sde.num_blocks
    z = sde.prior_sample(jax.random.key(1), (batch, size, size, channels))
    net = random_network(config)
    if config.model.name in families.available():
        return scores.family(net, sde, build.network_options(config)), z, jnp.float32(0.5)
    return scores.network(net, sde), z, jnp.float32(0.5)


def step_inputs(config: Any, batch: int) -> tuple[Any, ...]:
    """Images, labels, coefficients and noise of one step of training."""
    loss, rng = build.build_loss(config), np.random.default_rng(0)
    size, channels = config.model.image_size, config.model.in_ch // loss.sde.num_blocks
    images, *noise = rng.standard_normal((1 + loss.num_noise, batch, size, size, channels), np.float32)
    t = losses.draw_times(0, 0, batch, config.train.t_min)
    labels = np.zeros(batch, np.int32)
    return jax.device_put((np.clip(images, -1, 1), labels, loss.coefficients(t).cast(np.float32), tuple(noise)))


def training(config: Any, batch: int) -> tuple[measure.Program, dict[str, float]]:
    """A function that takes one step further each time it is called, and facts about the program."""
    net, (transformation, rate) = random_network(config), build.build_optimizer(config)
    c = config.train
    options = {"ema_decay": c.ema_decay, "ema_warmup": c.ema_warmup}
    step = make_train_step(net, build.build_loss(config), transformation, rate, **options)
    inputs, key = step_inputs(config, batch), jax.random.key(0)
    state = jax.device_put(create_state(net, transformation, ema=True))
    program, facts = measure.compiled(step, state, key, *inputs, donate=(0,))

    def run() -> dict[str, Any]:
        nonlocal state
        state, metrics = program(state, key, *inputs)
        return metrics

    return run, facts


def _row(
    name: str, batch: int, run: measure.Program, facts: dict[str, float], options: measure.Options
) -> dict[str, Any]:
    bare, bare_gflop = measure.yardstick()
    times = measure.by_turns({"run": run, "bare": bare}, options.rounds)
    rates = facts["gflop"] / times["run"]
    return {
        "case": {"config": name, "batch": batch, "dtype": options.dtype},
        "seconds": measure.spread(times["run"]),
        "gflop_per_second": measure.spread(rates),
        "of_bare_convolution": measure.spread(rates / (bare_gflop / times["bare"])),
        **facts,
    }
