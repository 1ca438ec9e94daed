"""The parts of a page for bench, evaluation and tuning: plots against NFE, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psld_jax._runtime.journal import read_json
from psld_jax.evaluation import families
from psld_jax.report._parts import Curve, Pictures, facts, plot, table, text

Rows = Sequence[Mapping[str, Any]]

_NFE = ("network evaluations (NFE)", "NFE")


def curves(title: str, rows: Rows, column: str, label: tuple[str, str], floor: tuple[str, float] | None = None) -> str:
    """Plot ``column`` of the rows against NFE, the best sampler of each family in colour and all others in grey."""
    lines = families.lines(rows, column)
    if not lines:
        return ""
    drawn = [
        Curve(
            line.name,
            [(row["nfe"], row[column], row.get("spread"), _note(row)) for row in line.rows],
            line.colour if line.best else -1,
            line.colour,
            families.FAMILIES[line.family][0],
        )
        for line in reversed(lines)
    ]
    return plot(
        title,
        drawn,
        _NFE,
        label,
        ticks=families.ticks(rows),
        limits=families.limits(lines, column, floor[1] if floor else None),
        lines={floor[0]: floor[1]} if floor else None,
        note="Smaller is better."
        + ("" if all(line.best for line in lines) else " The best of each family is in colour, the others are grey."),
    )


def _note(row: Mapping[str, Any]) -> str:
    setting = row.get("setting") or {}
    if setting.get("solver"):
        return "its own times"
    hyper = {**setting.get("hyper", {}), **(row.get("hyper") or {})}
    grid = setting.get("grid", row.get("grid") or "")
    said = [f"{grid} grid" if isinstance(grid, str) and grid else "tuned grid" if grid else ""]
    said += [f"analytic start at t={setting['t_start']:.3g}"] if "t_start" in setting else []
    said += [f"{name}={text(value)}" for name, value in hyper.items()]
    return ", ".join(filter(None, said))


def grid_text(setting: Mapping[str, Any]) -> str:
    """Name the time grid of a setting, or give its times to four digits; and the start, if the state is led there."""
    if setting.get("solver"):
        return "that of the solver"
    grid = setting.get("grid", "")
    start = ", analytic start" if "t_start" in setting else ""
    if isinstance(grid, str):
        rho = f", rho {setting['rho']:g}" if grid in ("power", "edm") and "rho" in setting else ""
        return grid + rho + (f"{start} at t={setting['t_start']:.3g}" if start else "")
    return " ".join(f"{float(t):.4g}" for t in grid) + start


def bench(report: Mapping[str, Any], workdir: Path, pictures: Pictures) -> str:
    """Show error and distance of every sampler where the truth is known, and the times they take."""
    rows, floor = report["rows"], report.get("floor")
    columns = {
        "sampler": "sampler",
        "grid": "grid",
        "nfe": "NFE",
        "frechet": "distance",
        "rmse": "error",
        "seconds": "seconds",
    }
    table_rows = [
        {title: row.get(name) for name, title in columns.items()} | {"settings": _note({**row, "grid": ""})}
        for row in rows
    ]
    exact = ("exact samples", floor) if floor else None
    distance = ("Frechet distance to the exact law", "distance")
    return "".join(
        [
            facts({"samples of each": report.get("num_samples"), "distance of as many exact samples": floor}),
            curves("Frechet distance to the exact law", rows, "frechet", distance, exact),
            curves("Error to the exact solution of the ODE", rows, "rmse", ("error (root mean square)", "error")),
            table("Every sampler and budget; a click on a head sorts", table_rows),
        ]
    )


#: Of an evaluation's rows; the others are measures of some runs only.
_OWN_COLUMNS = (
    "sampler",
    "budget",
    "nfe",
    "distance",
    "spread",
    "not_finite",
    "seeds",
    "num_samples",
    "seconds",
    "setting",
)


def evaluation(report: Mapping[str, Any], workdir: Path, pictures: Pictures) -> str:
    """Show distances of many samples with their spread over seeds, other measures, and samples of every cell."""
    rows, real = report["rows"], report.get("real")
    others = list(dict.fromkeys(name for row in rows for name in row if name not in _OWN_COLUMNS))
    table_rows = [
        {
            "sampler": row["sampler"],
            "budget": row["budget"] or None,
            "NFE": row["nfe"],
            "distance": row["distance"],
            "spread over seeds": row["spread"],
            **{name.replace("_", " "): row.get(name) for name in others},
            "not finite": row["not_finite"],
            "seconds": row["seconds"],
            "settings": _note(row),
        }
        for row in rows
    ]
    features = report.get("features", "")
    first = rows[0] if rows else {}
    about = {
        "features": features,
        "samples a seed": first.get("num_samples"),
        "seeds": first.get("seeds"),
        "distance of as many real images": None if real is None else f"{real[0]:.4g} ± {real[1]:.2g}",
    }
    cells = []
    for row in sorted(rows, key=lambda row: (row["budget"], row["sampler"])):
        file = workdir / "pictures" / f"{row['sampler']}_{row['budget']}.png"
        if file.is_file():
            distance = "" if row["distance"] is None else f", distance {row['distance']:.3g}"
            cells.append((file, f"{row['sampler']}, {row['nfe']:.0f} NFE{distance}"))
    label = (f"Frechet distance, {features} features", "distance")
    plotted = [{**row, "grid": ""} for row in rows]
    floor = ("real images", real[0]) if real else None
    return "".join(
        [
            facts({name: value for name, value in about.items() if value is not None}),
            curves("Frechet distance to the data", plotted, "distance", label, floor),
            table("Every sampler and budget; a click on a head sorts", table_rows),
            "<h3>Samples of each</h3>" if cells else "",
            pictures.gallery(cells, small=True),
        ]
    )


def tuning(report: Mapping[str, Any], workdir: Path, pictures: Pictures) -> str:
    """Show what the tuner found for every sampler and budget, and the best for each budget."""
    found = read_json(workdir / "samplers.json")["rows"]
    rows = [{**row, "sampler": sampler_text(row["setting"]), "grid": "", "budget": row["nfe"]} for row in found]
    best = {
        nfe: min((row for row in rows if row["nfe"] == nfe), key=lambda row: row["distance"])
        for nfe in sorted({row["nfe"] for row in rows})
    }
    table_rows = [
        {
            "NFE": row["nfe"],
            "sampler": row["sampler"],
            "distance": row["distance"],
            "error": row.get("rmse"),
            "best at this NFE": "yes" if best[row["nfe"]] is row else "",
            "settings": _note(row),
            "grid": grid_text(row["setting"]),
        }
        for row in rows
    ]
    floor = ("fine solution", rows[0]["floor"]) if rows and rows[0].get("floor") else None
    told = {f"best at {nfe} NFE": f"{row['sampler']} ({_note(row)})" for nfe, row in best.items()}
    label = ("Frechet distance to the target", "distance")
    return "".join(
        [
            facts(told),
            curves("Distance of every sampler at its best", rows, "distance", label, floor),
            curves("Error to the fine solution", rows, "rmse", ("error (root mean square)", "error")),
            _numbers(rows),
            table("Every sampler and budget; a click on a head sorts", table_rows),
        ]
    )


def sampler_text(setting: Mapping[str, Any]) -> str:
    """Name the sampler of a setting; one that was learned has no name of its own."""
    return "learned solver" if setting.get("solver") else setting["sampler"]


def _numbers(rows: Rows) -> str:
    """Plot the best values of numeric hyper-parameters against NFE."""
    parts = []
    for name in ("lam", "lam_s", "eta"):
        having = [row for row in rows if name in row["setting"].get("hyper", {})]
        samplers = sorted({row["sampler"] for row in having})
        drawn = [
            Curve(
                sampler,
                [(row["nfe"], row["setting"]["hyper"][name]) for row in having if row["sampler"] == sampler],
                number,
                number,
            )
            for number, sampler in enumerate(samplers)
        ]
        if drawn:
            label, ticks = (f"best {name}", name), families.ticks(having)
            parts.append(plot(f"Best {name}", drawn, _NFE, label, log_y=False, ticks=ticks))
    return "".join(parts)
