"""Group ``start``: seconds from a fresh process to the first sample of the shipped network."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import measure

_ROOT = Path(__file__).parent.parent


def start(options: measure.Options) -> Iterator[dict[str, Any]]:
    """Import alone; then the command that samples one image, without kept programs, and with those that it keeps.

    The whole life of the process counts, the picture that it leaves included.
    """
    with tempfile.TemporaryDirectory() as directory:
        sample = _sample(directory)
        cases = {
            "import": (["-c", "import psld_jax"], {}),
            "cold": (sample, {"JAX_ENABLE_COMPILATION_CACHE": "false"}),
            "warm": (sample, {"XDG_CACHE_HOME": directory}),
        }
        programs = {name: lambda case=case: run(*case) for name, case in cases.items()}
        # The run before the first round, which does not count, fills the caches.
        for name, times in measure.by_turns(programs, 1 if options.small else options.rounds).items():
            yield {"case": {"start": name}, "seconds": measure.spread(times)}


def _sample(directory: str) -> list[str]:
    """Arguments of Python that sample one image."""
    return [
        *("-m", "psld_jax.main", "--config", "configs/saved.py", "--config.model.checkpoint=mnist"),
        *("--mode", "sample", "--workdir", f"{directory}/samples", "--config.sampling.num_samples=1"),
    ]


def run(arguments: list[str], variables: dict[str, str]) -> str:
    """What a fresh Python in the checkout prints; ``RuntimeError`` with what it said if it fails."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    options = {"cwd": _ROOT, "env": inherited | variables, "capture_output": True, "text": True}
    process = subprocess.run([sys.executable, *arguments], **options)
    if process.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed: {process.stderr[-1000:]}")
    return process.stdout
