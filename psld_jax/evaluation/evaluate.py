"""A sweep over samplers, budgets and seeds, which measures distances of many samples and can be resumed."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from psld_jax import integrators, metrics
from psld_jax._runtime import distributed
from psld_jax._runtime.checks import count_not_finite
from psld_jax._runtime.errors import check_counts
from psld_jax._runtime.journal import Journal, fingerprint, replace
from psld_jax.build import Model, sampler_hyper, to_images
from psld_jax.data import Dataset
from psld_jax.sampling.adaptive import SOLVERS
from psld_jax.sampling.generate import prepare
from psld_jax.sampling.sampler import Sampler, batch_shape
from psld_jax.sampling.settings import Setting, Tuned, nearest

Array = Any

#: Samples of a cell's first batch that its picture shows.
_PICTURE = 64


class Images(Protocol):
    """A source of images for a sweep: a :class:`psld_jax.sampling.sampler.Sampler`, or :class:`FolderImages`."""

    @property
    def setting(self) -> Setting | None:
        """Return what a report says of a sampler's setting."""
        ...

    def about(self) -> dict[str, Any]:
        """Return what the images depend on, as JSON can hold it."""
        ...

    def batches(self, seed: int, numbers: range, size: int) -> Iterator[tuple[int, tuple[Array, ...], np.ndarray]]:
        """Yield the number of the first image, a state whose first block are the images, and evaluations.

        Of the images of these numbers, ``size`` at a time: ``[size, H, W, C]`` and ``[size]``, the last batch fewer.
        """
        ...


class FolderImages:
    """Images that were drawn before, by any program. Each seed makes another choice of them.

    Args:
      data: an opened folder.
    """

    setting = None

    def __init__(self, data: Dataset):
        self._data = data

    def about(self) -> dict[str, Any]:
        """Return how many images there are, and what tells the first hundred from others."""
        first = np.arange(min(len(self._data), 100))
        return {"folder": self._data.describe(), "images": fingerprint([to_images(self._data, first)])}

    def batches(self, seed: int, numbers: range, size: int) -> Iterator[tuple[int, tuple[Array, ...], np.ndarray]]:
        """Yield what :meth:`Images.batches` does, with images ``[size, H, W, C]`` and no evaluations.

        ``ValueError`` for more images than there are.
        """
        if numbers.stop > len(self._data):
            raise ValueError(f"num_samples={numbers.stop} is more than there are: {self._data.describe()}")
        order = np.random.default_rng(seed).permutation(len(self._data))
        for start in range(numbers.start, numbers.stop, size):
            images = to_images(self._data, order[start : min(start + size, numbers.stop)])
            yield start, (images,), np.zeros(len(images))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One sampler at one budget with one seed, and its measures.

    Attributes:
      sampler: what it is called in the sweep: ``"auto"`` stays ``"auto"``.
      seed, num_samples: of the samples.
      budget: evaluations allowed, 0 for an adaptive solver; ``nfe`` those used, on average.
      distance: Frechet distance of the features to the reference; infinite if there are samples that are not finite.
      seconds: for all samples, compilation included.
      setting: what was run; ``None`` for an adaptive solver.
      others: other measures by name, of the first samples.
      not_finite: samples that hold NaN or infinite values; their distance is infinite.
    """

    sampler: str
    budget: int
    seed: int
    num_samples: int
    nfe: float
    distance: float
    seconds: float
    setting: dict[str, Any] | None
    others: dict[str, float] = dataclasses.field(default_factory=dict)
    not_finite: int = 0

    def describe(self) -> str:
        """Describe the measures for readers."""
        name = f"{self.sampler}, {self.nfe:.0f} NFE, seed {self.seed}"
        if not np.isfinite(self.distance):
            return f"{name}: {self.not_finite} of {self.num_samples} samples are not finite"
        return f"{name}: distance {self.distance:.4g}" + "".join(f", {k} {v:.4g}" for k, v in self.others.items())


def jobs(
    model: Model, samplers: Iterable[str], budgets: Iterable[int], tuned: Sequence[Tuned], options: dict[str, Any]
) -> Iterator[tuple[str, int, Sampler]]:
    """Return name, budget and sampler for every combination. Budgets below one step are left out.

    Adaptive solvers come first, once each, with budget 0: they take the evaluations that they need.

    Args:
      tuned: settings; a sampler that is among them takes the one for the nearest budget.
      options: of :func:`psld_jax.sampling.generate.prepare`, for the others.

    Raises:
      ValueError: for an unknown sampler, or options that make no sense.
    """
    common = {name: options[name] for name in ("t_end", "denoise", "rtol", "atol", "max_steps")}
    samplers, budgets = tuple(samplers), tuple(budgets)
    check_counts(**{f"nfe[{i}]": budget for i, budget in enumerate(budgets)})
    for name in (name for name in samplers if name in SOLVERS):
        yield name, 0, prepare(model, name, **common)
    for budget, name in itertools.product(budgets, samplers):
        own = {name: options[name] for name in ("grid", "rho", "t_start")}
        if name in SOLVERS:
            continue
        if name != "auto":
            integrator = integrators.get(name)
            mine = [row for row in tuned if row.setting.sampler == integrator.name]
            if mine:
                setting = nearest(mine, budget).until(options["t_end"], model.sde)
                own, hyper = {field: getattr(setting, field) for field in own}, setting.hyper
            else:
                hyper = sampler_hyper(model.config, name)
            own |= hyper
            if budget < integrators.get(name, **hyper).least_nfe(options["denoise"]):
                continue
        yield name, budget, prepare(model, name, nfe=budget, **own, **common)


def evaluate(
    jobs: Iterable[tuple[str, int, Images]],
    reference: metrics.Gaussian,
    *,
    features: metrics.Features,
    seeds: Sequence[int] = (0,),
    num_samples: int = 10_000,
    batch_size: int = 64,
    num_kept: int = 0,
    others: Callable[[np.ndarray], dict[str, float]] = lambda features: {},
    journal: Journal,
    report: Callable[[Cell], None] = lambda cell: None,
    picture: Callable[[Cell, np.ndarray], None] = lambda cell, images: None,
) -> list[Cell]:
    """Draw ``num_samples`` samples for each job and seed, and take the distance of their features to ``reference``.

    Memory holds one batch, the moments of the features, and those that are kept. A cell that ``journal`` knows is not
    run again. Where several processes run together, each draws its share of every cell.

    Args:
      jobs: name, budget and sampler of each, in the order in which they are run.
      reference: mean and covariance of the features of the data.
      features: of images ``[n, H, W, C]``, clipped to [-1, 1].
      seeds: of the samples; the spread over them is that of the distances.
      num_kept, others: other measures, a function of the features of the first so many samples, which are kept for it.
      journal: of this sweep.
      report: called with every cell.
      picture: called with every new cell of the first seed, and its first images ``[k, H, W, C]``.

    Raises:
      ValueError: for counts below 1, or a folder with too few images.
    """
    check_counts(num_samples=num_samples, batch_size=batch_size)

    def run(name: str, budget: int, sampler: Images, seed: int) -> Cell:
        start, moments, evaluations, first = time.perf_counter(), metrics.Moments(num_kept), 0.0, np.zeros(0)
        size, bad = batch_shape(num_samples, batch_size), 0
        for _, state, counts in sampler.batches(seed, distributed.share(num_samples, size), size):
            bad += count_not_finite(state)
            images = np.clip(state[0], -1, 1)
            first = first if len(first) else images[:_PICTURE]
            moments.add(features(images))
            evaluations += float(counts.sum())
        everything = distributed.gather_arrays(
            {**moments.arrays(), "evaluations": np.array(evaluations), "bad": np.array(bad)}
        )
        moments = metrics.Moments.joined(everything, num_kept)
        evaluations = float(sum(theirs["evaluations"] for theirs in everything))
        bad = int(sum(theirs["bad"] for theirs in everything))
        finite = moments.finite and not bad
        distance = moments.gaussian().distance(reference) if finite else float("inf")
        setting, seconds = _json(sampler), time.perf_counter() - start
        more = others(moments.kept()) if num_kept and finite else {}
        cell = Cell(name, budget, seed, num_samples, evaluations / num_samples, distance, seconds, setting, more, bad)
        if seed == seeds[0] and finite and distributed.is_first():
            picture(cell, first)
        return cell

    cells = []
    for (name, budget, sampler), seed in itertools.product(jobs, seeds):
        job = (name, budget, sampler, seed)
        # No setting says what an adaptive solver or a folder is.
        key = [name, budget, seed, num_samples, _json(sampler) or sampler.about()]
        cells.append(Cell(**journal.get(key, lambda job=job: dataclasses.asdict(run(*job)))))
        report(cells[-1])
    return cells


def _json(sampler: Images) -> dict[str, Any] | None:
    return None if sampler.setting is None else sampler.setting.to_json()


def summary(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Make a row for each sampler and budget: mean and spread (standard deviation) of the distance over the seeds.

    Where samples are not finite, distance and spread are ``None``, and ``not_finite`` says how many there are.
    """
    rows: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.sampler, cell.budget), []).append(cell)
    return [
        {
            "sampler": name,
            "budget": budget,
            "nfe": float(np.mean([cell.nfe for cell in row])),
            "distance": _over_seeds(np.mean, row),
            "spread": _over_seeds(np.std, row),
            "not_finite": sum(cell.not_finite for cell in row),
            "seeds": len(row),
            "num_samples": row[0].num_samples,
            "seconds": float(np.mean([cell.seconds for cell in row])),
            "setting": row[0].setting,
            **{
                key: float(np.mean([cell.others[key] for cell in row]))
                for key in row[0].others
                if all(key in cell.others for cell in row)
            },
        }
        for (name, budget), row in rows.items()
    ]


def _over_seeds(reduce: Callable[[list[float]], Any], cells: list[Cell]) -> float | None:
    distances = [cell.distance for cell in cells]
    return float(reduce(distances)) if np.isfinite(distances).all() else None


Published = Sequence[tuple[str, int, float]]


def markdown(rows: list[dict[str, Any]], real: tuple[float, float] | None, published: Published = ()) -> str:
    """Write the rows as a table: samplers down, budgets across, the best of each budget in bold.

    ``published`` holds sampler, NFE and distance of somebody else; they are in brackets.
    """
    theirs = {(name, nfe): value for name, nfe, value in published}
    budgets = sorted({row["budget"] for row in rows})
    distances = {b: [row["distance"] for row in rows if row["budget"] == b] for b in budgets}
    best = {b: min((d for d in of_budget if d is not None), default=None) for b, of_budget in distances.items()}
    lines = [
        "| | " + " | ".join(f"{b} NFE" if b else "adaptive" for b in budgets) + " |",
        "|---" * (len(budgets) + 1) + "|",
    ]
    for name in dict.fromkeys(row["sampler"] for row in rows):
        cells = {row["budget"]: row for row in rows if row["sampler"] == name}
        texts = []
        for budget in budgets:
            row = cells.get(budget)
            if row is None:
                text = "-"
            elif row["distance"] is None:
                text = f"not finite ({row['not_finite']} of {row['num_samples'] * row['seeds']})"
            else:
                text = f"{row['distance']:.3g} ± {row['spread']:.2g}"
            if (name, budget) in theirs:
                text += f" [{theirs[name, budget]:g}]"
            texts.append(
                f"**{text}**" if row and row["distance"] is not None and row["distance"] == best[budget] else text
            )
        lines.append(f"| `{name}` | " + " | ".join(texts) + " |")
    notes = [] if real is None else [f"As many real images: {real[0]:.3g} ± {real[1]:.2g}."]
    notes += ["In brackets: as published."] if published else []
    return "\n".join([*lines, "", " ".join(notes), ""])


def write(
    directory: Path, rows: list[dict[str, Any]], real: tuple[float, float] | None, title: str, published: Published = ()
) -> None:
    """Write ``evaluation.csv``, ``.json`` and ``.md``."""
    content = {"title": title, "real": real, "rows": rows}
    replace(directory / "evaluation.json", json.dumps(content, indent=1) + "\n")
    replace(directory / "evaluation.md", f"{title}\n\n{markdown(rows, real, published)}")
    with open(directory / "evaluation.csv", "w", newline="") as file:
        columns = list(dict.fromkeys(key for row in rows for key in row))  # samples that are not finite have fewer
        writer: csv.DictWriter[str] = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({**row, "setting": json.dumps(row["setting"])} for row in rows)
