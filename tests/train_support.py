"""Tiny training runs on the embedded digits, in this process or by the command line, and what they leave behind."""

import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from psld_jax import build
from psld_jax.training import train as training

ROOT = Path(__file__).parent.parent
TINY = {
    "model.name": "ncsnpp",
    "model.in_ch": 2,
    "model.out_ch": 1,
    "model.data_std": 0.8,
    "model.image_size": 8,
    "model.nf": 4,
    "model.ch_mult": (1,),
    "model.num_res_blocks": 1,
    "model.attn_resolutions": (),
    "model.dropout": 0.1,
    "data.holdout": 0.1,
    "data.num_points": 36,  # four batches of eight and a rest: an epoch ends within every run
    "train.batch_size": 8,
    "train.lr": 1e-2,
    "train.warmup": 0,
    "train.ema_decay": 0.9,
    "train.log_every": 1,
    "train.eval_every": 0,
    "train.sample_every": 0,
    "train.checkpoint_every": 0,
}


def config(overrides):
    """The tiny configuration with the given fields replaced."""
    return build.override(build.load_config("default"), TINY | overrides)


def train(workdir, overrides, *, plot=False):
    """Train in this process, in float32; returns the summary and what was printed. Without loss.png it is quicker."""
    workdir.mkdir(exist_ok=True)
    printed = io.StringIO()
    without = contextlib.nullcontext() if plot else mock.patch.object(training.plots, "save_losses")
    with jax.enable_x64(False), without:
        summary = training.train(config(overrides), workdir, Console(file=printed, width=10_000))
    return summary, printed.getvalue()


def start(workdir, cache, overrides, *, devices=1, file_size=None, optimized=False, program=("-m", "psld_jax.main")):
    """Train by the command line in a process of its own; ``file_size`` is the most that it can write to a file."""
    values = {name: repr(value) if isinstance(value, tuple) else value for name, value in (TINY | overrides).items()}
    command = [sys.executable, *program, "--config=configs/default.py", "--mode=train"]
    command += [f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in values.items())]
    limit = [] if file_size is None else ["prlimit", f"--fsize={file_size}"]
    return subprocess.Popen(
        [*limit, *command],
        cwd=ROOT,
        env=environment(cache, devices, optimized),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def environment(cache, devices=1, optimized=False):
    """Variables of a process that compiles fast, and only what is not in ``cache``."""
    more = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    if not optimized:
        more["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    if devices > 1:
        more["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | more


@contextlib.contextmanager
def fast_compilation(cache):
    """The same for this process."""
    values = {
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in values}
    jax.clear_caches()
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        jax.clear_caches()  # what comes later is compiled as ever


def wait(process, until):
    """Wait until that function gives something true; ``False`` if the process ends before."""
    while process.poll() is None:
        if until():
            return True
        time.sleep(0.002)
    return False


def rows(workdir):
    """The whole rows of ``metrics.jsonl``."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def losses(workdir):
    """The training loss by step; a step must not occur twice."""
    pairs = [(row["step"], row["loss"]) for row in rows(workdir) if "loss" in row]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def steps(workdir):
    """The steps of the finished checkpoints."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def arrays(workdir, step=None):
    """Every array of a checkpoint (the latest) by item and path, read without the code that resumes."""
    directory = workdir / "checkpoints" / str(step or steps(workdir)[-1])
    found = {}
    for item in sorted(path.name for path in directory.iterdir() if (path / "_METADATA").is_file()):
        handler = ocp.PyTreeCheckpointHandler()
        as_arrays = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(directory / item).tree
        )
        tree = handler.restore(directory / item, args=ocp.args.PyTreeRestore(restore_args=as_arrays))
        found |= {f"{item}{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    return found


def assert_same_bits(first, second):
    """Two results of :func:`arrays` are the same."""
    assert first.keys() == second.keys()
    assert not [name for name in first if first[name].tobytes() != second[name].tobytes()]


def events(workdir):
    """What TensorBoard would read, file by file."""
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        content, position = file.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            found.append(Event.FromString(content[position + 12 : position + 12 + length]))
            position += 12 + length + 4
    return found
