"""The modes of the command line. Each one runs, and leaves pictures, tables and a report in the work directory."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from psld_jax import build
from psld_jax._runtime import distributed, xla
from psld_jax._runtime.journal import make_directory, read_json, replace
from psld_jax._runtime.progress import busy
from psld_jax.modes._common import circumstances, now, versions
from psld_jax.modes._fields import named_in_full
from psld_jax.modes._unused import tell_unused
from psld_jax.modes.atlas import run_atlas
from psld_jax.modes.compare import run_bench, run_evaluate, run_tune
from psld_jax.modes.export import run_export, run_program
from psld_jax.modes.latent import run_interpolate, run_likelihood
from psld_jax.modes.sample import run_sample
from psld_jax.modes.train import run_train
from psld_jax.report.write import PAGE, write_report

#: Mode name -> ``run(config, workdir, console) -> report``.
MODES: dict[str, Callable[[Any, Path, Console], dict[str, Any]]] = {
    "sample": run_sample,
    "bench": run_bench,
    "train": run_train,
    "tune": run_tune,
    "evaluate": run_evaluate,
    "atlas": run_atlas,
    "likelihood": run_likelihood,
    "interpolate": run_interpolate,
    "export": run_export,
    "program": run_program,
}


#: Modes that several processes run together; the others run in one.
TOGETHER = ("sample", "train", "evaluate")

#: One line on every mode, for ``--help``; ``list`` is no mode with a report.
SUMMARIES = {
    "sample": "draw samples, with conditions if wanted, as a picture or as files",
    "bench": "compare samplers by their error, on an exact score",
    "tune": "find the best settings of samplers for each budget",
    "evaluate": "compare samplers by the Frechet distance of many samples",
    "atlas": "the same seeds by several samplers, step by step, on a page with sliders",
    "likelihood": "log p of test images",
    "interpolate": "paths between test images",
    "train": "train a network, or go on with it",
    "export": "write the latest weights of a training run to a directory to pass on",
    "program": "write a sampler with its network to one file that runs without being traced",
    "list": "show samplers, configurations, networks and data sets",
}


def run(mode: str, config: Any, workdir: Path, console: Console) -> None:
    """Run ``mode`` and add its report, with command, configuration and versions, to ``workdir/report.json``.

    ``workdir/report.html`` is a page that shows it, with those of the modes that ran there before.

    Raises:
      ValueError: for a configuration that makes no sense, before anything expensive starts.
    """
    start, used = time.perf_counter(), versions()
    made = [path for path in (workdir, *workdir.parents) if not path.exists()]
    make_directory(workdir, "the work directory")
    report = workdir / "report.json"
    # Before anything expensive: the report of this run is added to it.
    content = read_json(report) if report.exists() else {}
    try:
        build.check_fields(config)
        with named_in_full(config, mode), xla.watched(lambda what: busy(f"compiling {what}", console)):
            tell_unused(config, mode, console)
            result = MODES[mode](config, workdir, console)
    except BaseException:
        with contextlib.suppress(OSError):  # if they are still empty
            for path in made:
                path.rmdir()
        raise
    if not distributed.is_first():
        return
    content[mode] = {
        **result,
        "total_seconds": time.perf_counter() - start,
        "finished": now(),
        **circumstances(config),
        "versions": used,
    }
    replace(report, json.dumps(content, indent=1) + "\n")
    write_report(workdir, content)
    console.print(f"results in {workdir}; {workdir / PAGE} shows them")
