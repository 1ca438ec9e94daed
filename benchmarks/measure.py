"""Seconds by turns, what a compiled program needs, and the machine that all of it was seen on."""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import datetime
import functools
import gc
import importlib.metadata
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax._runtime import winograd, xla

#: Multiples of a floating-point operation, and of a byte.
GIGA, MEBI = 1e9, 2**20
#: Environment variables that change how fast things run.
_VARIABLES = ("PSLD_", "XLA_", "JAX_", "MALLOC_", "OMP_", "MKL_", "OPENBLAS_", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES")
_PACKAGES = ("psld_jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch")

Program = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line chooses.

    Attributes:
      configs, batches, dtype: networks, batch sizes, and the type of activations for ``network`` and ``train_step``.
      rounds: of every timing.
      small: tiny networks and few cases in place of the real ones.
      eager: PyTorch as it is, without ``torch.compile``.
    """

    configs: tuple[str, ...]
    batches: tuple[int, ...]
    dtype: str
    rounds: int
    small: bool
    eager: bool = False


class Parser(argparse.ArgumentParser):
    """Bad arguments end with one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def seconds(program: Program) -> float:
    """Seconds until the results of ``program()`` are there."""
    start = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - start


def by_turns(programs: dict[Any, Program], rounds: int, *, settle: bool = False) -> dict[Any, np.ndarray]:
    """Seconds of every program in every round, ``[rounds]``, after one run that does not count.

    What slows the machine down for a while meets all of them. Every other round goes backwards, so that none is always
    the one that comes after the largest. With ``settle`` each timed run comes after one of the same program, so that
    gigabytes which another allocator has just given back to the system are not its time.
    """
    for program in programs.values():
        seconds(program)
    times: dict[Any, list[float]] = {name: [] for name in programs}
    for i in range(rounds):
        for name in list(programs)[:: -1 if i % 2 else 1]:
            if settle:
                seconds(programs[name])
            times[name].append(seconds(programs[name]))
    return {name: np.array(values) for name, values in times.items()}


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median and quartiles, as the report holds them."""
    q1, median, q3 = np.percentile(values, [25, 50, 75])
    return {"q1": float(q1), "median": float(median), "q3": float(q3)}


def compiled(fn: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()) -> tuple[Any, dict[str, float]]:
    """``fn`` compiled for these arguments, and facts: seconds to trace and compile, GFLOP of a call, memory."""
    start = time.perf_counter()
    traced = jax.jit(fn, donate_argnums=donate, compiler_options=xla.options()).trace(*args)
    lap = time.perf_counter()
    program = traced.lower().compile()
    end = time.perf_counter()
    memory = program.memory_analysis()
    return program, {
        "trace_seconds": lap - start,
        "compile_seconds": end - lap,
        "gflop": flops(traced.jaxpr.jaxpr) / GIGA,
        "arguments_mib": memory.argument_size_in_bytes / MEBI,
        "temporaries_mib": memory.temp_size_in_bytes / MEBI,
    }


def flops(jaxpr: Any) -> float:
    """Operations of the convolutions and matrix products of a jaxpr: two for each product of numbers that are not
    zeros put between pixels.

    XLA's own count takes the body of a loop once, however often it runs.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        name, sizes = eqn.primitive.name, [v.aval.shape for v in eqn.invars if hasattr(v.aval, "shape")]
        out = eqn.outvars[0].aval.shape if eqn.outvars else ()
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2.0 * np.prod(out) * np.prod([sizes[0][axis] for axis in contracted])
        elif name == "conv_general_dilated":
            kernel, (out_axis, *_) = sizes[1], eqn.params["dimension_numbers"].rhs_spec
            total += 2.0 * np.prod(out) * np.prod(kernel) / kernel[out_axis] / np.prod(eqn.params["lhs_dilation"])
        elif name in winograd.PRIMITIVES:  # counted as what it stands for
            images = [shape for shape in (*sizes, out) if shape[:3] == sizes[0][:3]]
            total += 2.0 * 9 * np.prod(images[0]) * images[1][3]
        else:
            inner = sum(flops(getattr(sub, "jaxpr", sub)) for sub in _inside(eqn.params))
            total += inner * (eqn.params["length"] if name == "scan" else 1)
    return total


def _inside(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    leaves = jax.tree.leaves(list(params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns"))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns")]


@functools.cache
def yardstick() -> tuple[Program, float]:
    """Ten bare 3x3 convolutions, 128 to 128 channels at 32 x 32, four images, one after the other; and their GFLOP.

    What a program reaches of their rate can be compared between machines, and between hours of a busy one.
    """
    x = jax.random.normal(jax.random.key(0), (4, 32, 32, 128))
    w = jax.random.normal(jax.random.key(1), (3, 3, 128, 128)) / np.sqrt(9 * 128)

    def convolutions(x: Any) -> Any:
        step = functools.partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
        return jax.lax.fori_loop(0, 10, lambda _, y: step(y, w, dimension_numbers=("NHWC", "HWIO", "NHWC")), x)

    program, facts = compiled(convolutions, jnp.asarray(x))
    return lambda: program(x), facts["gflop"]


def forget_peak() -> None:
    """Let :func:`peak` begin anew (Linux), once what was freed has been given back to the system."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def resident() -> float:
    """MiB that the process holds now, after a collection of what is not reachable."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak() -> float:
    """The most memory that this process has held, in MiB (Linux)."""
    # The kernel's number for this program alone: that of getrusage counts the parent process in.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def environment() -> dict[str, Any]:
    """Machine, versions, variables, date and commit."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain")),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "cpus_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0],
        "winograd": winograd.missing() or "compiled",
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "versions": versions,
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
    }


def _git(*arguments: str) -> str | None:
    """What git says about this checkout; ``None`` outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
