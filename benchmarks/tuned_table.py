"""What a tuning found, as Markdown: python benchmarks/tuned_table.py runs/tune/samplers.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def table(rows: list[dict[str, Any]], title: str, cell: Any) -> str:
    """One line for each sampler, one column for each budget."""
    budgets = sorted({row["nfe"] for row in rows})
    cells: dict[str, dict[int, str]] = {}
    for row in rows:
        cells.setdefault(row["setting"]["sampler"], {})[row["nfe"]] = cell(row)
    lines = [
        f"| {title} | " + " | ".join(f"{budget} NFE" for budget in budgets) + " |",
        "|---" * (len(budgets) + 1) + "|",
    ]
    lines += [f"| `{name}` | " + " | ".join(row.get(b, "-") for b in budgets) + " |" for name, row in cells.items()]
    return "\n".join(lines)


def main(path: str) -> None:
    rows = json.loads(Path(path).read_text())["rows"]
    print(table([r for r in rows if r["rmse"] is not None], "error", lambda row: f"{row['rmse']:.3g}"), "\n")
    print(table(rows, "distance", lambda row: f"{row['distance']:.3g}"), "\n")
    for name in ("lam", "lam_s", "eta"):
        having = [row for row in rows if name in row["setting"]["hyper"]]
        if having:
            print(table(having, f"best {name}", lambda row, n=name: f"{row['setting']['hyper'][n]:.2f}"), "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(sys.argv[1])
