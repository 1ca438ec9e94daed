"""The suite: ``python -m benchmarks [--output FILE.json] [--only GROUP ...] [--configs NAME ...] [--batch N ...]``.

Timings are medians and quartiles over rounds in which everything that is compared takes its turn. The file is written
after every case; ``python -m benchmarks.compare A.json B.json`` sets two of them side by side.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from benchmarks import measure, report
from benchmarks.network import convolution, network, train_step
from benchmarks.networks import CONFIGS, EDM_CONFIGS
from benchmarks.pipeline import pipeline
from benchmarks.samplers import linear, recompile, samplers
from benchmarks.start import start
from psld_jax._runtime import journal, winograd
from psld_jax._runtime.errors import check_counts, unknown


def torch(kind: str, options: measure.Options) -> Iterator[dict[str, Any]]:
    """The same networks in PyTorch, where it is installed."""
    from benchmarks.torch_baseline import torch_baseline

    return torch_baseline(kind, options)


#: Functions from options to rows, in the order in which they run.
GROUPS: dict[str, Callable[[measure.Options], Iterator[dict[str, Any]]]] = {
    "network": network,
    "train_step": train_step,
    "convolution": convolution,
    "samplers": samplers,
    "linear": linear,
    "recompile": recompile,
    "pipeline": pipeline,
    "start": start,
    "torch_forward": functools.partial(torch, "forward"),
    "torch_train_step": functools.partial(torch, "train_step"),
}


def skipped(group: str) -> str | None:
    """Why a group cannot run here."""
    if group == "convolution" and (jax.default_backend() != "cpu" or winograd.missing()):
        return f"the convolutions of this package are not in use: {winograd.missing() or 'they are for a CPU'}"
    if not group.startswith("torch"):
        return None
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed: pip install -e '.[torch]', best into an environment of its own"
    if jax.default_backend() != "cpu":
        return f"the baseline in PyTorch runs on a CPU, and JAX here on {jax.default_backend()}"
    return None


def parse(arguments: Sequence[str] | None) -> Any:
    """The command line, checked; bad arguments end with one line."""
    parser = measure.Parser("python -m benchmarks", description="Measure what psld_jax costs.")
    parser.add_argument("--output", default="runs/bench.json", help="JSON file to write (runs/bench.json)")
    parser.add_argument("--only", nargs="+", default=list(GROUPS), help=f"groups: {', '.join(GROUPS)}")
    parser.add_argument("--configs", nargs="+", help=f"networks: {', '.join(CONFIGS + EDM_CONFIGS)}")
    parser.add_argument("--batch", nargs="+", type=int, help="batch sizes of networks (1 4)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="in network and train_step")
    parser.add_argument("--rounds", type=int, help="rounds of every timing (9; 3 with --small)")
    parser.add_argument("--eager", action="store_true", help="leave out torch.compile, which takes minutes")
    parser.add_argument("--small", action="store_true", help="tiny networks, few cases: shows only that it runs")
    chosen = parser.parse_args(arguments)
    chosen.configs = chosen.configs or (["mnist"] if chosen.small else list(CONFIGS))
    chosen.batch = chosen.batch or ([2] if chosen.small else [1, 4])
    chosen.rounds = (3 if chosen.small else 9) if chosen.rounds is None else chosen.rounds
    try:
        check_counts(rounds=chosen.rounds, **{f"batch {value}": value for value in chosen.batch})
        for what, names, allowed in (("group", chosen.only, GROUPS), ("config", chosen.configs, CONFIGS + EDM_CONFIGS)):
            for name in names:
                if name not in allowed:
                    raise unknown(what, name, allowed)
        if chosen.output == parser.get_default("output"):
            Path(chosen.output).parent.mkdir(exist_ok=True)
        if not Path(chosen.output).parent.is_dir():
            raise ValueError(f"--output {chosen.output}: there is no directory {Path(chosen.output).parent}")
    except ValueError as error:
        parser.error(str(error))
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the groups, print their tables, write the report."""
    chosen, console = parse(arguments), Console()
    options = measure.Options(
        tuple(chosen.configs), tuple(chosen.batch), chosen.dtype, chosen.rounds, chosen.small, chosen.eager
    )
    jax.config.update("jax_enable_compilation_cache", False)  # seconds of compilation shall be those of compilation
    jax.config.update("jax_disable_most_optimizations", chosen.small)  # compiles faster, runs slower
    about = {"environment": measure.environment(), "options": dataclasses.asdict(options)}
    load, cpus = about["environment"]["load"], about["environment"]["cpus_allowed"]
    if load > cpus / 2:
        console.print(f"the machine is busy (load {load:.1f}, {cpus} CPUs): timings will not be worth much")
    content: dict[str, Any] = {"format": report.FORMAT, **about, "groups": {}}
    for name in chosen.only:
        content["groups"][name] = group = {"rows": []}
        for row in _rows(name, options, group, console):
            group["rows"].append(row)
            console.print(f"{name}: {', '.join(map(str, row['case'].values()))}", style="dim", markup=False)
            journal.replace(Path(chosen.output), json.dumps(content, indent=1) + "\n")
        measured = report.cases(group)
        lines = {case: [(key, report.text(value)) for key, value in row.items()] for case, row in measured.items()}
        if lines:
            console.print(report.table(name, ("value",), lines))
    journal.replace(Path(chosen.output), json.dumps(content, indent=1) + "\n")


def _rows(name: str, options: measure.Options, group: dict[str, Any], console: Console) -> Iterator[dict[str, Any]]:
    """The rows of a group; of one that cannot run here none, and a note in ``group`` of why."""
    reason = skipped(name)
    if reason is None:
        return GROUPS[name](options)
    console.print(f"{name}: skipped. {reason}", markup=False)
    group["skipped"] = reason
    return iter(())


if __name__ == "__main__":
    sys.exit(main())
