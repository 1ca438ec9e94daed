"""The tuner finds the best setting for every sampler and budget, and the best sampler for every budget."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psld_jax import build, integrators, metrics
from psld_jax._runtime.checks import NotFinite, as_pixels, check_seed
from psld_jax._runtime.errors import check_callable, check_choice, check_counts, check_kind, shown
from psld_jax._runtime.journal import Journal, fingerprint, replace
from psld_jax.build import Model
from psld_jax.sampling.generate import check_end
from psld_jax.sampling.settings import Setting, Tuned
from psld_jax.tuning._evaluate import Evaluator, Score
from psld_jax.tuning._gradient import refine
from psld_jax.tuning._options import Options
from psld_jax.tuning._search import applicable, first_times, search
from psld_jax.tuning.gits import candidates as fine_times
from psld_jax.tuning.gits import cheapest, step_errors
from psld_jax.tuning.learn import learn as learn_solver

Array = Any

#: What ``sampler="auto"`` chooses from, unless the tuner is told otherwise.
DEFAULT_SAMPLERS = ("predictor_corrector", "exponential_multistep", "ancestral", "ipndm")


#: What :func:`tune` can learn beside its search.
LEARN = ("none", "times", "table")
#: Iterations of L-BFGS where the times alone are learned.
_TIMES_STEPS = 100
#: Steps of the fine solution whose times GITS chooses from.
_FINE_STEPS = 60


@dataclasses.dataclass(frozen=True)
class Row:
    """The best setting of one sampler for one budget, with its measures.

    Attributes:
      nfe: the budget.
      setting: sampler, grid and hyper-parameters.
      score: of samples from noise that the search has not seen.
    """

    nfe: int
    setting: Setting
    score: Score

    def to_json(self) -> dict[str, Any]:
        """Return a dict that JSON can hold. It names the file of a learned solver, see :meth:`Tuning.write`."""
        return {"nfe": self.nfe, "setting": _named(self.setting), **dataclasses.asdict(self.score)}


def _named(setting: Setting) -> dict[str, Any]:
    """Write a setting as JSON, with the name of its solver's file in place of the solver."""
    if setting.solver is None:
        return setting.to_json()
    return {**setting.to_json(), "solver": f"solver_{setting.solver.nfe}.json"}


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What :func:`tune` found.

    Attributes:
      model: what it belongs to.
      rows: one for each budget and sampler.
    """

    model: str
    rows: tuple[Row, ...]

    @property
    def best(self) -> tuple[Tuned, ...]:
        """For every budget the setting whose samples had the smallest distance, and the solver learned for it.

        ``sampler="auto"`` chooses from these; ``dataclasses.replace(model, tuned=tuning.best)`` is a model that uses
        them. A learned solver serves its own budget alone, so the setting that was tuned stays beside it.
        """
        learned = [row for row in self.rows if row.setting.solver is not None]
        tuned = [row for row in self.rows if row.setting.solver is None]
        budgets = sorted({row.nfe for row in tuned})
        chosen = (min((r for r in tuned if r.nfe == nfe), key=lambda r: r.score.distance) for nfe in budgets)
        return tuple(Tuned(row.nfe, row.setting) for row in sorted([*chosen, *learned], key=lambda row: row.nfe))

    @property
    def described(self) -> list[dict[str, Any]]:
        """Return what :attr:`best` holds, for JSON, with the names of solvers' files."""
        return [{"nfe": tuned.nfe, "setting": _named(tuned.setting)} for tuned in self.best]

    def write(self, path: Path) -> None:
        """Write all to a file that a model's directory may hold as ``samplers.json``.

        Learned solvers go into files of their own beside it, ``solver_5.json`` for 5 evaluations.
        """
        for tuned in self.best:
            if tuned.setting.solver is not None:
                tuned.setting.solver.write(path.with_name(f"solver_{tuned.nfe}.json"))
        content = {"model": self.model, "best": self.described, "rows": [row.to_json() for row in self.rows]}
        replace(path, json.dumps(content, indent=1) + "\n")


def _budgets(nfe: Any) -> set[int]:
    if isinstance(nfe, str) or not isinstance(nfe, Iterable):
        raise ValueError(f"nfe={nfe!r} must be several budgets, e.g. (5, 10)")
    budgets = list(nfe)
    for budget in budgets:
        check_counts(nfe=budget)
    if not budgets:
        raise ValueError("nfe is empty: it must be one budget or more, e.g. (5, 10)")
    return set(map(int, budgets))


def _checked_learning(learning: Any, batch: int, budgets: Sequence[int]) -> dict[str, Any]:
    """Return complete options of :func:`psld_jax.learn`; by default four batches of the tuner's size."""
    check_kind("learning", learning, (dict, type(None)), "a dict of options of psld_jax.learn, or None")
    names = [field.name for field in dataclasses.fields(Options)]
    for name in learning or {}:
        check_choice("learning", name, names)
    options = Options(**{"batch_size": batch, "num_samples": 4 * batch, **(learning or {})})
    options.check_budget(min(budgets))
    return dataclasses.asdict(options)


def tune(
    model: Model,
    nfe: Iterable[int] = (5, 10, 20, 50),
    samplers: Sequence[str] = DEFAULT_SAMPLERS,
    *,
    num_samples: int = 128,
    candidates: int = 24,
    gradient_steps: int = 20,
    target: Array | None = None,
    features: metrics.Features | None = None,
    t_end: float | None = None,
    denoise: bool | str = True,
    seed: int = 0,
    learn: str = "none",
    learning: dict[str, Any] | None = None,
    log: Path | None = None,
    report: Callable[[Row], None] = lambda row: None,
    progress: Callable[[str], None] = lambda line: None,
) -> Tuning:
    """Choose the grid and hyper-parameters of every sampler, and the best sampler, for every budget.

    A deterministic sampler should come close to a fine solution of the probability-flow ODE from the same noise, and to
    the law of ``target``. A stochastic one should come close to that law (``evaluate.Score``). A search comes first
    (``search.search``). One of its grids is that of dynamic programming (``gits.gits_grid``). After it, a deterministic
    sampler is improved by gradient (``gradient.refine``). Between samplers the distance of twice as many samples from
    other noise decides.
    For each sampler and budget this costs about ``num_samples (candidates / 2 + 20 + gradient_steps)`` samples.

    Args:
      model: from ``psld_jax.load``.
      nfe: budgets, denoising included.
      samplers: names; ``("all",)`` means all that work for the model's diffusion.
      num_samples: the best settings are compared on so many, the first round on a quarter of them; also the batch.
      candidates: settings in the first round.
      gradient_steps: iterations of L-BFGS; 0 for none.
      target: images ``[m, H, W, C]`` in [-1, 1], best from the data; by default, samples of the fine solution.
      features: of images, for the distance, e.g. ``metrics.features("mnist")``; by default their pixels.
      t_end, denoise, seed: of the samplers.
      learn: what is learned from the best deterministic setting of every budget, beside the tuned ones: ``"none"``;
        ``"times"``, the times alone, by a longer descent (as LD3, Tong et al., 2024); ``"table"``, all coefficients
        (:func:`psld_jax.learn`). A solver is kept only where it does better on noise that it has not seen.
      learning: options of :func:`psld_jax.learn` such as ``num_samples`` and ``iterations``.
      log: a file of JSON lines with every run; a killed tuning that is started again does not repeat what it holds.
      report: called with every row as it is found.
      progress: called with a line of text after every run, which tells the best so far, and every iteration of
        learning.

    Raises:
      ValueError: for unknown samplers, counts out of range, a log of another tuning, or nothing to learn from.
    """
    build.check_model(model)
    budgets = sorted(_budgets(nfe))
    if isinstance(samplers, str) or not isinstance(samplers, Sequence) or not samplers:
        raise ValueError(f"samplers={shown(samplers)} must be several names, e.g. ('ddim',)")
    check_kind("features", features, (metrics.Features, type(None)), "one of psld_jax.metrics.features, or None")
    check_kind("log", log, (str, os.PathLike, type(None)), "a path, or None")
    check_callable("report", report, "a function of a row")
    check_callable("progress", progress, "a function of a line of text")
    check_end(t_end, denoise)
    check_counts(8, num_samples=num_samples)
    check_counts(candidates=candidates)
    check_counts(0, gradient_steps=gradient_steps)
    check_choice("learn", learn, LEARN)
    learning = _checked_learning(learning, max(num_samples // 4, 1), budgets)
    seed = check_seed(seed)
    if target is not None:
        target = as_pixels("target", target, model.image_shape)
    t_end = model.sde.t_end if t_end is None else t_end
    names = applicable(samplers, model.sde)
    least = {name: integrators.get(name).least_nfe(denoise) for name in names}
    if min(least.values()) > budgets[-1]:
        raise ValueError(
            f"nfe={tuple(budgets)} leaves nothing to tune: one step takes {min(least.values())} evaluations"
        )
    if learn != "none" and all(integrators.get(name).stochastic for name in names):
        raise ValueError(
            f"learn={learn!r} starts from a deterministic sampler, and samplers={names} are all stochastic"
        )
    belongs_to = build.tuned_for(model.config, model.sde)
    features = features or metrics.features("pixels")
    about = {"model": belongs_to, "network": model.fingerprint, "features": features.name, "num_samples": num_samples}
    about |= {"target": fingerprint([] if target is None else [target])}
    about |= {"t_end": t_end, "denoise": denoise, "seed": seed}
    trials = Journal(log, about, "a tuning")
    batch = max(num_samples // 4, 1)
    options: dict[str, Any] = {"t_end": t_end, "denoise": denoise, "batch_size": batch}
    evaluator = Evaluator(model, target=target, features=features, seed=seed, **options)
    # The gradient has noise of its own, and so have the numbers that are reported and decide between samplers: the
    # smallest of many distances owes something to luck.
    trainer, judge = evaluator.with_seed(seed + 1), evaluator.with_seed(seed + 2)

    first, fine = first_times(model.sde, t_end), fine_times(model.sde, _FINE_STEPS, t_end)
    costs = functools.cache(lambda: step_errors(model, fine, batch, seed))

    def chosen_grids(name: str, budget: int) -> list[tuple[float, ...]]:
        """Return the grids by dynamic programming: one as it is, and one of a step more, without its first.

        The state is led over the first. There are fewer where the fine solution has not so many steps.
        """
        integrator = integrators.get(name)
        n_steps = (budget - bool(denoise) - integrator.nfe_once) // integrator.nfe_per_step

        def times(count: int) -> list[float]:
            return trials.get(["gits", count], lambda: {"times": fine[cheapest(costs(), count)].tolist()})["times"]

        return [tuple(times(n_steps + led)[led:]) for led in (0, 1) if n_steps + led <= _FINE_STEPS]

    def best_of(name: str, budget: int, inherited: list[Setting]) -> Row:
        stochastic, grids = integrators.get(name).stochastic, chosen_grids(name, budget)

        def score(setting: Setting, n: int, judge: Evaluator) -> dict[str, Any]:
            return dataclasses.asdict(judge(setting, budget, n, paired=not stochastic))

        least = float("inf")

        def trial(setting: Setting, n: int, judge: Evaluator = evaluator) -> Score:
            nonlocal least
            found = Score(**trials.get(["score", setting.to_json(), budget, n], lambda: score(setting, n, judge)))
            least = min(least, found.distance)
            progress(f"{budget} NFE, {setting.describe()}: distance {found.distance:.3g}, smallest so far {least:.3g}")
            return found

        best = search(
            name,
            trial,
            num_samples=num_samples,
            candidates=candidates,
            seed=seed,
            inherited=inherited,
            grids=grids,
            starts=first,
        )
        if gradient_steps and not stochastic:
            key = ["refine", best.to_json(), budget]
            refined = trials.get(key, lambda: refine(best, trainer, budget, gradient_steps).to_json())
            best = min((best, Setting.from_json(refined)), key=lambda setting: trial(setting, num_samples).loss)
        row = Row(budget, best, trial(best, 2 * num_samples, judge))
        if not np.isfinite(row.score.distance):
            raise NotFinite(
                f"no setting of {name} with {budget} evaluations has finite samples: leave the sampler or the budget "
                "out, or look at the weights and t_end"
            )
        return row

    rows: list[Row] = []
    for name in names:
        inherited: list[Setting] = []
        for budget in (b for b in budgets if b >= least[name]):
            rows.append(best_of(name, budget, inherited))
            report(rows[-1])
            inherited = [rows[-1].setting]

    def learned(start: Setting, budget: int) -> Setting:
        if learn == "times":
            key = ["times", start.to_json(), budget]
            return Setting.from_json(trials.get(key, lambda: refine(start, trainer, budget, _TIMES_STEPS).to_json()))
        options = {"target": target, "features": features, "t_end": t_end, "denoise": denoise, "seed": seed}
        options |= learning
        place = None if log is None else Path(log).with_stem(f"{Path(log).stem}_learning_{budget}")
        return Setting.learned(learn_solver(model, budget, start, log=place, report=progress, **options).solver)

    for budget in budgets if learn != "none" else ():
        starts = [row for row in rows if row.nfe == budget and row.score.rmse is not None]
        if not starts:
            progress(f"{budget} evaluations: no deterministic sampler was tuned, so nothing is learned")
            continue
        start = min(starts, key=lambda row: row.score.loss)
        setting = learned(start.setting, budget)
        judged = functools.partial(judge, setting, budget, 2 * num_samples)
        row = Row(budget, setting, Score(**trials.get([learn, budget], lambda f=judged: dataclasses.asdict(f()))))
        if row.score.loss < start.score.loss:
            rows.append(row)
            report(row)
        else:
            progress(f"{budget} evaluations: what was learned is no better than {start.setting.describe()}")
    return Tuning(belongs_to, tuple(rows))
