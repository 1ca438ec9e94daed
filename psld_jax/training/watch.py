"""Watching a training run: progress, metrics on disk and in TensorBoard, loss by time, and whether it still learns."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from psld_jax._runtime import distributed
from psld_jax._runtime.journal import replace
from psld_jax._runtime.progress import SHORT, duration

Array = Any

_proto: Any = event_pb2  # generated code, which type checkers cannot see into

TIME_BINS = 20


class Diverged(RuntimeError):
    """The loss is not finite, or far above where it began."""


def by_time(t: np.ndarray, values: np.ndarray) -> tuple[list[float | None], list[int]]:
    """Return means and counts of ``values [n]`` in equal bins of ``t [n]`` in [0, 1]; ``None`` for an empty bin."""
    index = np.minimum((t * TIME_BINS).astype(int), TIME_BINS - 1)
    counts = np.bincount(index, minlength=TIME_BINS)
    sums = np.bincount(index, values, minlength=TIME_BINS)
    return [float(s / c) if c else None for s, c in zip(sums, counts, strict=True)], counts.tolist()


def read_rows(workdir: Path) -> list[dict[str, Any]]:
    """Read the rows of ``metrics.jsonl``. A last line that was cut off by a crash is left out."""
    path, rows = workdir / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class Monitor:
    """Collects what the steps report, and every so often writes it down and looks at it.

    Metrics of a step stay on the device until :meth:`flush`, so that watching does not hold up training; at most two
    steps are in flight.

    Args:
      workdir: gets ``metrics.jsonl`` (rows of steps after ``start``, left by a run that was killed, are dropped) and
        ``tensorboard/``, from the first process.
      console: progress bar on a terminal, else a line per interval.
      start, steps: the run's first and last step.
      batch_size: images per step.
      divergence: factor over the loss of the first interval at which :meth:`flush` raises.
      tensorboard: whether to write ``tensorboard/``.
      tell: called in the first process at the start, and whenever something was written down, with ``step``,
        ``steps``, and once they are known ``loss``, ``images_per_second`` and ``seconds_left``.
    """

    def __init__(
        self,
        workdir: Path,
        console: Console,
        *,
        start: int,
        steps: int,
        batch_size: int,
        divergence: float,
        tensorboard: bool = True,
        tell: Callable[[dict[str, float]], None] | None = None,
    ):
        self._console, self._batch_size, self._divergence = console, batch_size, divergence
        self._pending: list[tuple[np.ndarray, dict[str, Array]]] = []
        self._clock = time.perf_counter()
        rows = [row for row in read_rows(workdir) if row["step"] <= start]
        self._first_loss = next((row["loss"] for row in rows if "loss" in row), None)
        self._file = self._board = None
        if distributed.is_first():
            replace(workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            self._file = (workdir / "metrics.jsonl").open("a", buffering=1)
            self._board = _Board(workdir / "tensorboard", start) if tensorboard else None
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=steps, completed=start, text="")
        self._steps = steps
        self._tell = tell if distributed.is_first() else None
        self._known: dict[str, float] = {"step": start, "steps": steps}

    def __enter__(self) -> Monitor:
        self._progress.start()
        self._told()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()
        for output in (self._file, self._board):
            if output is not None:
                output.close()

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Show ``what`` is done while nothing can be counted, such as a compilation; afterwards, off a terminal."""
        start = time.perf_counter()
        self._progress.update(self._task, text=what)
        yield
        self._progress.update(self._task, text="")
        if not self._console.is_terminal and (seconds := time.perf_counter() - start) > SHORT:
            self._console.print(f"{what}: {seconds:.1f} s")

    def record(self, t: np.ndarray, metrics: dict[str, Array]) -> None:
        """Record what a step reports for the times ``t`` of its samples, ``[n]`` each."""
        self._pending.append((t, metrics))
        if len(self._pending) > 2:
            jax.block_until_ready(self._pending[-3][1])
        self._progress.advance(self._task)

    def flush(self, step: int, whole: bool = True) -> None:
        """Write down the means since the last flush. ``whole`` tells that this ends a regular interval.

        Raises:
          Diverged: if a loss is not finite, or the mean of a whole interval is too far above that of the first.
        """
        if not self._pending:
            return
        times = np.concatenate([t for t, _ in self._pending])
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        count, seconds = len(self._pending), time.perf_counter() - self._clock
        self._pending, self._clock = [], time.perf_counter()
        collected = {name: np.concatenate([np.atleast_1d(m[name]) for m in fetched]) for name in fetched[0]}
        row = {name: float(np.mean(values)) for name, values in collected.items()}
        row["lr"] = float(collected["lr"][-1])
        row["images_per_second"] = count * self._batch_size / seconds
        loss = row["loss"]
        if not np.all(np.isfinite(collected["loss"])) or not np.isfinite(row["grad_norm"]):
            raise Diverged(f"the loss or its gradient is not finite between steps {step - count} and {step}")
        self._first_loss = loss if self._first_loss is None else self._first_loss
        if whole and loss > self._divergence * self._first_loss:
            raise Diverged(
                f"the loss is {loss:.4g} at step {step}, more than {self._divergence:g} times what it began with, "
                f"{self._first_loss:.4g}"
            )
        means, counts = by_time(times, collected["loss"])
        self._write(step, row, {"loss_by_time": means, "count_by_time": counts})
        left = (self._steps - step) * seconds / count
        text = f"loss {loss:.4f}, {row['images_per_second']:.0f} images/s"
        self._progress.update(self._task, text=text)
        if not self._console.is_terminal:
            self._console.print(f"step {step} of {self._steps}: {text}, {duration(left)} left")
        speed = row["images_per_second"]
        self._known |= {"step": step, "loss": loss, "images_per_second": speed, "seconds_left": left}
        self._told()

    def held_out(self, step: int, t: np.ndarray, metrics: dict[str, np.ndarray]) -> float:
        """Write down the means over held-out images at times ``t``, ``[n]`` each, and return their loss."""
        row = {f"held_out_{name}": float(np.mean(values)) for name, values in metrics.items()}
        means, counts = by_time(t, metrics["loss"])
        self._write(step, row, {"held_out_by_time": means, "held_out_count": counts})
        self._told()
        self._console.print(f"step {step}: held-out loss {row['held_out_loss']:.4f}")
        return row["held_out_loss"]

    def picture(self, step: int, picture: np.ndarray) -> None:
        """Log a picture ``[H, W, C]`` in [0, 1] to TensorBoard."""
        if self._board is not None:
            self._board.write(step, [summary.image("samples", picture, dataformats="HWC")])
        self._told()

    def _told(self) -> None:
        """Tell the listeners that show the run. The time this takes does not count as training."""
        if self._tell is not None:
            self._tell(dict(self._known))
        self._clock = time.perf_counter()

    def _write(self, step: int, scalars: dict[str, float], other: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **scalars, **other}) + "\n")
        if self._board is not None:
            self._board.write(step, [summary.scalar(name, value) for name, value in scalars.items()])


class _Board:
    """TensorBoard's event file. What was logged before for steps after ``start`` is hidden.

    Written at once: the thread of tensorboardX's ``SummaryWriter`` dies of a full disk, and then its queue blocks.
    """

    def __init__(self, directory: Path, start: int):
        directory.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"))
        begun = _proto.SessionLog(status=_proto.SessionLog.START)
        self._writer.write_event(_proto.Event(step=start + 1, session_log=begun))

    def write(self, step: int, summaries: list[Any]) -> None:
        for content in summaries:
            self._writer.write_event(_proto.Event(wall_time=time.time(), step=step, summary=content))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
