"""Two reports of the suite side by side: ``python -m benchmarks.compare A.json B.json``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from benchmarks import measure, report


def compare(a: dict[str, Any], b: dict[str, Any], console: Console) -> None:
    """Print what differs in machine and versions, a table for each group in both reports, and what only one has."""
    for line in differences(a["environment"], b["environment"]):
        console.print(line, markup=False)
    for group in (name for name in a["groups"] if name in b["groups"]):
        first, second = (report.cases(content["groups"][group]) for content in (a, b))
        rows = {case: _lines(first[case], second[case]) for case in first if case in second}
        if rows:
            console.print(report.table(group, ("A", "B", "B / A", "overlap"), rows))
        for name, only in (("A", first.keys() - second.keys()), ("B", second.keys() - first.keys())):
            for case in sorted(only):
                console.print(f"{group}: {case} is in {name} only", markup=False)
    for group in a["groups"].keys() ^ b["groups"].keys():
        console.print(f"{group} is in {'A' if group in a['groups'] else 'B'} only", markup=False)


def differences(a: dict[str, Any], b: dict[str, Any]) -> Iterator[str]:
    """One line for each fact about the machine that is not the same; date and load always differ."""
    for name in dict.fromkeys([*a, *b]):
        if name not in ("date", "load") and a.get(name) != b.get(name):
            yield f"{name}: A {a.get(name)}, B {b.get(name)}"


def overlap(a: Any, b: Any) -> str:
    """Whether the ranges between the quartiles overlap; nothing for plain numbers."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return ""
    return "yes" if a["q1"] <= b["q3"] and b["q1"] <= a["q3"] else "no"


def ratio(a: Any, b: Any) -> str:
    """``B / A`` of the medians; nothing for text, or over zero."""
    a, b = (value["median"] if isinstance(value, dict) else value for value in (a, b))
    return "" if isinstance(a, str) or isinstance(b, str) or not a else f"{b / a:.3f}"


def _lines(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, ...]]:
    """What both have measured."""
    both = [(name, first[name], second[name]) for name in first if name in second]
    return [(name, report.text(a), report.text(b), ratio(a, b), overlap(a, b)) for name, a, b in both]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the two files; a file that is not a report ends with one line."""
    parser = measure.Parser("python -m benchmarks.compare", description="Set two reports of the suite side by side.")
    parser.add_argument("a", metavar="A.json")
    parser.add_argument("b", metavar="B.json")
    chosen = parser.parse_args(arguments)
    try:
        a, b = report.read(chosen.a), report.read(chosen.b)
    except ValueError as error:
        parser.error(str(error))
    compare(a, b, Console())


if __name__ == "__main__":
    main()
