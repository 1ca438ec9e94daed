"""What the library does on an accelerator, in one go: python -m benchmarks.accelerator --minutes 8 [--help]

Five groups of cases, each with its share of the time: does the device compute what the CPU computes; samples a second;
steps of training; compilation; and the table of MNIST. ``accelerator.json`` and ``accelerator.md`` are written after
every case. A case that fails is written down with its error, and the next one goes on. At the end of the minutes the
process ends, whatever runs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from benchmarks import accelerator_cases, measure, report
from psld_jax._runtime.errors import check_counts
from psld_jax._runtime.journal import make_directory, replace

#: Groups in their order, and the part of the time by which the last case of each must have begun.
SHARES = {"agreement": 0.2, "throughput": 0.55, "training": 0.7, "compilation": 0.8, "mnist": 1.0}

TITLES = {
    "agreement": "The device against the CPU",
    "throughput": "Samples a second",
    "training": "Steps of training",
    "compilation": "Compilation, first and kept",
    "mnist": "MNIST: Frechet distance in the features of the classifier",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
      group: one of :data:`SHARES`.
      about: names and values that tell it from others of the group.
      run: measures it; names and values.
    """

    group: str
    about: dict[str, Any]
    run: Callable[[], dict[str, Any]]


class Report:
    """Rows of all groups, and the files that hold them."""

    def __init__(self, directory: Path, options: dict[str, Any]):
        self._directory, self._lock, self._running = directory, threading.Lock(), None
        groups: dict[str, Any] = {name: {"rows": []} for name in SHARES}
        about = {"environment": measure.environment(), "options": options}
        self.content = {"format": report.FORMAT, **about, "groups": groups}

    def begin(self, case: Case) -> None:
        """This case runs now."""
        with self._lock:
            self._running = case

    def add(self, case: Case, row: dict[str, Any]) -> None:
        """Write down what came of a case."""
        with self._lock:
            self._running = None
            self._add(case, row)

    def _add(self, case: Case, row: dict[str, Any]) -> None:
        self.content["groups"][case.group]["rows"].append({"case": case.about, **row})
        replace(self._directory / "accelerator.json", json.dumps(self.content, indent=1) + "\n")
        replace(self._directory / "accelerator.md", page(self.content))

    def cut_off(self) -> None:
        """Write down that the minutes are over, and what ran."""
        with self._lock:
            if self._running is not None:
                self._add(self._running, {"error": "cut off: the minutes were over"})

    @property
    def errors(self) -> int:
        """Rows with an error, and those whose results differ by more than their tolerance."""
        rows = [row for group in self.content["groups"].values() for row in group["rows"]]
        return sum("error" in row or row.get("equal") is False for row in rows)


def page(content: dict[str, Any]) -> str:
    """A report as Markdown."""
    environment = content["environment"]
    versions = ", ".join(f"{name} {value}" for name, value in environment["versions"].items() if value)
    lines = ["# On an accelerator", "", f"{', '.join(environment['devices'])}; {environment['processor']}; {versions}."]
    lines += [f"{environment['date']}, commit {environment['commit']}. Timings: median [quartiles], seconds."]
    for name, group in content["groups"].items():
        rows = group["rows"]
        if not rows:
            continue
        cases, columns = (
            list(dict.fromkeys(key for row in rows for key in keys(row)))
            for keys in (lambda row: row["case"], lambda row: [key for key in row if key != "case"])
        )
        lines += ["", f"## {TITLES[name]}", "", "| " + " | ".join([*cases, *columns]).replace("_", " ") + " |"]
        lines += ["|---" * (len(cases) + len(columns)) + "|"]
        for row in rows:
            values = [row["case"].get(key, "") for key in cases] + [row.get(key, "") for key in columns]
            lines.append("| " + " | ".join(report.text(value).replace("|", "\\|") for value in values) + " |")
    return "\n".join(lines) + "\n"


def run(cases: Iterator[Case], found: Report, minutes: float, console: Console, started: float) -> None:
    """Run the cases, none of which begins after its group's share of the minutes."""
    for case in cases:
        name = f"{case.group}: {', '.join(map(str, case.about.values()))}"
        if time.monotonic() - started > SHARES[case.group] * 60 * minutes:
            row = {"skipped": "its share of the time was used"}
        else:
            found.begin(case)
            begun = time.monotonic()
            try:
                row = case.run()
            except Exception as error:  # whatever a device, a driver or PyTorch makes of it: the next case may do
                console.print(traceback.format_exc(), markup=False)
                first_line, *_ = str(error).split("\n")
                row = {"error": f"{type(error).__name__}: {first_line[:300]}"}
            row |= {"case_seconds": time.monotonic() - begun}
        found.add(case, row)
        console.print(f"{name}: {row}", markup=False)


def _end(found: Report) -> None:
    """The minutes are over while a case runs, perhaps inside a compiler, which nothing else can stop."""
    found.cut_off()
    os._exit(3)


def cases(options: accelerator_cases.Options) -> Iterator[Case]:
    """All cases, in the order in which they run."""
    for group in SHARES:
        for about, measured in accelerator_cases.GROUPS[group](options):
            yield Case(group, about, measured)


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run all cases within the minutes; write the page and the JSON."""
    started = time.monotonic()
    parser = measure.Parser("python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="after which the process ends (8)")
    parser.add_argument("--output", default="runs/accelerator", help="directory of the page and the JSON")
    parser.add_argument("--rounds", type=int, default=5, help="of every timing (5)")
    parser.add_argument("--samples", type=int, default=10_000, help="of a cell of the table (10000)")
    parser.add_argument("--only", nargs="+", default=list(SHARES), help=f"groups: {', '.join(SHARES)}")
    parser.add_argument("--small", action="store_true", help="tiny networks, few cases: shows only that it runs")
    chosen = parser.parse_args(arguments)
    try:
        check_counts(rounds=chosen.rounds)
        check_counts(2, samples=chosen.samples)
        if not 0 < chosen.minutes < float("inf"):
            raise ValueError(f"--minutes {chosen.minutes} must be a number above 0")
        if unknown := [name for name in chosen.only if name not in SHARES]:
            raise ValueError(f"--only {unknown[0]} is no group; they are {', '.join(SHARES)}")
        make_directory(Path(chosen.output), "--output")
    except ValueError as error:
        parser.error(str(error))
    options = accelerator_cases.Options(Path(chosen.output), chosen.rounds, chosen.samples, chosen.small)
    if chosen.small:  # compiles faster, runs slower
        jax.config.update("jax_disable_most_optimizations", True)
    console, found = Console(width=200), Report(Path(chosen.output), vars(chosen))
    console.print(f"on {jax.devices()}, at most {chosen.minutes:g} minutes", markup=False)
    watch = threading.Timer(
        max(0.0, 60 * chosen.minutes - (time.monotonic() - started)), functools.partial(_end, found)
    )
    watch.daemon = True
    watch.start()
    try:
        wanted = (case for case in cases(options) if case.group in chosen.only)
        run(wanted, found, chosen.minutes, console, started)
    finally:
        watch.cancel()
    console.print(f"{found.errors} errors; {Path(chosen.output) / 'accelerator.md'}", markup=False)
    return found


if __name__ == "__main__":
    # PyTorch needs memory beside JAX, which else takes most of it at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    main()
