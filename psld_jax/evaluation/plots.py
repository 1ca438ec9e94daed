"""Pictures: grids of images, trajectories in phase space, error against NFE."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from psld_jax._runtime.errors import shown
from psld_jax._runtime.journal import in_one_go
from psld_jax.evaluation import families

os.environ.setdefault("MPLBACKEND", "Agg")  # files need no screen; a notebook has chosen its own backend, and keeps it

#: Colours that the colour-blind tell apart (Okabe & Ito, the light ones darker): one for each family of samplers.
COLOURS = ("#0072B2", "#C04E00", "#007A58", "#A8478A", "#8A6A00", "#56B4E9", "#6A3D9A", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def _pyplot() -> Any:
    """Import matplotlib when something is drawn: it takes a fifth of the time in which the command line starts."""
    import matplotlib.pyplot

    return matplotlib.pyplot


def _label_levels(axis: Any) -> None:
    """Put labels on a vertical log axis at 1, 2 and 5 of every decade; if fewer than three are in sight, closer."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = axis.get_ylim()
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    levels = np.multiply.outer(decades, (1, 2, 5))
    few = np.sum((levels >= low) & (levels <= high)) < 3
    axis.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)) if few else LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")


def image_grid(images: np.ndarray, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Tile images ``[n, H, W, C]`` into one ``[rows (H + 1), columns (W + 1), C]`` array in [0, 1].

    Raises:
      ValueError: for what is no array of one or more images.
    """
    try:
        images = np.asarray(images)
    except ValueError:  # of images of several sizes
        raise ValueError(f"images={shown(images)} must be one array [n, H, W, C]") from None
    if images.ndim != 4 or not images.size:
        raise ValueError(f"images have shape {images.shape}, expected [n, H, W, C]")
    n, h, w, c = images.shape
    columns = int(np.ceil(np.sqrt(n)))
    rows = int(np.ceil(n / columns))
    canvas = np.ones((rows * (h + 1), columns * (w + 1), c))
    for i, image in enumerate(np.clip((images - low) / (high - low), 0, 1)):
        top, left = (i // columns) * (h + 1), (i % columns) * (w + 1)
        canvas[top : top + h, left : left + w] = image
    return canvas


def save_samples(path: Path, state: Any, title: str, momentum_scale: float | None = None) -> None:
    """Save a picture of the samples and, for K = 2, of their momentum (grey is zero, scaled to +-3 deviations)."""
    count = min(len(state[0]), 144)
    panels = [("samples", image_grid(np.asarray(state[0][:count])))]
    if len(state) > 1:
        limit = 3 * (momentum_scale or float(np.std(state[1])) or 1.0)
        panels.append(("momentum", image_grid(np.asarray(state[1][:count]), -limit, limit)))
    figure, axes = _pyplot().subplots(1, len(panels), figsize=(5 * len(panels), 5.3), squeeze=False)
    for axis, (name, picture) in zip(axes[0], panels, strict=True):
        axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name)
        axis.axis("off")
    figure.suptitle(title)
    _save(figure, path)


def save_restored(path: Path, columns: dict[str, Any], count: int = 48) -> None:
    """Save images side by side, a panel for each of ``columns`` (title -> images), each image at the same place."""
    figure, axes = _pyplot().subplots(1, len(columns), figsize=(4.5 * len(columns), 4.8), squeeze=False)
    for axis, (title, images) in zip(axes[0], columns.items(), strict=True):
        axis.imshow(
            image_grid(np.asarray(images[:count])).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
        )
        axis.set_title(title)
        axis.axis("off")
    figure.tight_layout()
    _save(figure, path)


def save_rows(path: Path, rows: list[np.ndarray]) -> None:
    """Save images ``[n, H, W, C]`` in rows, one below the other."""
    picture = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    height, width = picture.shape[:2]
    figure, axis = _pyplot().subplots(figsize=(10, 10 * height / width))
    axis.imshow(np.clip(picture / 2 + 0.5, 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.axis("off")
    _save(figure, path)


def save_trajectories(path: Path, paths: dict[str, Any], grid_times: dict[str, np.ndarray], data: Any) -> None:
    """Save trajectories of one pixel in the plane of position and momentum, a panel for each sampler.

    ``paths[name]`` is a :class:`PhaseState` of arrays ``[steps + 1, n]`` at the times ``grid_times[name]``. The first
    three trajectories are drawn, each in a colour of its own that is the same in every panel, with a dot for each step.
    A band shows the values that ``data`` has. The title says how far the paths of the panel go.
    """
    columns = len(paths)
    figure, axes = _pyplot().subplots(1, columns, figsize=(4 * columns, 4.4), squeeze=False, sharex=True, sharey=True)
    for axis, (name, path_) in zip(axes[0], paths.items(), strict=True):
        x, m = (np.asarray(part)[:, :3] for part in path_)
        axis.axvspan(np.min(data), np.max(data), color="0.92", zorder=0)
        for line, colour in zip(range(x.shape[1]), COLOURS, strict=False):
            axis.plot(x[:, line], m[:, line], ".-", color=colour, lw=1.2, ms=5, alpha=0.8)
            axis.plot(x[0, line], m[0, line], "o", mfc="white", mec=colour, mew=1.6, ms=8, zorder=3)
            axis.plot(x[-1, line], m[-1, line], "o", mfc=colour, mec="white", ms=9, zorder=4)
        axis.set_title(f"{name}\n|x| up to {np.abs(x).max():.1f}, |m| up to {np.abs(m).max():.1f}", fontsize=10)
        axis.set_xlabel("position x of a pixel")
        axis.spines[["top", "right"]].set_visible(False)
    first, times = axes[0][0], next(iter(grid_times.values()))
    first.set_ylabel("its momentum m")
    low, high = first.get_ylim()
    first.set_ylim(low, high + 0.12 * (high - low))  # room for the name of the band
    first.text(np.mean([np.min(data), np.max(data)]), high, "values in the data", color="0.4", ha="center", fontsize=9)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    ends = f"open: noise, t = {times[0]:g}; small: one step; filled: the sample, t = {times[-1]:g}"
    figure.text(0.5, 0.01, ends, ha="center", fontsize=9, color="0.3")
    _save(figure, path)


def save_curves(
    path: Path,
    rows: list[dict[str, Any]],
    panels: dict[str, str],
    floors: dict[str, float],
    floor_label: str = "exact samples",
) -> None:
    """Save log-log curves against NFE, one panel for each column of ``rows`` in ``panels`` (column -> label).

    Of many samplers the best of each family is in colour, with its name at its end, and others are grey. ``floors``
    draws a line at what ``floor_label`` would reach (column -> value). The vertical axis is ``families.limits``.
    """
    figure, axes = _pyplot().subplots(1, len(panels), figsize=(7.4 * len(panels), 5.2), squeeze=False)
    for axis, (column, label) in zip(axes[0], panels.items(), strict=True):
        curves, names = families.lines(rows, column), []
        for line in curves:
            colour = COLOURS[line.colour] if line.best else "0.78"
            style = {"lw": 2.2, "ms": 6, "marker": _MARKERS[line.colour], "zorder": 3} if line.best else {"lw": 0.8}
            x, y = [row["nfe"] for row in line.rows], [row[column] for row in line.rows]
            axis.loglog(x, y, color=colour, **style)
            if line.best and any(row.get("spread") for row in line.rows):
                axis.errorbar(x, y, [row.get("spread") or 0 for row in line.rows], fmt="none", ecolor=colour, lw=1)
            if line.best:
                names.append((y[-1], line.name, colour))
        if column in floors:
            axis.axhline(floors[column], color="0.45", lw=1, ls="--")
            names.append((floors[column], floor_label, "0.45"))
        if curves:
            low, high = families.limits(curves, column, floors.get(column))
            axis.set_ylim(low, high)
            if high / low < 100:  # powers of ten alone would be one or two
                _label_levels(axis)
            label_ends(axis, names)
        ticks = families.ticks(rows)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("network evaluations (NFE)")
        axis.set_title(label, loc="left", fontsize=11)
        axis.grid(True, alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    _save(figure, path)


def label_ends(axis: Any, names: list[tuple[float, str, str]], gap: float = 0.042, size: float = 9) -> None:
    """Write a name right of the axes for each of ``names`` (value at the right end of a line, name, colour).

    A name stands at its value, or as near as its neighbours allow. Names are ``gap`` of the height of the axes apart,
    and letters have ``size`` points. Call it after the limits of the axis are set.
    """
    scale = np.log if axis.get_yscale() == "log" else np.asarray
    low, high = scale(axis.get_ylim())
    wanted = sorted((float(np.clip((scale(value) - low) / (high - low), 0, 1)), name, c) for value, name, c in names)
    places: list[float] = []
    for height, *_ in wanted:
        places.append(max(height, places[-1] + gap) if places else height)
    over = max(places[-1] - 1, 0)
    for place, (height, name, colour) in zip(places, wanted, strict=True):
        axis.annotate(
            name,
            xy=(1.0, height),
            xytext=(1.03, place - over),
            xycoords="axes fraction",
            color=colour,
            fontsize=size,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 2, "shrinkB": 0, "relpos": (0, 0.5)},
        )


def save_tuning(directory: Path, rows: list[dict[str, Any]]) -> None:
    """Save what a tuning found: ``tuning.png``, and ``tuned_numbers.png`` if there are any.

    The first holds distance and error of every sampler at its best against NFE, the second the lambda, lambda_s and eta
    that were best.
    """
    curves = [{**row, "sampler": row["setting"]["sampler"], "grid": "tuned"} for row in rows]
    labels = {"distance": "Frechet distance to the target", "rmse": "RMSE to the fine solution"}
    save_curves(directory / "tuning.png", curves, labels, {"distance": rows[0]["floor"]}, "fine solution")
    names = [name for name in ("lam", "lam_s", "eta") if any(name in row["setting"]["hyper"] for row in rows)]
    if not names:
        return
    figure, axes = _pyplot().subplots(1, len(names), figsize=(6.5 * len(names), 4.5), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        having, ends = [row for row in curves if name in row["setting"]["hyper"]], []
        for number, sampler in enumerate(sorted({row["sampler"] for row in having})):
            of_it = sorted((row["nfe"], row["setting"]["hyper"][name]) for row in having if row["sampler"] == sampler)
            colour = COLOURS[number % len(COLOURS)]
            axis.semilogx(
                *zip(*of_it, strict=True), marker=_MARKERS[number % len(_MARKERS)], ms=5, lw=1.5, color=colour
            )
            ends.append((of_it[-1][1], sampler, colour))
        label_ends(axis, ends)
        ticks = sorted({row["nfe"] for row in having})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("network evaluations (NFE)")
        axis.set_title(f"best {name}", loc="left", fontsize=11)
        axis.grid(True, alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    _save(figure, directory / "tuned_numbers.png")


def save_losses(path: Path, trained: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> None:
    """Save the loss against the step and against time, in training (the last quarter of it) and on held-out images.

    The rows are those of ``metrics.jsonl`` with ``loss`` and with ``held_out_loss``.
    """
    figure, (left, right) = _pyplot().subplots(1, 2, figsize=(13, 4.5))
    trained_colour, held_colour = COLOURS[:2]
    left.plot([r["step"] for r in trained], [r["loss"] for r in trained], color=trained_colour, lw=1)
    names = {left: [(trained[-1]["loss"], "training", trained_colour)], right: []}
    recent = [row for row in trained if row["step"] > 0.75 * trained[-1]["step"]]
    counts = np.array([row["count_by_time"] for row in recent], float)
    means = np.array([row["loss_by_time"] for row in recent], float)  # None, where the count is 0, becomes NaN
    total = counts.sum(axis=0)
    by_time = np.nansum(means * counts, axis=0) / np.where(total > 0, total, np.nan)
    times = (np.arange(len(total)) + 0.5) / len(total)
    right.plot(times, by_time, "o-", color=trained_colour, ms=4)
    names[right].append((_last_finite(by_time), "training,\nlast quarter", trained_colour))
    if held_out:
        steps, values = ([row[name] for row in held_out] for name in ("step", "held_out_loss"))
        left.plot(steps, values, "s-", color=held_colour, ms=4, lw=1)
        last = np.array(held_out[-1]["held_out_by_time"], float)
        right.plot(times, last, "s-", color=held_colour, ms=4)
        names[left].append((values[-1], "held out (EMA)", held_colour))
        names[right].append((_last_finite(last), f"held out (EMA),\nstep {steps[-1]:,}", held_colour))
    left.set_xlabel("step")
    left.xaxis.get_major_locator().set_params(integer=True)
    right.set_xlabel("forward time t (0: data, 1: noise)")
    left.set_title("loss while it trains", loc="left", fontsize=11)
    right.set_title("loss at each time", loc="left", fontsize=11)
    for axis in (left, right):
        axis.set_yscale("log")
        _label_levels(axis)
        axis.yaxis.set_minor_formatter("")
        axis.grid(True, which="both", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        label_ends(axis, names[axis], gap=0.1)
    figure.tight_layout()
    _save(figure, path)


def _last_finite(values: np.ndarray) -> float:
    """Return the last of ``values`` that is a number: the end of a line with gaps."""
    return float(values[np.isfinite(values)][-1])


def _save(figure: Any, path: Path) -> None:
    try:
        with in_one_go(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png", bbox_inches="tight")
    finally:
        _pyplot().close(figure)
