"""From integrator, SDE and grid to one table: float64 on the host, one row per network evaluation.

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

from psld_jax import grids
from psld_jax.integrators.base import Integrator, Stage
from psld_jax.integrators.baselines import euler_stage
from psld_jax.sde import LinearSDE, cholesky

Array = Any


@dataclasses.dataclass(frozen=True)
class Tableau:
    """A sampler ready to run. Rows are network evaluations, ``S`` in all; float64 (cast at the border).

    Attributes:
      tau: ``[S]`` evaluation times.
      P, Rpre: ``[S, K, K]``, the update before the evaluation.
      U, V: ``[S, K, K]``, the prediction ``q = U z + V eps``.
      A, R: ``[S, K, K]``, the update after it; B: ``[S, H, K, K]``, newest prediction first.
      pre_draw, post_draw: ``[S]`` integers, the number of the draw used, or -1 for none.
      step_end: ``[S]`` whether a step (or the denoising step) ends with this row.
      num_draws, num_steps: total draws; steps of the grid plus the denoising step.
    """

    tau: Array
    P: Array
    Rpre: Array
    U: Array
    V: Array
    A: Array
    B: Array
    R: Array
    pre_draw: Array
    post_draw: Array
    step_end: tuple[bool, ...]
    num_draws: int
    num_steps: int
    num_blocks: int
    has_pre: bool
    has_post: bool

    @property
    def nfe(self) -> int:
        """Exact number of network evaluations."""
        return len(self.step_end)


jax.tree_util.register_dataclass(
    Tableau,
    data_fields=["tau", "P", "Rpre", "U", "V", "A", "B", "R", "pre_draw", "post_draw"],
    meta_fields=["step_end", "num_draws", "num_steps", "num_blocks", "has_pre", "has_post"],
)


class _Row:
    """One evaluation with the affine updates before and after it, while they are being merged."""

    def __init__(self, k: int):
        self.k = k
        self.P, self.Rpre = np.eye(k), None
        self.tau: float | None = None
        self.U, self.V = np.zeros((k, k)), np.eye(k)
        self.A, self.B, self.R = np.eye(k), [], None
        self.step_end = False

    def absorb(self, stage: Stage) -> None:
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
    """Noise of two updates in a row without an evaluation between: one Gaussian with the summed covariance."""
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
    rows[-1].step_end = True
    return rows


def tabulate(integrator: Integrator, sde: LinearSDE, grid: Array, denoise: bool = True) -> Tableau:
    """Compute every coefficient of a sampler on the host, float64.

    Args:
      integrator: from ``psld_jax.integrators.get``.
      sde: the diffusion the network was trained for.
      grid: descending forward times ``[N + 1]`` in ``(0, 1]``.
      denoise: add the original's final step: one Euler step from ``t_end`` to 0 without noise, with the
        reverse-SDE drift for stochastic samplers and the ODE drift for deterministic ones (1 evaluation).

    Raises:
      ValueError: for an invalid grid, or an integrator that does not apply to ``sde``.
    """
    grid = grids.validate(grid)
    k = sde.num_blocks
    rows: list[_Row] = []
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        rows += _rows_of_step(integrator.stages(sde, t, s), k)
    if denoise:
        rows += _rows_of_step([euler_stage(sde, grid[-1], grid[-1], stochastic=integrator.stochastic)], k)
    draws, zero = 0, np.zeros((k, k))
    pre, post = np.full(len(rows), -1), np.full(len(rows), -1)
    for i, row in enumerate(rows):
        for numbers, noise in ((pre, row.Rpre), (post, row.R)):
            if noise is not None:
                numbers[i], draws = draws, draws + 1
    depth = max(len(row.B) for row in rows)

    def stack(name: str) -> np.ndarray:
        return np.stack([zero if getattr(row, name) is None else getattr(row, name) for row in rows])

    return Tableau(
        tau=np.array([row.tau for row in rows], np.float64),
        P=stack("P"),
        Rpre=stack("Rpre"),
        U=stack("U"),
        V=stack("V"),
        A=stack("A"),
        B=np.stack([np.stack([*row.B, *[zero] * (depth - len(row.B))]) for row in rows]),
        R=stack("R"),
        pre_draw=pre,
        post_draw=post,
        step_end=tuple(row.step_end for row in rows),
        num_draws=draws,
        num_steps=len(grid) - 1 + denoise,
        num_blocks=k,
        has_pre=any(row.Rpre is not None or not np.array_equal(row.P, np.eye(k)) for row in rows),
        has_post=any(row.R is not None for row in rows),
    )
