"""Time against NFE and batch, and memory against NFE: python -m benchmarks.plot_linear REPORT.json PICTURE.png

From the group ``linear`` of a report of ``python -m benchmarks``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np


def main(report: str, picture: str) -> None:
    rows: list[dict[str, Any]] = json.loads(Path(report).read_text())["groups"]["linear"]["rows"]
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), constrained_layout=True)
    for axis, name, other in ((axes[0], "nfe", "batch"), (axes[1], "batch", "nfe")):
        held = max((row["case"][other] for row in rows), key=[row["case"][other] for row in rows].count)
        chosen = sorted((row for row in rows if row["case"][other] == held), key=lambda row: row["case"][name])
        x = np.array([row["case"][name] for row in chosen])
        y, low, high = (np.array([row["seconds"][key] for row in chosen]) for key in ("median", "q1", "q3"))
        axis.errorbar(x, y, np.abs([low - y, high - y]), fmt="o", label="measured, quartiles")
        slope = np.sum(x * y) / np.sum(x * x)
        axis.plot([0, x.max()], [0, slope * x.max()], color="0.6", label=f"{1e3 * slope:.3g} ms each")
        axis.set(xlabel={"nfe": "network evaluations (NFE)", "batch": "samples in a batch"}[name], ylabel="seconds")
        axis.set_title(f"{other} {held}", fontsize=9)
        axis.legend(fontsize=8)
        if name == "nfe":
            axes[2].plot(x, [row["temporaries_mib"] for row in chosen], "o-")
    axes[2].set(
        xlabel="network evaluations (NFE)",
        ylabel="scratch memory, MiB",
        ylim=(0, 1.3 * max(row["temporaries_mib"] for row in rows)),
    )
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_xlim(0, None)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
