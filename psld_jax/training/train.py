"""The training loop around the jitted step.

A run is a function of its configuration: the images of step ``k`` (:mod:`psld_jax.data`), its times and its noise all
follow from ``(seed, k)``. The state and the step are therefore all that a checkpoint needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from psld_jax import build
from psld_jax._runtime import distributed, xla
from psld_jax._runtime.distributed import Agreement, Devices
from psld_jax._runtime.random import sample_keys
from psld_jax.checkpoints import directory as checkpoint
from psld_jax.data import Batches, Dataset
from psld_jax.evaluation import plots
from psld_jax.sampling.adaptive import SOLVERS
from psld_jax.sampling.generate import generate_states, resolve
from psld_jax.training import losses
from psld_jax.training.step import TrainState, Weights, create_state, make_eval_step, make_train_step
from psld_jax.training.watch import Monitor, read_rows

Array = Any


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the signal (SIGTERM or SIGINT) that asked to stop, or 0 if none did."""
    received: list[tuple[int, float]] = []

    def note(number: int, _: Any) -> None:
        # Ctrl-C again, and not the same one passed on by a parent process: the user does not want to wait.
        if received and number == signal.SIGINT and time.monotonic() - received[0][1] > 1:
            raise KeyboardInterrupt
        received.append((number, time.monotonic()))

    handlers = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received[0][0] if received else 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def changes(stored: dict[str, Any], config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the fields (dotted names) that differ between two configurations as dicts, with both values."""
    old, new = (checkpoint.flatten(values, separator=".") for values in (stored, config))
    return {name: (old.get(name), new.get(name)) for name in sorted({*old, *new}) if old.get(name) != new.get(name)}


# What a run must keep: the model, and the loss, whose values are compared with those at the beginning.
_KEPT = ("model.", "sde.", "train.objective", "train.weighting", "train.noise", "train.norm", "train.reduce_mean")
_FREE = ("model.dtype", "model.dropout", "model.bandwidth", "model.weights")


def _check_resume(meta: dict[str, Any], config: Any, images: int, console: Console) -> None:
    """Say what changed since the checkpoint; raise a ``ValueError`` if what was saved no longer fits."""
    stored = json.loads(build.from_dict(meta["config"]).to_json())  # fields that are newer have their defaults
    changed = changes(stored, json.loads(config.to_json()))
    listed = {name: f"config.{name} was {old!r}, is {new!r}" for name, (old, new) in changed.items()}
    fixed = [text for name, text in listed.items() if name.startswith(_KEPT) and name not in _FREE]
    if fixed:
        raise ValueError(
            f"the checkpoint is of another model or loss: {'; '.join(fixed)}. "
            "Go on with the old values, or choose another workdir"
        )
    if meta["images"] != images:
        listed["images"] = f"the training set had {meta['images']:,} images, has {images:,}"
    for text in listed.values():
        console.print(f"changed since the checkpoint: {text}")


class _HeldOut:
    """The loss over held-out images at fixed times and with fixed noise, the same at every step and device count."""

    def __init__(self, net: nnx.Module, loss: Any, data: Dataset, config: Any, devices: Devices):
        size, n = config.train.batch_size, min(config.train.eval_images, len(data))
        images = Batches(data, n, seed=0)[0]
        self.t = loss.times(losses.draw_times(0, 0, n, config.train.t_min, "stratified"))
        self._batches, keys = [], jax.jit(sample_keys, out_shardings=devices.split)
        for start in range(0, n, size):
            index = np.arange(start, start + size) % n  # the last batch is filled up from the front
            coefficients = loss.coefficients(self.t[index]).cast(np.float32)
            host = (images["image"][index], images["label"][index], coefficients)
            self._batches.append((keys(jax.random.key(0), index), *devices.place_whole(host)))
        step = make_eval_step(net, loss, whole=devices.gather)
        self._step = jax.jit(step, out_shardings=devices.replicated, compiler_options=xla.options())

    def __call__(self, weights: Weights) -> dict[str, np.ndarray]:
        """Return the metrics of every held-out image."""
        parts = [jax.device_get(self._step(weights, *batch)) for batch in self._batches]
        return {name: np.concatenate([part[name] for part in parts])[: len(self.t)] for name in parts[0]}


def train(
    config: Any, workdir: Path, console: Console, tell: Callable[[dict[str, float]], None] | None = None
) -> dict[str, Any]:
    """Train the network that ``config`` describes, from the latest checkpoint in ``workdir`` if there is one.

    Leaves ``checkpoints/``, ``metrics.jsonl``, ``samples/``, ``loss.png``, and with ``config.train.tensorboard``
    ``tensorboard/``. SIGTERM and Ctrl-C save and return; ``psld_jax.load(workdir)`` opens the latest checkpoint.
    ``tell`` is called with the progress, see ``training.watch.Monitor``.

    Returns:
      A summary: steps, what stopped it, losses, images per second, hours.

    Raises:
      ValueError: for a configuration that makes no sense, data that cannot be read, or a checkpoint of another model.
      psld_jax.training.watch.Diverged: if the loss is not finite or far above where it began; the last checkpoint is
        kept.
      OSError: if a checkpoint cannot be written; those before it are kept.
    """
    c, devices = config.train, Devices(config.train.split_state)
    check(config, devices)
    host, hosts = jax.process_index(), jax.process_count()
    data, held_out_data = build.build_data(config, "train"), build.build_held_out(config)
    build.warn_of_data_std(config, data)
    loss, (transformation, rate) = build.build_loss(config), build.build_optimizer(config)
    batches = Batches(data, c.batch_size, config.seed, flip=config.data.flip, shard=(host, hosts))
    # A run that goes on has weights of its own, and those that it began with may be gone.
    begun = checkpoint.latest_training(workdir) is not None
    net = build.initial_network(build.override(config, {"train.init": ""}) if begun else config)
    stored, clock = json.loads(config.to_json()), time.perf_counter()

    with checkpoint.TrainingCheckpoints(workdir / "checkpoints", c.keep_last, c.keep_every) as checkpoints:
        start = checkpoints.latest() or 0
        seconds, averaged = 0.0, True
        if start:
            meta = checkpoints.meta(start)
            _check_resume(meta, config, len(data), console)
            seconds, averaged = meta["seconds"], meta["config"]["train"]["ema_decay"] > 0
        state = devices.place_state(create_state(net, transformation, c.ema_decay > 0))
        if start:
            state = _restore(checkpoints, start, state, averaged)
        size = sum(leaf.size for leaf in jax.tree.leaves(state.online))
        where = f"{devices.count} {jax.default_backend()} device(s)" + (f" of {hosts} processes" if hosts > 1 else "")
        where += ", state split over them" if c.split_state else ""
        console.print(f"{data.describe()}; {size:,} parameters; {where}; starting at step {start}")

        if start > c.steps:
            console.print(f"config.train.steps={c.steps} is below the saved step {start}: nothing is trained")
        if c.warmup > c.steps:
            console.print(
                f"config.train.warmup={c.warmup} is longer than the run of config.train.steps={c.steps}: the learning "
                f"rate ends at {c.steps / c.warmup:.2g} of config.train.lr"
            )

        step_fn = configured_step(config, net, loss, transformation, rate, devices, state)
        held_out = None if held_out_data is None else _HeldOut(net, loss, held_out_data, config, devices)
        del held_out_data  # the images that count are on the devices
        samples = isinstance(loss, losses.ScoreLoss) and c.sample_every > 0
        key, done, stopped, agreed = jax.random.key(config.seed), start, 0, Agreement(devices)
        mine = slice(c.batch_size * host // hosts, c.batch_size * (host + 1) // hosts)
        options = {"start": start, "steps": c.steps, "batch_size": c.batch_size, "divergence": c.divergence}
        options |= {"tensorboard": c.tensorboard, "tell": tell}

        def due(every: int) -> bool:
            return done == c.steps or bool(every and done % every == 0)

        with (
            _signals() as signalled,
            Monitor(workdir, console, **options) as monitor,
            contextlib.closing(batches.iterate(start)) as source,
        ):
            while done < c.steps:
                batch = next(source)
                t = loss.times(losses.draw_times(config.seed, done, c.batch_size, c.t_min, c.time_sampling))
                coefficients = loss.coefficients(t[mine]).cast(np.float32)
                placed = devices.place((batch["image"], batch["label"], coefficients))
                with monitor.during("compiling the training step") if done == start else contextlib.nullcontext():
                    state, metrics = step_fn(state, key, *placed)
                monitor.record(t, metrics)
                done, stopped = done + 1, agreed(signalled())
                saving = stopped > 0 or due(c.checkpoint_every)
                showing = samples and due(c.sample_every)
                if saving or showing or due(c.log_every) or due(c.eval_every):
                    # Before saving: a diverged state must not take the place of a good one.
                    monitor.flush(done, whole=due(c.log_every))
                if saving:
                    total = seconds + time.perf_counter() - clock
                    meta = {"step": done, "seconds": total, "images": len(data), "config": stored}
                    checkpoints.save(done, _items(state), meta)
                if stopped:
                    break
                weights = state.online if state.ema is None else state.ema
                if held_out is not None and due(c.eval_every):
                    monitor.held_out(done, held_out.t, held_out(weights))
                if showing:
                    monitor.picture(done, _sample(config, devices.fetch(weights), workdir, done))
            checkpoints.wait()
    name = signal.Signals(stopped).name if stopped else None
    if name:
        console.print(f"{name}: saved at step {done}; the same command goes on from there")
    if data.skipped:
        console.print(f"{data.skipped} corrupt images were skipped")
    summary = {"steps": done, "stopped": name, "hours": (seconds + time.perf_counter() - clock) / 3600}
    return {**summary, "skipped_images": data.skipped, **_summary(workdir, console)}


def configured_step(
    config: Any, net: Any, loss: Any, transformation: Any, rate: Any, devices: Devices, state: TrainState
) -> Any:
    """Call :func:`make_train_step` with the options of ``config.train``, and jit it for states like this one."""
    names = ("ema_decay", "ema_warmup", "accumulate", "label_dropout", "remat")
    options = {name: config.train[name] for name in names}
    step = make_train_step(net, loss, transformation, rate, **options, whole=devices.gather)
    shardings = devices.state_shardings(state), devices.replicated
    return jax.jit(step, donate_argnums=0, out_shardings=shardings, compiler_options=xla.options())


def check(config: Any, devices: Devices) -> None:
    """Raise a ``ValueError`` for numbers and names that would otherwise be found wrong after hours."""
    c = config.train
    if config.model.checkpoint:
        raise ValueError(
            f"config.model.checkpoint={config.model.checkpoint!r} must be empty; config.train.init begins with weights"
        )
    build.check_fields(config)
    if not 1e-6 <= c.t_min < 1:
        raise ValueError(f"config.train.t_min={c.t_min} must lie in [1e-6, 1)")
    for name in ("weight_decay", "grad_clip"):
        if not c[name] >= 0:
            raise ValueError(f"config.train.{name}={c[name]} must be >= 0; 0 leaves it out")
    if not c.divergence > 1:
        raise ValueError(f"config.train.divergence={c.divergence} must be > 1")
    if not 0 <= c.ema_decay < 1:
        raise ValueError(f"config.train.ema_decay={c.ema_decay} must lie in [0, 1); 0 keeps no average")
    if c.batch_size % (devices.count * c.accumulate):
        raise ValueError(
            f"config.train.batch_size={c.batch_size} must be divisible by {devices.count} device(s) times "
            f"config.train.accumulate={c.accumulate}"
        )
    if not 0 <= c.label_dropout < 1:
        raise ValueError(f"config.train.label_dropout={c.label_dropout} must lie in [0, 1)")
    losses.draw_times(0, 0, 1, c.t_min, c.time_sampling)
    if c.sample_every and config.model.name != "ncsnpp_clf" and config.sampler.name not in SOLVERS:
        s, model = config.sampler, build.Model(build.build_sde(config), print, config, ())
        options = {"grid": s.grid, "rho": s.rho, "t_start": s.t_start or None}
        setting = resolve(model, s.name, s.nfe, **options, **build.sampler_hyper(config, s.name))
        setting.table(model.sde, s.nfe, t_end=s.t_end or None, denoise=build.last_step(config))


def _items(state: TrainState) -> dict[str, Any]:
    """Return what a checkpoint holds. :func:`psld_jax.load` can open the weights ``online`` and ``ema``."""
    items = {"online": state.online.as_dict(), "optimizer": state.optimizer}
    return items if state.ema is None else {**items, "ema": state.ema.as_dict()}


def _restore(
    checkpoints: checkpoint.TrainingCheckpoints, step: int, state: TrainState, averaged: bool = True
) -> TrainState:
    """Return the state at ``step``, placed as ``state`` is. If no average was kept, it begins with the weights."""
    kept = state if averaged else dataclasses.replace(state, ema=None)
    items = checkpoints.restore(step, _items(kept))
    online, ema = state.online.updated(items["online"]), None
    if state.ema is not None:
        # The state is donated, so that no array may be in it twice.
        ema = state.ema.updated(items["ema"] if averaged else jax.tree.map(jnp.copy, items["online"]))
    number = jnp.full_like(state.step, step)
    return TrainState(number, online, ema, items["optimizer"])


def _sample(config: Any, weights: Weights, workdir: Path, step: int) -> np.ndarray:
    """Draw samples, leave them in ``samples/``, and return their grid ``[H, W, C]`` in [0, 1]."""
    model = build.network_model(config, weights.as_dict())
    assert isinstance(model, build.Model)
    n, classes = config.train.num_samples, model.n_classes
    labels = {"label": np.arange(n) % classes} if classes else {}
    state, _ = generate_states(model, n=n, **build.sampler_options(config), **labels)
    if distributed.is_first():
        (workdir / "samples").mkdir(exist_ok=True)
        plots.save_samples(workdir / "samples" / f"{step:08}.png", state, f"step {step:,}, {config.sampler.name}")
    return plots.image_grid(np.asarray(state[0]))


def _summary(workdir: Path, console: Console) -> dict[str, Any]:
    """Print losses and rates from ``metrics.jsonl``, and draw ``loss.png``."""
    rows = read_rows(workdir)
    trained, held_out = ([row for row in rows if name in row] for name in ("loss", "held_out_loss"))
    summary: dict[str, Any] = {}
    if trained:
        rates = [row["images_per_second"] for row in trained]
        summary |= {"loss": trained[-1]["loss"], "images_per_second": float(np.median(rates))}
        if distributed.is_first():
            plots.save_losses(workdir / "loss.png", trained, held_out)
    if held_out:
        summary |= {name: value for name, value in held_out[-1].items() if isinstance(value, float)}
    for name, value in summary.items():
        console.print(f"{name.replace('_', ' ')}: {value:.4g}")
    return summary
