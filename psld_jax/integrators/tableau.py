"""The table of a sampler, made of an integrator, an SDE and a grid: float64 on the host, one row per evaluation.

The stages of all steps are laid out flat and regrouped around the evaluations:

    z <- P z + Rpre xi;   q = U z + V eps(z, tau), pushed on the history;   z <- A z + sum_j B_j q_{-j} + R xi

An affine update without an evaluation is multiplied into the row before it (or, at the start of a step with
noise, into ``P``). So every sampler, its denoising step included, is the same loop around one network call: the
network is compiled once whatever the scheme, and the number of rows is the NFE.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from psld_jax._runtime.checks import MIN_TIME, TIME_SLACK, check_flag
from psld_jax._runtime.errors import check_counts, check_kind
from psld_jax.integrators import grids
from psld_jax.integrators.base import MAX_PAST, Integrator, Place, Stage
from psld_jax.integrators.baselines import check_last_step, last_stage
from psld_jax.sde import LinearSDE, check_sde, cholesky

Array = Any


@dataclasses.dataclass(frozen=True)
class Tableau:
    """A sampler that is ready to run, as float64 coefficients. Each of its ``S`` rows is one network evaluation.

    Attributes:
      tau: ``[S]`` evaluation times.
      P, Rpre, pre_draw: ``[S, K, K]``, ``[S, K, K]``, ``[S]``: the update before the evaluation and the number of the
        draw it uses (-1: none); all ``None`` in a sampler that has no such update.
      U, V: ``[S, K, K]``, the prediction ``q = U z + V eps``.
      A, B: ``[S, K, K]``, ``[S, H, K, K]``: the update after it, newest prediction first.
      R, post_draw: ``[S, K, K]``, ``[S]``: its noise and the number of the draw; ``None`` in a sampler without.
      last_rows: ``[num_steps]`` integers, the row with which each step ends.
      times: ``[num_steps + 1]`` forward time before the first step and after each (0 after the denoising step).
      num_draws: total draws of noise.
      lead: the time where the grid starts, and the matrix ``[K, K]`` in ``P[0]`` that takes a state of ``t = 1`` there;
        ``None`` if the state is that of the first time.
    """

    tau: Array
    P: Array | None
    Rpre: Array | None
    pre_draw: Array | None
    U: Array
    V: Array
    A: Array
    B: Array
    R: Array | None
    post_draw: Array | None
    last_rows: Array
    times: Array
    num_draws: int
    lead: tuple[Array, Array] | None = None

    @property
    def nfe(self) -> int:
        """Exact number of network evaluations, one for each row."""
        return len(self.tau)

    @property
    def num_steps(self) -> int:
        """Number of steps of the grid, plus one if there is a denoising step."""
        return len(self.last_rows)

    @property
    def num_blocks(self) -> int:
        """Number of blocks K."""
        return self.A.shape[-1]

    def ends(self) -> np.ndarray:
        """Ends of steps, ``[S]``: at the last row of a step its number, from 1, and 0 elsewhere."""
        # Also of a table that is traced, as that of the tuner's gradient is.
        is_last = self.last_rows == np.arange(self.nfe)[:, None]
        return (is_last * np.arange(1, self.num_steps + 1)).sum(axis=1)

    def rows(self) -> dict[str, Array | None]:
        """Return the fields with one entry a row, ``[S, ...]``: what the scan runs over."""
        return {name: getattr(self, name) for name in _ROW_FIELDS}


_ROW_FIELDS = ("tau", "P", "Rpre", "pre_draw", "U", "V", "A", "B", "R", "post_draw")
_DATA_FIELDS = [*_ROW_FIELDS, "last_rows", "times", "lead"]
jax.tree_util.register_dataclass(Tableau, data_fields=_DATA_FIELDS, meta_fields=["num_draws"])


class _Row:
    """One evaluation with the affine updates before and after it, while they are being merged."""

    def __init__(self, k: int):
        self.k = k
        self.P, self.Rpre = np.eye(k), None
        self.tau: float | None = None
        self.U, self.V = np.zeros((k, k)), np.eye(k)
        self.A, self.B, self.R = np.eye(k), [], None

    def absorb(self, stage: Stage) -> None:
        if len(stage.A) != self.k:
            raise ValueError(f"a stage has matrices of {len(stage.A)} blocks, and the diffusion has {self.k}")
        if stage.tau is not None:
            self.tau = float(stage.tau)
            self.U = self.U if stage.U is None else stage.U
            self.V = self.V if stage.V is None else stage.V
        if self.tau is None:
            if stage.B:
                raise ValueError("a step must evaluate the network before it uses a prediction")
            self.P, self.Rpre = stage.A @ self.P, _merge(stage.A, self.Rpre, stage.R)
            return
        self.A, self.R = stage.A @ self.A, _merge(stage.A, self.R, stage.R)
        depth = max(len(self.B), len(stage.B))
        zero = np.zeros((self.k, self.k))
        old, new = ([*m, *[zero] * (depth - len(m))] for m in (self.B, stage.B))
        self.B = [stage.A @ o + n for o, n in zip(old, new, strict=True)]


def _merge(a: np.ndarray, first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    """Merge the noise of two updates without an evaluation between: one Gaussian with the summed covariance."""
    if first is None:
        return second
    first = a @ first
    if second is None:
        return first
    return cholesky(first @ first.T + second @ second.T)


def _rows_of_step(stages: list[Stage], k: int) -> list[_Row]:
    rows = [_Row(k)]
    for stage in stages:
        if stage.tau is not None and rows[-1].tau is not None:
            rows.append(_Row(k))
        rows[-1].absorb(stage)
    if rows[-1].tau is None:
        raise ValueError("an integrator must evaluate the network at least once per step")
    return rows


def tabulate(
    integrator: Integrator,
    sde: LinearSDE,
    grid: Array,
    denoise: bool | str = True,
    *,
    analytic_start: bool = False,
    resample: int = 1,
    jump: int = 1,
) -> Tableau:
    """Compute every coefficient of a sampler on the host, float64.

    Args:
      integrator: from ``psld_jax.integrators.get``.
      sde: the diffusion the network was trained for.
      grid: descending forward times ``[N + 1]`` in ``(0, 1]``.
      denoise: add the final step of :func:`denoising`; ``"euler"`` or ``"exponential"`` says which.
      analytic_start: the state is noise of ``t = 1``, whatever the grid starts at. It is led to there as if the data
        were Gaussian, by :meth:`psld_jax.sde.LinearSDE.gaussian_flow`, a product before the first evaluation:
        the analytical first step of Dockhorn et al. (NeurIPS 2022). Their standard deviation is ``sde.data_std``, or 1.
        Otherwise the state is noise of the time where the grid starts.
      resample: take every stretch of the grid so many times, the forward process leading back to its start in between
        (RePaint, Lugmayr et al., 2022). So unknown pixels can come to agree with known ones. NFE grow as much.
      jump: steps in a stretch.

    Raises:
      ValueError: for an invalid grid, an integrator that does not apply to ``sde``, or counts below 1.
    """
    check_kind("integrator", integrator, Integrator, "one of psld_jax.integrators.get")
    check_sde(sde)
    check_last_step(denoise)
    check_flag("analytic_start", analytic_start)
    check_counts(resample=resample, jump=jump)
    grid = grids.validate(grid)
    steps, times, past = [], [grid[0]], 0
    for start in range(0, len(grid) - 1, jump):
        stop = min(start + jump, len(grid) - 1)
        for repeat in range(resample):
            if repeat:
                past = start  # predictions from before the jump are of another path
            for i in range(start, stop):
                nodes = grid[max(i - MAX_PAST, past) : i][::-1]
                place = Place(i, len(grid) - 1 + bool(denoise))
                stages = integrator.stages(sde, grid[i], grid[i + 1], nodes, place)
                back = [_forward_stage(sde, grid[stop], grid[start])] if repeat and i == start else []
                steps.append([*back, *stages])
                times.append(grid[i + 1])
    if denoise:
        start, noise = integrator.approach(sde, grid[-1], Place(len(grid) - 1, len(grid)))
        steps.append([*noise, last_stage(sde, start, denoise, stochastic=integrator.stochastic and not integrator.ode)])
        times.append(0.0)
    table = _assemble(steps, np.array(times), sde.num_blocks)
    _check_rows(integrator, table)
    if analytic_start and grid[0] < 1:
        return _led(table, sde.gaussian_flow(grid[0], np.float64(1.0), sde.data_std or 1.0))
    return table


def _check_rows(integrator: Integrator, table: Tableau) -> None:
    """Raise a ``ValueError`` for coefficients that are not finite, and evaluations where no network knows the time."""
    rows = {name: value for name, value in table.rows().items() if value is not None}
    for i, finite in enumerate(np.all([np.isfinite(v.reshape(table.nfe, -1)).all(1) for v in rows.values()], axis=0)):
        if not finite:
            names = ", ".join(name for name, value in rows.items() if not np.isfinite(value[i]).all())
            at = f"the evaluation at t={table.tau[i]:.6g}, number {i + 1} of {table.nfe}"
            raise ValueError(f"coefficients {names} of {integrator.name!r} are not finite for {at}")
    outside = (table.tau < MIN_TIME) | (table.tau > 1 + TIME_SLACK)
    if outside.any():
        at = f"t={table.tau[outside.argmax()]:.6g}"
        raise ValueError(f"{integrator.name!r} evaluates the network at {at}, outside of [{MIN_TIME:g}, 1]")


def from_prior(table: Tableau, sde: LinearSDE) -> Tableau:
    """Return the table for a state of the prior where its grid starts below ``t = 1``: its noise becomes that of there.

    That is ``z <- L_t L_1^-1 z`` before the first evaluation, as k-diffusion draws ``sigma_0 xi``, without an
    evaluation. Where the prior is the law that stays, or keeps data of unit variance, it is that of every time.
    """
    first = float(table.times[0])
    if np.isclose(first, 1, rtol=1e-9) or sde.stationary or sde.variance_preserving:
        return table
    return _led(table, sde.factor(np.float64(first)) @ np.linalg.inv(cholesky(sde.prior_cov())))


def _led(table: Tableau, matrix: np.ndarray) -> Tableau:
    """Return the table for a state of ``t = 1``, which ``matrix`` takes to the start of the grid."""
    table = with_first_updates(table)
    assert table.P is not None
    p = table.P.copy()
    p[0] = p[0] @ matrix
    return dataclasses.replace(table, P=p, times=np.append(1.0, table.times[1:]), lead=(table.times[0], matrix))


def with_first_updates(table: Tableau) -> Tableau:
    """Return the same sampler with an update before each evaluation, which leaves the state as it is if it is new."""
    if table.P is not None:
        return table
    n, k = table.nfe, table.num_blocks
    before = {"P": np.tile(np.eye(k), (n, 1, 1)), "Rpre": np.zeros((n, k, k)), "pre_draw": np.full(n, -1)}
    return dataclasses.replace(table, **before)


def _forward_stage(sde: LinearSDE, s: float, t: float) -> Stage:
    """Return the forward process from ``s`` to ``t > s``: an affine update with noise, without an evaluation."""
    return Stage(A=sde.transition(t, s), R=cholesky(sde.noise_cov(t, s)))


def denoising(sde: LinearSDE, t_end: float, stochastic: bool, how: bool | str = True) -> Tableau:
    """Make the final step alone, from ``t_end`` to 0 without noise, 1 evaluation; see ``baselines.last_stage``.

    The Euler step, which is the original's, uses the drift of the reverse SDE after stochastic samplers, and that of
    the probability-flow ODE after deterministic ones.
    """
    stage = last_stage(sde, t_end, how, stochastic=stochastic)
    return _assemble([[stage]], np.array([t_end, 0.0]), sde.num_blocks)


def _assemble(steps: list[list[Stage]], times: np.ndarray, k: int) -> Tableau:
    by_step = [_rows_of_step(stages, k) for stages in steps]
    rows = [row for step in by_step for row in step]
    draws, zero = 0, np.zeros((k, k))
    pre, post = np.full(len(rows), -1), np.full(len(rows), -1)
    for i, row in enumerate(rows):
        for numbers, noise in ((pre, row.Rpre), (post, row.R)):
            if noise is not None:
                numbers[i], draws = draws, draws + 1
    depth = max(len(row.B) for row in rows)
    has_pre = any(row.Rpre is not None or not np.array_equal(row.P, np.eye(k)) for row in rows)
    has_post = any(row.R is not None for row in rows)

    def stack(name: str) -> np.ndarray:
        return np.stack([zero if getattr(row, name) is None else getattr(row, name) for row in rows])

    return Tableau(
        tau=np.array([row.tau for row in rows], np.float64),
        P=stack("P") if has_pre else None,
        Rpre=stack("Rpre") if has_pre else None,
        pre_draw=pre if has_pre else None,
        U=stack("U"),
        V=stack("V"),
        A=stack("A"),
        B=np.stack([np.stack([*row.B, *[zero] * (depth - len(row.B))]) for row in rows]),
        R=stack("R") if has_post else None,
        post_draw=post if has_post else None,
        last_rows=np.cumsum([len(step) for step in by_step]) - 1,
        times=times,
        num_draws=draws,
    )
