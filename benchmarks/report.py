"""The report: JSON of rows, each a case and its measures, a number or median and quartiles; and tables of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

#: Written into every report; another number means other fields.
FORMAT = 1


def read(path: str) -> dict[str, Any]:
    """A report of the suite; ``ValueError`` for any other file."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no report of the suite: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("groups"), dict) or "environment" not in content:
        raise ValueError(f"{path} is no report of the suite; python -m benchmarks --output {path} writes one")
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} has format {content.get('format')!r}, this suite reads {FORMAT}; measure again")
    return content


def measures(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of what was measured in a row."""
    return ((name, value) for name, value in row.items() if name != "case")


def text(value: Any) -> str:
    """A measure for people: ``median [first quartile, third quartile]``, or the number."""
    if isinstance(value, dict):
        return f"{value['median']:.4g} [{value['q1']:.4g}, {value['q3']:.4g}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cases(group: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Measures by case; none for a group that was skipped."""
    return {
        ", ".join(f"{key}={value}" for key, value in row["case"].items()): dict(measures(row))
        for row in group.get("rows", [])
    }


def table(title: str, columns: Iterable[str], rows: dict[str, list[tuple[str, ...]]]) -> Table:
    """Lines of text for each case, which is named once."""
    shown = Table(title=title, title_justify="left")
    for column in ("case", "measure", *columns):
        shown.add_column(column, overflow="fold")
    for case, lines in rows.items():
        for i, (name, *values) in enumerate(lines):
            shown.add_row("" if i else case, name.replace("_", " "), *values, end_section=i == len(lines) - 1)
    return shown
