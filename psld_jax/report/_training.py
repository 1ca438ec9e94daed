"""The part of a page for a training run: plots of its losses and rates, and the latest samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psld_jax._runtime.progress import duration
from psld_jax.report._parts import Curve, Pictures, facts, plot, table
from psld_jax.training.watch import TIME_BINS, read_rows

_STEP = ("step", "step")

#: Pictures of samples that are shown, the latest.
_SAMPLES = 4

#: Rows of the table, the latest; ``metrics.jsonl`` has all.
_ROWS = 1000

#: Columns that are plotted beside the loss, with their titles.
_CURVES = {
    "grad_norm": "Norm of the gradient",
    "lr": "Learning rate",
    "images_per_second": "Speed, images a second",
}


def training(report: Mapping[str, Any], workdir: Path, pictures: Pictures) -> str:
    """Plot losses, gradient, learning rate and speed from ``metrics.jsonl``, and show samples."""
    rows = read_rows(workdir)
    trained, held_out = ([row for row in rows if name in row] for name in ("loss", "held_out_loss"))
    left = report.get("seconds_left")
    about = {
        "running": report.get("running"),
        "step": None if "step" not in report else f"{report['step']:,.0f} of {report['steps']:,.0f}",
        "time left": None if left is None else duration(left),
        "steps": None if "step" in report else report.get("steps"),
        "hours": report.get("hours"),
        "loss": report.get("loss"),
        "loss on held-out images": report.get("held_out_loss"),
        "images a second": report.get("images_per_second"),
        "stopped by": report.get("stopped"),
    }
    loss = [Curve("training", _points(trained, "loss"), 0, 0)] if trained else []
    loss += [Curve("held out (EMA)", _points(held_out, "held_out_loss"), 1, 1)] if held_out else []
    files = sorted((workdir / "samples").glob("*.png"))[-_SAMPLES:]
    parts = [facts({name: value for name, value in about.items() if value is not None})]
    if loss:
        parts.append(plot("Loss", loss, _STEP, ("loss", "loss"), log_x=False))
        parts.append(_by_time(trained, held_out))
    for name, title in _CURVES.items():
        if trained and name in trained[0]:
            curve = [Curve(title.lower(), _points(trained, name), 0, 0)]
            parts.append(plot(title, curve, _STEP, (title.lower(), name.replace("_", " ")), log_x=False, log_y=False))
    parts.append(pictures.gallery((file, f"Samples at step {int(file.stem):,}") for file in reversed(files)))
    columns = ("step", "loss", "grad_norm", "lr", "images_per_second")
    latest = trained[-_ROWS:]
    caption = "Means of every interval" if len(latest) == len(trained) else f"Means of the latest {_ROWS:,} intervals"
    parts.append(table(caption, [{c.replace("_", " "): row.get(c) for c in columns} for row in latest]))
    return "".join(parts)


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Choose at most some 500 points evenly, the last among them."""
    stride = max(1, -(-len(rows) // 500))
    return [(row["step"], row[name]) for row in rows[::-1][::stride][::-1] if row.get(name) is not None]


def _by_time(trained: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]]) -> str:
    """Plot the loss over forward time: of the latest interval in training, and the latest on held-out images."""
    times = [(i + 0.5) / TIME_BINS for i in range(TIME_BINS)]
    drawn = []
    for number, (rows, name, label) in enumerate(
        ((trained, "loss_by_time", "training"), (held_out, "held_out_by_time", "held out (EMA)"))
    ):
        if rows and name in rows[-1]:
            drawn.append(Curve(label, list(zip(times, rows[-1][name], strict=True)), number, number))
    time = ("forward time (0: data, 1: noise)", "time")
    return plot("Loss by time, latest interval", drawn, time, ("loss", "loss"), log_x=False) if drawn else ""
