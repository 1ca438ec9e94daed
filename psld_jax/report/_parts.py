"""The pieces of a page as HTML: facts, tables, plots and pictures. All text is escaped here."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def escape(value: Any) -> str:
    """Escape text for HTML."""
    return html.escape(str(value))


def text(value: Any) -> str:
    """Write a value for readers: four digits of a number, ``-`` for what is missing."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"


def facts(values: Mapping[str, Any]) -> str:
    """Make a list of names and values."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text(value))}</dd>" for name, value in values.items())
    return f'<dl class="facts">{rows}</dl>'


def folded(title: str, content: str) -> str:
    """Fold ``content``, which is HTML. It opens when its title is clicked."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def table(caption: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Make a table that a click on a column's head sorts. What a row lacks is shown as missing, and comes last."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in columns)

    def cell(value: Any) -> str:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            known = value if math.isfinite(value) else ""
            return f'<td class="number" data-value="{known}">{escape(text(value))}</td>'
        return f'<td data-value="{escape("" if value is None else value)}">{escape(text(value))}</td>'

    body = "".join(f"<tr>{''.join(cell(row.get(name)) for name in columns)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="sortable"><caption class="quiet">{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


@dataclasses.dataclass(frozen=True)
class Curve:
    """One curve of a plot.

    Attributes:
      name: what it is called.
      points: ``(x, y)``, ``(x, y, spread)`` or ``(x, y, spread, note)`` each; those that are not finite are left out.
      colour: number of a colour, or -1 for grey, which is context.
      marker: number of a marker.
      group: what it is one of, or nothing.
    """

    name: str
    points: Sequence[tuple[Any, ...]]
    colour: int = -1
    marker: int = 0
    group: str = ""


def plot(
    title: str,
    curves: Sequence[Curve],
    x: tuple[str, str],
    y: tuple[str, str],
    *,
    log_x: bool = True,
    log_y: bool = True,
    ticks: Sequence[float] | None = None,
    limits: tuple[float, float] | None = None,
    lines: Mapping[str, float] | None = None,
    note: str = "",
) -> str:
    """Make a plot that answers to mouse and keyboard. The page's script draws it.

    Args:
      title: what it shows.
      curves: the curves.
      x, y: the label of an axis, and a word or two for it.
      log_x, log_y: whether axes are logarithmic at first; a button changes that where all values are positive.
      ticks: of the horizontal axis.
      limits: the part of the vertical axis that is shown first.
      lines: horizontal lines, label to value.
      note: what to see, below the title.
    """
    spec = {
        "title": title,
        "x": {"label": x[0], "short": x[1], "log": log_x, "ticks": ticks},
        "y": {"label": y[0], "short": y[1], "log": log_y, "range": limits},
        "lines": [{"label": label, "y": value} for label, value in (lines or {}).items()],
        "series": [
            {"name": c.name, "colour": c.colour, "marker": c.marker, "group": c.group, "points": points}
            for c in curves
            if (points := [list(p) for p in sorted(c.points, key=lambda p: p[0]) if _finite(p)])
        ],
    }
    if not spec["series"]:
        return f'<p class="quiet">{escape(title)}: no value is finite.</p>'
    # A script ends at the first "</" whatever it holds.
    data = json.dumps(spec).replace("<", "\\u003c")
    caption = f"<strong>{escape(title)}.</strong> {escape(note)}"
    return (
        f'<figure class="plot"><figcaption>{caption}</figcaption>'
        f'<script type="application/json">{data}</script>'
        "<noscript><p>The plot needs JavaScript; the tables hold its numbers.</p></noscript></figure>"
    )


def _finite(point: Iterable[Any]) -> bool:
    x, y = list(point)[:2]
    return x is not None and y is not None and math.isfinite(x) and math.isfinite(y)


class Pictures:
    """Pictures from the disk as parts of the page, until there is no room left on it.

    Args:
      room: bytes of PNG that one page may hold.
    """

    def __init__(self, room: int = 3_200_000):
        self._room = room

    def gallery(self, files: Iterable[tuple[Path, str]], small: bool = False) -> str:
        """Show files with their descriptions side by side. Those that find no room are named."""
        shown, left = [], []
        for path, description in files:
            content = path.read_bytes()
            if len(content) > self._room:
                left.append(path.name)
                continue
            self._room -= len(content)
            data = base64.b64encode(content).decode()
            shown.append(
                f'<figure><button type="button"><img alt="{escape(description)}" '
                f'src="data:image/png;base64,{data}"></button><figcaption>{escape(description)}</figcaption></figure>'
            )
        told = f'<p class="quiet">Too large for this page, beside it on the disk: {escape(", ".join(left))}.</p>'
        images = f'<div class="gallery{" small" if small else ""}">{"".join(shown)}</div>' if shown else ""
        return images + (told if left else "")
