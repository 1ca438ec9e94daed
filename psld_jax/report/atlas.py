"""``atlas.html``: the same seeds by several samplers, with sliders over the budget and over the trajectory."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from psld_jax._runtime.journal import replace
from psld_jax.report._parts import Pictures, escape, facts, table
from psld_jax.report.page import Section, page

#: The name of the page in a work directory.
ATLAS = "atlas.html"

#: Bytes of pictures, as the page holds them, that leave it below 5 MB.
_ROOM = 4_400_000
#: PNG needs at most so many bytes for a value of noise in 256 levels, and base64 makes four bytes of three.
_WORST = 1.01 * 4 / 3
#: Levels of grey of what is on its way, of which PNG makes less; the last picture has all 256.
_LEVELS = 64
#: A difference to the fine solution is shown so many times larger.
_GAIN = 4

#: What can be looked at: key -> what the page calls it.
VIEWS = {"position": "position", "momentum": "momentum", "predicted": "predicted x₀"}

_LEAD = (
    "Every column is one seed: all samplers begin with the same noise. The first slider changes the number of network "
    "evaluations, the second goes along the trajectory. Both answer to the arrow keys."
)


@dataclasses.dataclass(frozen=True)
class Way:
    """The trajectories of one sampler with one budget.

    Attributes:
      sampler: what it is called.
      budget, nfe: evaluations that were allowed, and those that it takes.
      note: its settings, one line.
      stochastic: whether it draws noise of its own.
      steps, times: number of the step and forward time of every frame, ``[F]``; the last frame is the sample.
      error: root mean square of the difference to the fine solution, or ``None`` if it is not finite.
      pictures: by key of :data:`VIEWS`, uint8 ``[F, n, H, W, C]``, C of 1 or 3.
    """

    sampler: str
    budget: int
    nfe: int
    note: str
    stochastic: bool
    steps: np.ndarray
    times: np.ndarray
    error: float | None
    pictures: Mapping[str, np.ndarray]


def to_levels(images: np.ndarray, limit: float = 1.0) -> np.ndarray:
    """Turn values in ``[-limit, limit]``, ``[..., H, W, C]``, into uint8 with one or three channels; NaN is grey."""
    channels = 3 if images.shape[-1] >= 3 else 1
    kept = np.nan_to_num(images[..., :channels] / limit, nan=0.0)
    return np.round(127.5 * np.clip(kept, -1, 1) + 127.5).astype(np.uint8)


def check_room(ways: int, views: int, n: int, image_shape: Sequence[int]) -> None:
    """Raise a ``ValueError`` if even the first and the last frame of so many trajectories need more than the page."""
    height, width, channels = image_shape
    values = ways * views * 2 * n * height * width * (3 if channels >= 3 else 1)
    if values * _WORST > _ROOM:
        raise ValueError(
            f"an atlas of {ways} samplers and budgets with {n} samples of {height} x {width} pixels is too large for a "
            "page of 5 MB: take fewer config.atlas.samplers, config.atlas.nfe or config.atlas.num_samples"
        )


def write_atlas(workdir: Path, ways: Sequence[Way], fine: np.ndarray) -> int:
    """Write the page, and return how many frames of a trajectory it has room for.

    Args:
      workdir: where.
      ways: all trajectories, of the same ``n`` samples.
      fine: samples of a fine solution from the same noise, uint8 ``[n, H, W, C]``.
    """
    frames = max(len(way.steps) for way in ways)
    shown = [_encoded(way, frames) for way in ways]
    while (size := _size(shown)) > _ROOM and frames > 2:
        frames = max(2, min(frames - 1, int(frames * _ROOM / size)))
        shown = [_encoded(way, frames) for way in ways]
    n, height, width, _ = fine.shape
    content = {
        "samples": n,
        "height": height,
        "width": width,
        "frames": frames,
        "gain": _GAIN,
        "budgets": sorted({way.budget for way in ways}),
        "samplers": list(dict.fromkeys(way.sampler for way in ways)),
        "fine": _png(fine[None]),
        "ways": shown,
    }
    data = json.dumps(content).replace("<", "\\u003c")  # a script ends at the first "</" whatever it holds
    views = [(key, name) for key, name in VIEWS.items() if key in ways[0].pictures]
    body = (
        _controls(len(content["budgets"]), frames, views)
        + '<div class="ways"></div>'
        + "<noscript><p>The pictures need JavaScript; the table holds the numbers.</p></noscript>"
        + f'<script type="application/json" id="atlas-data">{data}</script>'
    )
    rows = [
        {
            "sampler": way.sampler,
            "budget": way.budget,
            "NFE": way.nfe,
            "steps": int(way.steps[-1]),
            "error to the fine solution": way.error,
            "draws noise": "yes" if way.stochastic else "no",
            "settings": way.note,
        }
        for way in ways
    ]
    numbers = table("Every sampler and budget; a click on a head sorts", rows) + _NOTE
    sections = [Section("samples", "The same seeds", body), Section("numbers", "Numbers", numbers)]
    title = f"psld_jax: atlas of samplers in {workdir.absolute().name}"
    replace(workdir / ATLAS, page(title, _LEAD, sections, ("atlas.js",)))
    return frames


_NOTE = (
    '<p class="quiet">The error is the root mean square over samples and pixels, in [-1, 1]. The fine solution is that '
    "of the probability-flow ODE from the same noise. A sampler that draws noise of its own does not follow it, so its "
    "error does not tend to 0.</p>"
)


def section(report: Mapping[str, Any], workdir: Path, pictures: Pictures) -> str:
    """Make the part of ``report.html`` that leads to the atlas, with its numbers."""
    about = {"samples of each": report.get("num_samples"), "frames of a trajectory": report.get("frames")}
    rows = [{name.replace("_", " "): value for name, value in row.items()} for row in report["rows"]]
    return link(workdir) + facts(about) + table("Every sampler and budget; a click on a head sorts", rows)


def link(workdir: Path) -> str:
    """Make a line that leads to the atlas of a work directory, or nothing if it has none."""
    if not (workdir / ATLAS).is_file():
        return ""
    return f'<p><a href="{escape(ATLAS)}">Atlas: the same seeds by several samplers, step by step</a></p>'


def _controls(budgets: int, frames: int, views: Sequence[tuple[str, str]]) -> str:
    choices = [*views, ("difference", f"predicted x₀ minus the fine solution, {_GAIN} times")]
    radios = "".join(
        f'<label><input type="radio" name="view" value="{key}"{" checked" if key == "position" else ""}> '
        f"{escape(name)}</label>"
        for key, name in choices
    )
    return (
        '<div class="atlas-controls">'
        f'<label for="budget">Evaluations (NFE)</label><input type="range" id="budget" min="0" max="{budgets - 1}" '
        f'value="{budgets - 1}" step="1"><output for="budget" id="budget-told"></output>'
        f'<label for="frame">Trajectory</label><input type="range" id="frame" min="0" max="{frames - 1}" '
        f'value="{frames - 1}" step="1"><output for="frame" id="frame-told"></output>'
        f"<fieldset><legend>Show</legend>{radios}</fieldset></div>"
    )


def _encoded(way: Way, frames: int) -> dict[str, Any]:
    """Encode a :class:`Way` with at most so many frames, evenly chosen, the first and the last among them."""
    count = len(way.steps)
    kept = np.unique(np.round(np.linspace(0, count - 1, min(frames, count))).astype(int))
    return {
        "sampler": way.sampler,
        "budget": way.budget,
        "nfe": way.nfe,
        "note": way.note,
        "stochastic": way.stochastic,
        "steps": way.steps[kept].tolist(),
        "times": way.times[kept].tolist(),
        "error": way.error,
        "images": {key: _png(_coarse(values[kept])) for key, values in way.pictures.items()},
    }


def _coarse(frames: np.ndarray) -> np.ndarray:
    """Reduce all frames but the last one to few levels."""
    width = 256 // _LEVELS
    return np.concatenate([frames[:-1] // width * width + width // 2, frames[-1:]])


def _png(frames: np.ndarray) -> str:
    """Write frames ``[F, n, H, W, C]`` as base64 of one PNG: a row for each, samples side by side."""
    f, n, height, width, channels = frames.shape
    sheet = frames.transpose(0, 2, 1, 3, 4).reshape(f * height, n * width, channels)
    file = io.BytesIO()
    Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _size(shown: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(data) for way in shown for data in way["images"].values())
