"""What the laboratory found: tables, the paper's orderings judged, and figures of distance against NFE."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from psld_jax._runtime.journal import replace
from psld_jax.evaluation import evaluate, plots
from psld_jax.sampling.solver import LEARNED

#: Differences of so many standard errors are told apart.
APART = 2.0

#: Measures of a cell by the name of their features.
FEATURES = ("classifier", "pixels")

#: What real images are: so many training images, drawn with replacement, or all that no network was trained on. The
#: second is also the name of a cell's distance to them, in features of the classifier.
AS_MANY, HELD_OUT = "training images, as many", "held out"


@dataclasses.dataclass
class Found:
    """What there is so far.

    Attributes:
      about: the options.
      real: distances of real images.
      cells: every sampler and budget; ``finals`` the best ones, judged again. Rows of network, seed and cell.
      networks: what is known of their training.
    """

    about: dict[str, Any]
    real: list[dict[str, Any]]
    cells: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    finals: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    networks: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Ordering(NamedTuple):
    """A claim of Pandey & Mandt (2024) about CIFAR-10: the first has the smaller distance; networks and samplers."""

    claim: str
    better: tuple[str, str]
    worse: tuple[str, str]
    budgets: tuple[int, ...]


_PLAIN, _PRECONDITIONED = "psld", "psld_preconditioned"

#: Claim, the better sampler and the worse one. The paper reports these at 50 evaluations, those of stochastic samplers
#: at 100 as well, and of plain networks.
_OF_SAMPLERS = (
    ("reduced Verlet beats naive", "reduced_velocity_verlet", "naive_velocity_verlet"),
    ("reduced OBA beats naive", "reduced_oba", "naive_oba"),
    ("conjugate Verlet beats reduced", "conjugate_velocity_verlet", "reduced_velocity_verlet"),
    ("lambda-DDIM-II beats DDIM", "lambda_ddim_ii", "ddim"),
    ("ROBA beats SSCS", "reduced_oba", "sscs"),
    ("ROBA beats EM", "reduced_oba", "euler_maruyama"),
    ("conjugate steps do not help ROBA", "reduced_oba", "conjugate_oba"),
)

_VERLET = "conjugate_velocity_verlet"

ORDERINGS = (
    *(
        Ordering(f"{claim}{where}", (network, better), (network, worse), (10, 20, 50, 100))
        for network, where in ((_PLAIN, ""), (_PRECONDITIONED, ", preconditioned"))
        for claim, better, worse in _OF_SAMPLERS
    ),
    Ordering("preconditioning helps conjugate Verlet", (_PRECONDITIONED, _VERLET), (_PLAIN, _VERLET), (50,)),
    Ordering("preconditioning does not help conjugate Verlet", (_PLAIN, _VERLET), (_PRECONDITIONED, _VERLET), (100,)),
)

#: What one panel of the paper's figures compares, by its title.
PANELS = {
    "naive and reduced splitting": (
        *("naive_symplectic_euler", "reduced_symplectic_euler", "naive_velocity_verlet", "reduced_velocity_verlet"),
        *("naive_oba", "reduced_oba"),
    ),
    "DDIM, splitting and conjugate splitting": (
        *("ddim", "lambda_ddim_i", "lambda_ddim_ii", "reduced_symplectic_euler", "conjugate_symplectic_euler"),
        *("reduced_velocity_verlet", "conjugate_velocity_verlet"),
    ),
    "stochastic": ("euler_maruyama", "sscs", "reduced_oba", "conjugate_oba"),
}


def _distance(cell: evaluate.Cell, features: str) -> float:
    """The distance of a cell in some features; infinite for samples that are not finite."""
    return cell.distance if features == "pixels" else cell.others.get(features, math.inf)


def distances(
    rows: Iterable[dict[str, Any]], features: str
) -> dict[tuple[str, str, int], dict[tuple[int, int], float]]:
    """By network, sampler and budget: the distance for each seed of the network and of the samples."""
    found: dict[tuple[str, str, int], dict[tuple[int, int], float]] = {}
    for row in rows:
        cell: evaluate.Cell = row["cell"]
        key = (row["network"], cell.sampler, cell.budget)
        found.setdefault(key, {})[row["seed"], cell.seed] = _distance(cell, features)
    return found


def verdict(better: dict[tuple[int, int], float], worse: dict[tuple[int, int], float]) -> tuple[str, float, float]:
    """``holds``, ``does not hold`` or ``not told apart``; and the mean difference with its standard error.

    Pairs have the seeds of network and samples in common. Samples of one network share its errors, so the seeds of
    networks are what the error is taken over, where there are several.
    """
    pairs = sorted(set(better) & set(worse))
    differences = [worse[pair] - better[pair] for pair in pairs]
    if not differences or not np.isfinite(differences).all():
        finite = [all(map(math.isfinite, side.values())) and bool(side) for side in (better, worse)]
        settled = {(True, False): "holds", (False, True): "does not hold"}
        return (settled.get((finite[0], finite[1]), "not told apart") if pairs else "not run", math.nan, math.nan)
    networks = sorted({pair[0] for pair in pairs})
    if len(networks) > 1:
        differences = [
            float(np.mean([d for d, pair in zip(differences, pairs, strict=True) if pair[0] == network]))
            for network in networks
        ]
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return "not told apart", mean, math.nan
    error = float(np.std(differences, ddof=1) / np.sqrt(len(differences)))
    if abs(mean) <= APART * error:
        return "not told apart", mean, error
    return ("holds" if mean > 0 else "does not hold"), mean, error


def chosen(cells: Sequence[evaluate.Cell]) -> list[tuple[str, int]]:
    """Of one network: the sampler of each budget with the smallest mean distance in features of the classifier.

    Solvers that were learned are judged beside it, and are not among them.
    """
    rows = ({"network": "", "seed": 0, "cell": cell} for cell in cells if cell.sampler != LEARNED)
    found = distances(rows, "classifier")
    means = {key[1:]: float(np.mean(list(values.values()))) for key, values in found.items()}
    finite = {key: value for key, value in means.items() if math.isfinite(value)}
    budgets = sorted({budget for _, budget in finite})
    return [min((key for key in finite if key[1] == budget), key=finite.__getitem__) for budget in budgets]


def best(finals: Sequence[dict[str, Any]], features: str) -> Iterator[dict[str, Any]]:
    """For every diffusion and budget: the distance of what was chosen for its networks, and which samplers those are.

    The mean and the standard deviation are over networks, where there are several, else over seeds of samples. Solvers
    that were learned have rows of their own.
    """
    found: dict[tuple[str, int], dict[int, list[float]]] = {}
    samplers: dict[tuple[str, int], dict[int, str]] = {}
    for row in finals:
        cell = row["cell"]
        key = f"{row['network']}, {LEARNED}" if cell.sampler == LEARNED else row["network"], cell.budget
        found.setdefault(key, {}).setdefault(row["seed"], []).append(_distance(cell, features))
        samplers.setdefault(key, {})[row["seed"]] = cell.sampler
    for (network, budget), values in sorted(found.items()):
        over = (
            [float(np.mean(of_one)) for of_one in values.values()] if len(values) > 1 else next(iter(values.values()))
        )
        if np.isfinite(over).all():
            yield {
                "network": network,
                "budget": budget,
                "samplers": list(samplers[network, budget].values()),
                "distance": float(np.mean(over)),
                "spread": float(np.std(over)) if len(over) > 1 else None,
            }


def summary(rows: Sequence[dict[str, Any]], features: str) -> list[dict[str, Any]]:
    """One row for a network, sampler and budget: mean and spread (standard deviation) over all seeds."""
    evaluations = {(row["network"], row["cell"].sampler, row["cell"].budget): row["cell"].nfe for row in rows}
    bad: dict[tuple[str, str, int], list[int]] = {}
    for row in rows:
        cell = row["cell"]
        bad.setdefault((row["network"], cell.sampler, cell.budget), []).append(cell.not_finite)
    return [
        {
            "network": key[0],
            "sampler": key[1],
            "budget": key[2],
            "nfe": evaluations[key],
            "distance": float(np.mean(list(values.values()))) if np.isfinite(list(values.values())).all() else None,
            "spread": float(np.std(list(values.values()))) if np.isfinite(list(values.values())).all() else None,
            "seeds": len(values),
            "num_samples": rows[0]["cell"].num_samples,
            "not_finite": sum(bad[key]),
        }
        for key, values in distances(rows, features).items()
    ]


def markdown(found: Found) -> str:
    """All of it as a page."""
    rows = found.cells
    lines = ["# Laboratory", "", ", ".join(f"{name} {value}" for name, value in found.about.items()), ""]
    lines += ["| network | seed | numbers | steps | hours | loss | held-out loss |", "|---|---|---|---|---|---|---|"]
    for fact in found.networks:
        values = (fact.get(name) for name in ("hours", "loss", "held_out_loss"))
        texts = ("-" if value is None else f"{value:.4g}" for value in values)
        cells = (fact["network"], fact["seed"], f"{fact['numbers']:,}", fact["steps"], *texts)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "A loss is that of its own diffusion and target: losses of two networks are not comparable."]
    for features in FEATURES:
        lines += ["", f"## Frechet distance, {features}", "", "| real images | number | distance |", "|---|---|---|"]
        lines += [f"| {row['what']} | {row['images']:,} | {row[features]:.4g} |" for row in found.real]
        bias = _bias(found.real, features, rows)
        for network in dict.fromkeys(row["network"] for row in rows):
            table = [row for row in summary(rows, features) if row["network"] == network]
            lines += ["", f"### `{network}`, {features}", "", evaluate.markdown(table, bias).rstrip()]
        lines += ["", f"### The best sampler of each network, {features}", "", *_finals(found.finals, features)]
        lines += ["", f"### The orderings of the paper, {features}", "", *_orderings(rows, features)]
    lines += ["", "## To images that no network has seen", ""]
    lines += ["Frechet distance, classifier, of the same samples to the held-out images. Training images have"]
    lines += [f"{found.real[-1]['classifier']:.3g}. A network that knows them by heart comes no nearer.", ""]
    lines += _finals(found.finals, HELD_OUT)
    return "\n".join(lines) + "\n"


def _finals(finals: Sequence[dict[str, Any]], features: str) -> Iterator[str]:
    """The distances of the samplers that were chosen, as a table."""
    counts = sorted({row["cell"].num_samples for row in finals})
    yield "The sampler of each network and budget that is nearest in features of the classifier, and the solver"
    yield f"that was learned, judged by {' or '.join(f'{count:,}' for count in counts)} samples of other seeds. The"
    yield "spread is over networks, or over seeds of samples for one network."
    yield ""
    yield "| diffusion | NFE | distance | samplers |"
    yield "|---|---|---|---|"
    for row in best(finals, features):
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(row["samplers"]))
        yield f"| `{row['network']}` | {row['budget']} | {_with(row['distance'], row['spread'])} | {names} |"


def _with(value: float, error: float | None) -> str:
    """A number with its error, where there is one."""
    return f"{value:.3g}" if error is None else f"{value:.3g} ± {error:.2g}"


def _bias(real: Sequence[dict[str, Any]], features: str, rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Mean and spread of what as many real images have as the rows have samples."""
    counts = {row["cell"].num_samples for row in rows}
    values = [row[features] for row in real if row["what"] == AS_MANY and row["images"] in counts]
    return float(np.mean(values)), float(np.std(values))


def _orderings(rows: Sequence[dict[str, Any]], features: str) -> Iterator[str]:
    found = distances(rows, features)
    yield "| claim | NFE | here | difference |"
    yield "|---|---|---|---|"
    for ordering in ORDERINGS:
        for budget in ordering.budgets:
            sides = (found.get((*side, budget), {}) for side in (ordering.better, ordering.worse))
            result, mean, error = verdict(*sides)
            difference = "-" if math.isnan(mean) else _with(mean, None if math.isnan(error) else error)
            yield f"| {ordering.claim} | {budget} | {result} | {difference} |"
    yield ""
    yield f"Told apart: a difference of more than {APART:g} standard errors, over networks where there are several."


def _compares(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether two samplers or more have two budgets or more."""
    counts = collections.Counter(row["sampler"] for row in rows)
    return sum(count > 1 for count in counts.values()) > 1


def write(directory: Path, found: Found) -> None:
    """Write ``laboratory.md``, ``laboratory.json``, figures of each network and one of the best samplers of all."""
    replace(directory / "laboratory.md", markdown(found))
    tables = {features: summary(found.cells, features) for features in FEATURES}
    content = {"about": found.about, "real": found.real, "networks": found.networks, "tables": tables}
    content["best"] = {features: list(best(found.finals, features)) for features in (*FEATURES, HELD_OUT)}
    replace(directory / "laboratory.json", json.dumps(content, indent=1) + "\n")
    floor = {"distance": _bias(found.real, "classifier", found.cells)[0]}
    title = {"distance": "Frechet distance, features of the classifier"}
    for network in dict.fromkeys(row["network"] for row in found.cells):
        curves = [row for row in tables["classifier"] if row["network"] == network and row["distance"] is not None]
        if curves:
            plots.save_curves(directory / f"{network}.png", curves, title, floor, "as many real images")
        panels = {
            name: [{**row, name: row["distance"]} for row in curves if row["sampler"] in of_it]
            for name, of_it in PANELS.items()
        }
        # A panel needs something to compare: two curves, of two budgets each.
        panels = {name: part for name, part in panels.items() if _compares(part)}
        if panels:
            path, floors = directory / f"{network}_paper.png", dict.fromkeys(panels, floor["distance"])
            titles = {name: name for name in panels}
            plots.save_curves(path, list(itertools.chain(*panels.values())), titles, floors, "as many real images")
    curves = [{**row, "sampler": row["network"], "nfe": row["budget"]} for row in best(found.finals, "classifier")]
    if curves:
        floor = {"distance": _bias(found.real, "classifier", found.finals)[0]}
        plots.save_curves(directory / "best.png", curves, title, floor, "as many real images")
