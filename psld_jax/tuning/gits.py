"""Time grids by dynamic programming on the trajectory of a fine solution (Chen et al., 2024: GITS)."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from psld_jax import integrators
from psld_jax._runtime import random, xla
from psld_jax._runtime.checks import check_finite, check_number, check_seed
from psld_jax._runtime.errors import check_counts
from psld_jax.build import Model, check_model
from psld_jax.integrators._noise_frame import data_step
from psld_jax.integrators.exponential import make_prediction
from psld_jax.integrators.tableau import tabulate
from psld_jax.sampling.generate import check_end
from psld_jax.sampling.loop import sample
from psld_jax.sde import LinearSDE

Array = Any

#: What the fine solution is made with.
_TEACHER = integrators.get("predictor_corrector", order=3, prediction="data", variable="log_snr")
#: Candidates are equal in ``sigma^(1/rho)``, as in the paper, below this level: above it all noise is alike.
_RHO, _MOST = 7.0, 200.0


def candidates(sde: LinearSDE, count: int, t_end: float | None = None) -> np.ndarray:
    """Return the times of the fine solution, from 1 to ``t_end``, float64 ``[count + 1]``."""
    t_end = sde.t_end if t_end is None else t_end
    ends = min(float(sde.sigma(np.float64(1.0))), _MOST), float(sde.sigma(np.float64(t_end)))
    levels = np.linspace(ends[0] ** (1 / _RHO), ends[1] ** (1 / _RHO), count + 1) ** _RHO
    times = sde.time(levels[1:-1])
    return np.array([1.0, *times, t_end])


def step_errors(model: Model, times: Array, n: int = 64, seed: int = 0) -> np.ndarray:
    """Return errors of one first-order step between any two times of a fine solution, float64 ``[N + 1, N + 1]``.

    Entry ``[i, j]``, ``j > i``, is the root mean square over ``n`` samples of what the step from the fine solution at
    ``times[i]``, exact for a constant ``E[x_0 | z]`` (Euler in ``sigma``), misses it by at ``times[j]``, in the
    positions, in units of ``alpha``; infinite for other pairs.

    Raises:
      NotFinite: if the fine solution is not finite.
    """
    sde, times = model.sde, np.asarray(times, np.float64)
    keys = random.sample_keys(jax.random.key(seed), np.arange(n))
    z_T = sde.prior_sample(keys, (n, *model.image_shape))
    path = sample(model.eps_fn, tabulate(_TEACHER, sde, times, denoise=False), z_T, return_trajectory=True)
    path = [np.asarray(leaf, np.float64) for leaf in path]
    check_finite("the fine solution", [np.moveaxis(leaf, 0, 1) for leaf in path], n, "Look at the weights and t_end")
    prediction, costs = make_prediction(sde, "data"), np.full((len(times),) * 2, np.inf)
    for i, t in enumerate(times[:-1]):
        z = sde.state(*(leaf[i].astype(np.float32) for leaf in path))
        eps = [np.asarray(leaf, np.float64) for leaf in _evaluate(model.eps_fn, z, np.float32(t))]
        # The first row is E[x_0 | z].
        u, v = prediction.U(t)[0], prediction.V(t)[0]
        x_0 = sum(a * leaf[i] + b * e for a, b, leaf, e in zip(u, v, path, eps, strict=True))
        for j in range(i + 1, len(times)):
            gain, pull = data_step(sde, t, times[j])
            guess = pull[0, 0] * x_0 + sum(g * leaf[i] for g, leaf in zip(gain[0], path, strict=True))
            costs[i, j] = np.sqrt(np.mean((guess - path[0][j]) ** 2)) / float(sde.mean(times[j])[0, 0])
    return costs


_evaluate = xla.jit(lambda eps_fn, z, t: eps_fn(z, t))


def cheapest(costs: Array, n_steps: int, growth: float = 1.15) -> list[int]:
    """Return the indices ``[n_steps + 1]`` of the cheapest way from first to last in so many steps.

    ``costs`` is ``[N + 1, N + 1]``; each step makes those after it ``growth`` times as dear. By dynamic programming
    over the number of steps that are left.

    Raises:
      ValueError: unless ``1 <= n_steps <= N``.
    """
    costs = np.asarray(costs, np.float64)
    check_counts(n_steps=n_steps)
    if n_steps > len(costs) - 1:
        raise ValueError(f"n_steps={n_steps} is more than the {len(costs) - 1} steps of the fine solution")
    left, choices = costs[:, -1], []
    for _ in range(n_steps - 1):
        total = costs + growth * left[None, :]
        choices.append(total.argmin(axis=1))
        left = total.min(axis=1)
    way = [0]
    for choice in reversed(choices):
        way.append(int(choice[way[-1]]))
    return [*way, len(costs) - 1]


def gits_grid(
    model: Model,
    n_steps: int,
    *,
    n: int = 64,
    fine: int = 60,
    growth: float = 1.15,
    t_end: float | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Choose a grid of ``n_steps`` steps from those of a fine solution, float64 ``[n_steps + 1]`` (Chen et al., 2024).

    First-order steps between any two times of the fine solution cost what they miss it by, and dynamic programming
    finds the cheapest way from noise to data in so many steps. For any diffusion; it goes where a grid is given, such
    as ``psld_jax.generate(model, "ipndm", nfe=6, grid=gits_grid(model, 5))``: 5 steps and the denoising step.

    Args:
      model: from ``psld_jax.load``.
      n_steps: steps of the grid: evaluations, without the denoising step, of a sampler with one a step.
      n: samples of the fine solution; at most so many evaluations times ``2 fine`` are made, once.
      fine: its steps, at least ``n_steps``.
      growth: how much dearer errors are with each step; above 1, as the paper has it, it favours care near the data.
      t_end: where the grid ends; the diffusion's own by default.
      seed: of the noise.

    Raises:
      ValueError: for counts out of range.
    """
    check_model(model)
    check_counts(n_steps=n_steps, n=n, fine=fine)
    check_number("growth", growth, 0, strict=True)
    check_end(t_end, False)
    seed = check_seed(seed)
    times = candidates(model.sde, max(fine, 2), t_end)
    return times[cheapest(step_errors(model, times, n, seed), n_steps, growth)]
