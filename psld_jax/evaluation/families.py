"""Families of samplers, and the choice of the few curves that a picture shows in colour: the best of each family."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psld_jax.sampling.adaptive import SOLVERS

_SDE = "dpm_solver_pp_2m_sde"

#: Name of a family, and how names of its samplers begin; the first that fits counts. The order is that of the colours.
FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("exponential", ("exponential_", "predictor_corrector")),
    ("stochastic", ("ancestral", "ddpm", "euler_ancestral", "euler_maruyama", "sscs", "sa_solver", "restart", _SDE)),
    ("splitting", ("naive_", "reduced_")),
    ("conjugate", ("conjugate", "lambda_ddim", "ddim")),
    ("one-block multistep", ("dpm_solver", "unipc", "deis", "ipndm", "lms")),
    ("Runge-Kutta", ("euler", "heun", "edm_heun", "dpm2")),
    ("adaptive", tuple(SOLVERS)),
    ("others", ("",)),
)


def family(sampler: str) -> int:
    """Return the number of a sampler's family in :data:`FAMILIES`, which is also the number of its colour."""
    return next(number for number, (_, starts) in enumerate(FAMILIES) if sampler.startswith(starts))


@dataclasses.dataclass(frozen=True)
class Line:
    """The curve of one sampler, on one grid, against NFE.

    Attributes:
      name: the sampler, and its grid where there are several.
      family: number of its family.
      rows: in the order of NFE; every row has a finite value.
      best: whether it is in colour: where there are many, the best of its family.
      colour: the number of its colour, that of its family where there are many.
    """

    name: str
    family: int
    rows: tuple[Mapping[str, Any], ...]
    best: bool = False
    colour: int = 0


def lines(rows: Iterable[Mapping[str, Any]], column: str) -> list[Line]:
    """Return the curves of ``column`` over the rows. Those in colour, the best of their family, come last.

    Where there are no more curves than families, all are in colour, each in one of its own.
    Of a family the best has the smallest geometric mean over all budgets, where a budget without a finite value counts
    as the worst of all values at it.
    """
    kept = [row for row in rows if row.get(column) is not None and math.isfinite(row[column]) and row[column] > 0]
    several = len({row.get("grid", "") for row in kept}) > 1
    worst: dict[Any, float] = {}
    by_name: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in kept:
        name = f"{row['sampler']}, {row['grid']}" if several else row["sampler"]
        by_name.setdefault((name, row["sampler"]), []).append(row)
        worst[_budget(row)] = max(worst.get(_budget(row), 0.0), row[column])

    def level(of_one: Sequence[Mapping[str, Any]]) -> float:
        values = worst | {_budget(row): row[column] for row in of_one}
        return sum(map(math.log, values.values()))

    found = [
        Line(name, family(sampler), tuple(sorted(of_one, key=lambda row: row["nfe"])))
        for (name, sampler), of_one in by_name.items()
    ]
    if len(found) <= len(FAMILIES):
        found.sort(key=lambda line: line.name)
        return [dataclasses.replace(line, best=True, colour=number) for number, line in enumerate(found)]
    best = {}
    for line in sorted(found, key=lambda line: level(line.rows), reverse=True):
        best[line.family] = line.name
    marked = [dataclasses.replace(line, best=best[line.family] == line.name, colour=line.family) for line in found]
    return sorted(marked, key=lambda line: (line.best, line.family, line.name))


def limits(curves: Sequence[Line], column: str, floor: float | None = None) -> tuple[float, float]:
    """Return the part of the vertical axis where curves differ.

    From the smallest value to the largest of a best sampler that is within thirty times the smallest at its budget:
    what is above cannot be told apart from worse.
    """
    values: dict[Any, list[float]] = {}
    for line in curves:
        for row in line.rows:
            values.setdefault(_budget(row), []).append(float(row[column]))
    least = {budget: min(of_budget) for budget, of_budget in values.items()}
    of_best = [(float(row[column]), least[_budget(row)]) for line in curves if line.best for row in line.rows]
    near = [value for value, smallest in of_best if value <= 30 * smallest]
    low = min([*least.values(), floor or math.inf])
    return 0.8 * low, 1.3 * max([*near, 2 * low])


def ticks(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """Return the budgets of the rows, or their NFE where budgets are unknown, as far as there is room for numbers."""
    kept: list[float] = []
    for tick in sorted({float(f"{row.get('budget') or row['nfe']:.3g}") for row in rows}):
        if tick > 0 and (not kept or tick / kept[-1] > 1.12):
            kept.append(tick)
    return kept


def _budget(row: Mapping[str, Any]) -> Any:
    return row.get("budget", row["nfe"])
