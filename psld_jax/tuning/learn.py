"""Learned solvers: the coefficients of a table, fitted to a fine solution by damped least squares.

A table of few evaluations is a long way from the fine solution, but its error is a smooth function of some hundred
numbers. The problem is one of least squares, badly scaled, so it is solved by the method of Levenberg and Marquardt
(Marquardt, 1963): a step solves ``(H + damping diag H) step = -g`` with Gauss and Newton's curvature ``H``, and is
taken only where the loss falls.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psld_jax import metrics
from psld_jax._runtime.checks import NotFinite, as_pixels, check_number, check_seed
from psld_jax._runtime.errors import check_callable, check_counts, check_kind, shown
from psld_jax._runtime.journal import Journal, fingerprint, plain
from psld_jax.build import Model, check_model
from psld_jax.sampling.generate import check_end
from psld_jax.sampling.settings import Setting, choose
from psld_jax.sampling.solver import LEARNED, Solver
from psld_jax.tuning._coefficients import Coefficients, with_more_rows
from psld_jax.tuning._curvature import Loss, Objective
from psld_jax.tuning._evaluate import Evaluator, Score
from psld_jax.tuning._options import Options

Array = Any

#: Marquardt's damping at the start, at least, and by what it falls after a good step and grows after a bad one.
_DAMPING, _LEAST_DAMPING, _EASE, _STIFFEN = 1e-2, 1e-7, 4.0, 4.0
#: Tries of one iteration, each with more damping, before it gives up.
_TRIES = 8
#: Iterations without a better loss on the noise of the selection, after which learning ends.
_PATIENCE = 8
#: A loss that is better by less than this is not.
_LEAST_GAIN = 1e-4


@dataclasses.dataclass(frozen=True)
class Learned:
    """What :func:`learn` found.

    Attributes:
      solver: the learned one.
      before, after: scores of the setting where it started, and of the solver, on noise that neither has seen.
      size: numbers that were learned.
      iterations: how many it took.
    """

    solver: Solver
    before: Score
    after: Score
    size: int
    iterations: int

    @property
    def better(self) -> bool:
        """Tells whether the solver has the smaller ``Score.loss``."""
        return self.after.loss < self.before.loss


def learn(
    model: Model,
    nfe: int,
    start: Setting | Sequence[Setting] | None = None,
    *,
    free: Sequence[str] = ("tau", "A", "B"),
    steps: Sequence[int] = (),
    history: int = 4,
    consistent: bool = False,
    error: str = "pixels",
    distance: float = 0.0,
    soft: float = 0.0,
    num_samples: int = 512,
    jacobian_batches: int = 0,
    batch_size: int = 64,
    iterations: int = 40,
    target: Array | None = None,
    features: metrics.Features | None = None,
    t_end: float | None = None,
    denoise: bool | str = True,
    seed: int = 0,
    log: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Learned:
    """Learn the coefficients of a solver of ``nfe`` evaluations, from the best setting that is known.

    Its samples should end where a fine solution of the probability-flow ODE ends from the same noise. Learning makes
    the error to it small, and also the Frechet distance, if that has a weight. Of all iterations, that with the
    smallest ``error^2 excess(distance)^max(1, weight)`` on noise of its own is taken: the error alone would prefer
    blurred images. A stochastic sampler has no error: there the distance alone is made small, until it is within the
    noise of the fine solution's. That noise falls with ``num_samples``.

    With ``p`` numbers an iteration costs about ``p nfe / 2`` evaluations for each sample of its Jacobian.

    Args:
      model: from ``psld_jax.load``.
      nfe: the budget, denoising included.
      start: where to start, or several settings, each of which is learned; by default what ``sampler="auto"`` takes
        without learned solvers. A start of fewer evaluations, such as a solver that was learned for a smaller budget,
        gets further ones at its beginning, which have no effect until they are learned.
      free: what is learned of each row: ``"tau"``, the time that the network is told, ``"A"``, ``"B"``, ``"P"``,
        ``"U"``, ``"V"`` (see :class:`psld_jax.Tableau`), and for a stochastic sampler ``"R"``, the noise.
      steps: numbers of the rows that are learned, 0 the first; () for all. With ``free=("B",)`` these are corrections
        of some directions alone, as in PAS (Wang et al., 2024): a dozen numbers.
      history: predictions that a row combines, up to 16; more than 4 run in another program.
      consistent: keep what a step does where the prediction is constant; it then learns fewer numbers, and needs fewer
        samples.
      error: to the fine solution, in ``"pixels"`` or ``"features"``.
      distance: weight of the distance in the loss, ``2 log error + distance log excess``.
      soft: how far the noise that a sample starts from may move towards the fine solution's image, root mean square in
        standard deviations; small, or 0 for not at all (:func:`psld_jax.tuning._soft.moved`). It acts on the noise that
        is learned on alone; an iteration then costs about five times the samples.
      num_samples: noises that it is learned on, a multiple of ``batch_size``; as many others select, and twice as many
        others are reported on.
      jacobian_batches: batches of the noises that an iteration takes its Jacobian of, others each time; 0: all.
      batch_size: samples that run at a time.
      iterations: at most so many.
      target, features, t_end, denoise, seed: as for :func:`psld_jax.tune`; images ``[m, H, W, C]`` in [-1, 1].
      log: a file of JSON lines with every iteration; a killed run that is started again goes on from there.
      report: called with a line of text after every iteration.

    Raises:
      ValueError: for arguments out of range, an adaptive start, or a log of something else.
      NotFinite: if no start has finite samples.
    """
    check_model(model)
    check_end(t_end, denoise)
    check_counts(nfe=nfe)
    check_kind("features", features, (metrics.Features, type(None)), "one of psld_jax.metrics.features, or None")
    check_kind("log", log, (str, os.PathLike, type(None)), "the path of a file, or None")
    check_callable("report", report, "a function of a line of text")
    options = Options(
        free=free,
        steps=steps,
        history=history,
        consistent=consistent,
        error=error,
        distance=distance,
        soft=soft,
        num_samples=num_samples,
        jacobian_batches=jacobian_batches,
        batch_size=batch_size,
        iterations=iterations,
    )
    options.check_budget(nfe)
    nfe, denoise = int(nfe), plain(denoise)
    seed = check_seed(seed)
    if target is not None:
        target = as_pixels("target", target, model.image_shape)
    t_end = model.sde.t_end if t_end is None else check_number("t_end", t_end)
    starts = _starts(model, nfe, start, t_end)
    features = features or metrics.features("pixels")
    evaluator = Evaluator(
        model, target=target, features=features, t_end=t_end, denoise=denoise, seed=seed, batch_size=batch_size
    )
    about = {"diffusion": repr(model.sde), "network": model.fingerprint, "nfe": nfe, "t_end": t_end, "denoise": denoise}
    about |= {"features": features.name, "target": fingerprint([] if target is None else [target])}
    about |= {"seed": seed, **dataclasses.asdict(options)}
    about |= {"free": list(options.free), "steps": list(options.steps)}
    journal = Journal(log, about, "a learning")
    judge = evaluator.with_seed(seed + 3)
    found: list[Learned] = []
    for setting in starts:
        run = _Run(setting, evaluator, nfe, options, journal, report)
        before = judge(setting, nfe, 2 * options.num_samples, paired=run.paired)
        if not np.isfinite(before.loss):
            report(f"{setting.describe()}: its samples are not finite, so it is left out")
            continue
        theta, count = run.learned()
        known = {**about, "start": _described(setting), "iterations": count, "numbers": run.coefficients.size}
        solver = Solver(run.coefficients.table(theta), known)
        after = judge(Setting.learned(solver), nfe, 2 * options.num_samples, paired=run.paired)
        scores = {"before": dataclasses.asdict(before), "after": dataclasses.asdict(after)}
        solver = dataclasses.replace(solver, about={**known, "scores": scores})
        found.append(Learned(solver, before, after, run.coefficients.size, count))
    if not found:
        raise NotFinite(
            f"no start has finite samples with {nfe} evaluations: look at the weights, t_end, or give start"
        )
    return min(found, key=lambda one: one.after.loss)


def _starts(model: Model, nfe: int, start: Any, t_end: float) -> list[Setting]:
    """Return the settings to start from."""
    if start is None:
        return [choose(model, nfe, lambda solver: False).until(t_end, model.sde)]
    starts = [start] if isinstance(start, Setting) else start
    if isinstance(starts, str) or not isinstance(starts, Sequence) or not starts:
        raise ValueError(f"start={shown(start)} must be a psld_jax.Setting, or several")
    for one in starts:
        check_kind("start", one, Setting, "a psld_jax.Setting, or several")
    return list(starts)


def _described(setting: Setting) -> dict[str, Any]:
    """A start for a solver's file: of another learned solver only where that one started."""
    if setting.solver is None:
        return setting.to_json()
    return {"sampler": LEARNED, "nfe": setting.solver.nfe, "start": setting.solver.about.get("start")}


@dataclasses.dataclass(frozen=True)
class _Point:
    """Where an iteration ended, as the journal keeps it."""

    theta: list[float]
    damping: float
    loss: float
    other: float
    selection: float
    line: str
    ended: bool = False


class _Run:
    """Learning from one start."""

    def __init__(
        self,
        setting: Setting,
        evaluator: Evaluator,
        nfe: int,
        options: Options,
        journal: Journal,
        report: Callable[[str], None],
    ):
        table = setting.table(evaluator.model.sde, nfe, t_end=evaluator.t_end, denoise=evaluator.denoise)
        table = with_more_rows(table, nfe)
        self.paired = table.num_draws == 0
        self.coefficients = Coefficients(
            table, free=options.free, steps=options.steps, history=options.history, consistent=options.consistent
        )
        self._setting, self._journal, self._report = setting, journal, report
        self._iterations, self._batches = options.iterations, options.num_samples // options.batch_size
        self._few = min(options.jacobian_batches or self._batches, self._batches)
        weight, error = (options.distance, options.error) if self.paired else (1.0, "none")
        if options.soft and not self.paired:
            raise ValueError("soft moves noise towards one image; a stochastic sampler has many: leave soft out")
        self._train, self._select = (
            Objective(
                evaluator.with_seed(evaluator.seed + i),
                self.coefficients,
                options.num_samples,
                weight=weight,
                error=error,
                soft=soft,
            )
            for i, soft in ((1, options.soft), (2, 0.0))
        )

    def learned(self) -> tuple[np.ndarray, int]:
        """Return the best numbers, and the iterations that it took."""
        point = self._kept(-1, lambda: self._point(np.zeros(self.coefficients.size), _DAMPING))
        best, progress, since = point, point.other, 0
        for i in range(self._iterations):
            point = self._kept(i, functools.partial(self._step, point, i))
            self._report(f"{i + 1}: {point.line}")
            best = min(best, point, key=lambda one: one.selection)
            progress, since = (point.other, 0) if point.other < progress - _LEAST_GAIN else (progress, since + 1)
            if point.ended or since >= _PATIENCE:
                return np.array(best.theta), i + 1
        return np.array(best.theta), self._iterations

    def _kept(self, number: int, make: Callable[[], _Point]) -> _Point:
        """Return the point with that number: from the journal, or made and written down."""
        key = ["learn", self._setting.to_json(), number]
        return _Point(**self._journal.get(key, lambda: dataclasses.asdict(make())))

    def _step(self, point: _Point, number: int) -> _Point:
        """Make the next point. If no step lowers the loss, it is the same with more damping, for other batches."""
        objective, theta = self._train, np.array(point.theta)
        parts = [(number * self._few + i) % self._batches for i in range(self._few)]
        curvature, gradient = objective.normal_equations(theta, objective.samples(theta), parts)
        if not (np.isfinite(curvature).all() and np.isfinite(gradient).all()):
            return dataclasses.replace(point, line="the curvature is not finite")
        if not gradient.any():
            return dataclasses.replace(point, line="the distance is within the fine solution's noise", ended=True)
        # A number that moves nothing has no curvature; it stays where it is.
        scale = np.diag(curvature) + 1e-12 * max(float(np.diag(curvature).max()), 1e-300)
        damping = point.damping
        for _ in range(_TRIES):
            step = -np.linalg.solve(curvature + damping * np.diag(scale), gradient)
            loss = objective.loss(objective.samples(theta + step))
            if loss.value < point.loss:
                step, loss = self._longer(theta, step, loss)
                return self._point(theta + step, max(damping / _EASE, _LEAST_DAMPING), loss)
            damping *= _STIFFEN
        return dataclasses.replace(point, damping=damping, line="no step made the loss smaller")

    def _longer(self, theta: np.ndarray, step: np.ndarray, loss: Loss) -> tuple[np.ndarray, Loss]:
        """Double the step as long as the loss falls; return it, and the loss after it.

        The curvature of a distance is an upper bound, which makes steps short; a try costs little beside a Jacobian.
        """
        for _ in range(_TRIES if self._train.weight else 0):
            longer = self._train.loss(self._train.samples(theta + 2 * step))
            if longer.value >= loss.value:
                break
            step, loss = 2 * step, longer
        return step, loss

    def _point(self, theta: np.ndarray, damping: float, loss: Loss | None = None) -> _Point:
        loss = loss or self._train.loss(self._train.samples(theta))
        other = self._select.loss(self._select.samples(theta))
        line = f"{_said(loss)}; other noise: {_said(other)}"
        return _Point(theta.tolist(), damping, loss.value, other.value, other.selection, line)


def _said(loss: Loss) -> str:
    error = "" if loss.error is None else f"error {loss.error:.4f}, "
    return f"{error}distance {loss.score.distance:.4f} (fine solution {loss.score.floor:.4f})"
