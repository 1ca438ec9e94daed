"""Pictures: grids of images, trajectories in phase space, error against NFE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

# Colour-blind safe (Okabe & Ito), then repeated with other markers and line styles.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", ":", "-.")


def image_grid(images: np.ndarray, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Tile images ``[n, H, W, C]`` into one ``[rows (H + 1), columns (W + 1), C]`` array in [0, 1]."""
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
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 5.3), squeeze=False)
    for axis, (name, picture) in zip(axes[0], panels, strict=True):
        axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name)
        axis.axis("off")
    figure.suptitle(title)
    _save(figure, path)


def save_trajectories(path: Path, paths: dict[str, Any], grid_times: dict[str, np.ndarray], data: Any) -> None:
    """Save trajectories of one pixel in the plane of position and momentum, a panel for each sampler.

    ``paths[name]`` is a :class:`PhaseState` of arrays ``[steps + 1, n]``; colour is the forward time.
    """
    columns = len(paths)
    figure, axes = plt.subplots(1, columns, figsize=(4 * columns, 4.2), squeeze=False, sharex=True, sharey=True)
    for axis, (name, path_) in zip(axes[0], paths.items(), strict=True):
        x, m = np.asarray(path_[0]), np.asarray(path_[1])
        times = grid_times[name]
        axis.plot(x, m, color="0.8", lw=0.7, zorder=1)
        colours = np.broadcast_to(times[:, None], x.shape)
        points = axis.scatter(x, m, c=colours, s=7, cmap="viridis", zorder=2, vmin=0, vmax=1)
        axis.plot(data, np.zeros_like(data), "|", color="#D55E00", ms=8, zorder=0)
        axis.set_title(name)
        axis.set_xlabel("position x")
    axes[0][0].set_ylabel("momentum m")
    figure.colorbar(points, ax=list(axes[0]), label="forward time t", fraction=0.02)
    _save(figure, path, tight=False)


def save_curves(path: Path, rows: list[dict[str, Any]], panels: dict[str, str]) -> None:
    """Save log-log curves against NFE, one panel for each column of ``rows`` in ``panels`` (column -> label)."""
    figure, axes = plt.subplots(1, len(panels), figsize=(7 * len(panels), 6.5), squeeze=False)
    names = sorted({(row["sampler"], row["grid"]) for row in rows})
    grids = sorted({grid for _, grid in names})
    for axis, (column, label) in zip(axes[0], panels.items(), strict=True):
        for i, (sampler, grid) in enumerate(names):
            points = sorted(
                (row["nfe"], row[column])
                for row in rows
                if row["sampler"] == sampler
                and row["grid"] == grid
                and row.get(column) is not None
                and np.isfinite(row[column])
            )
            if points:
                axis.loglog(
                    *zip(*points, strict=True),
                    color=_COLOURS[i % len(_COLOURS)],
                    marker=_MARKERS[i // len(_COLOURS) % len(_MARKERS)],
                    ls=_LINES[i // len(_COLOURS) % len(_LINES)],
                    ms=4,
                    lw=1.2,
                    label=sampler if len(grids) == 1 else f"{sampler}, {grid}",
                )
        axis.set_xlabel("network evaluations (NFE)")
        axis.set_ylabel(label)
        axis.grid(True, which="both", alpha=0.25)
        axis.legend(fontsize=7, ncol=2)
    _save(figure, path)


def _save(figure: Any, path: Path, tight: bool = True) -> None:
    if tight:
        figure.tight_layout()
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110, format="png", bbox_inches=None if tight else "tight")
    plt.close(figure)
    temporary.replace(path)
