"""``--mode train``: train a network, and rewrite the page of the run while it goes on."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from psld_jax._runtime import distributed
from psld_jax._runtime.journal import read_json
from psld_jax.modes._common import circumstances, now
from psld_jax.report.write import PAGE, write_report
from psld_jax.training.train import train

#: Seconds between two versions of the page, and after which a browser opens it again.
EVERY = 10.0


class LivePage:
    """The page of a run that is going on. It is rewritten when there is news, and a browser loads it again.

    Args:
      workdir: of the run; reports of earlier modes in its ``report.json`` are on the page too.
      about: device, command, configuration and versions.
      console: told where the page is when it is there for the first time; none tells nobody.
      every: the least seconds between two versions.
    """

    def __init__(self, workdir: Path, about: dict[str, Any], console: Console | None = None, every: float = EVERY):
        report = workdir / "report.json"
        self._console = console
        self._workdir, self._about, self._every = workdir, about, every
        self._others = read_json(report) if report.exists() else {}
        self._start, self._written = time.monotonic(), -float("inf")
        self._known: dict[str, float] = {}

    def __call__(self, known: dict[str, float]) -> None:
        """Write the page with ``known``, as ``training.watch.Monitor`` tells it, unless the last version is recent."""
        self._known = known
        if time.monotonic() - self._written >= self._every:
            self._written = time.monotonic()
            self._write("yes", self._every)
            if self._console is not None:
                self._console.print(f"{self._workdir / PAGE} shows the run while it goes on")
                self._console = None

    def end(self, why: str) -> None:
        """Write the page a last time, as one that a browser leaves as it is, if the run has begun."""
        if self._known:
            self._write(why, None)

    def _write(self, running: str, refresh: float | None) -> None:
        report = {**self._known, "running": running, "finished": now(), **self._about}
        report["total_seconds"] = time.monotonic() - self._start
        # A disk that is full for a moment ends no training: what must be saved, the checkpoint, says so itself.
        with contextlib.suppress(OSError):
            write_report(self._workdir, {**self._others, "train": report}, refresh)


def run_train(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Train, or resume training, and keep report.html up to date. Returns the report of ``training.train.train``."""
    page = LivePage(workdir, circumstances(config), console) if distributed.is_first() else None
    try:
        return train(config, workdir, console, page)
    except BaseException as error:
        if page is not None:
            page.end(f"no: ended by {type(error).__name__}")
        raise
