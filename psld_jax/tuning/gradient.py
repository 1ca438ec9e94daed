"""A time grid, and lambda, by gradient: what the samples lack, differentiated through the scan.

Reverse mode gives the gradient with respect to every entry of the table, in one backward pass whatever their number.
The table is made on the host, from coefficients that are exact to 1e-12, so that central differences give its
derivatives with respect to the times; moving one time changes a few steps only, and the others are remembered.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from psld_jax import grids
from psld_jax.settings import Setting
from psld_jax.solve import sample
from psld_jax.tableau import Tableau, tabulate
from psld_jax.tuning.evaluate import Evaluator, excess

Array = Any

#: A grid is described by at most so many segments; what is between them is interpolated (``grids.resample``).
_SEGMENTS = 12
#: Central differences move a parameter by so much (a time by this part of a step): their error is of its square.
_STEP = 1e-4
#: Hyper-parameters that a table depends on smoothly.
SMOOTH = ("lam",)
#: How far the search goes from where it starts, in every parameter: a segment may become 20 times longer or shorter.
_REACH = 3.0


def refine(setting: Setting, evaluator: Evaluator, nfe: int, steps: int = 20) -> Setting:
    """``setting`` of a deterministic sampler with the grid (and ``lam``) that minimise ``Score.loss``.

    L-BFGS over the logarithms of the lengths of at most 12 segments in ``log t``, and over ``lam`` where there is one.

    Args:
      setting: the start.
      evaluator: its first ``batch_size`` noises, fine solution and target are what the loss is taken of.
      nfe: the budget, denoising included.
      steps: iterations.

    Returns:
      The best setting that was met, with its times in ``grid``; ``setting`` itself if none was better.
    """
    sde, t_end, denoise = evaluator.model.sde, evaluator.t_end, evaluator.denoise
    integrator = setting.integrator()
    start = setting.table(sde, nfe - denoise, t_end=t_end, denoise=False).times
    n_steps, smooth = len(start) - 1, [name for name in SMOOTH if name in integrator.hyper]
    segments = min(n_steps, _SEGMENTS)
    lengths = -np.diff(np.log(grids.resample(start, segments)))
    first = np.concatenate([np.log(lengths), [integrator.hyper[name] for name in smooth]])
    remembering = dataclasses.replace(integrator, fn=functools.lru_cache(8192)(integrator.fn))

    def times(theta: np.ndarray) -> np.ndarray:
        weights = np.exp(theta[:segments] - theta[:segments].max())
        knots = np.exp(np.log(t_end) * np.concatenate([[0.0], np.cumsum(weights) / weights.sum()]))
        return grids.resample(np.append(knots[:-1], t_end), n_steps)

    def table(grid: np.ndarray, values: np.ndarray) -> Tableau:
        hyper = {**integrator.hyper, **dict(zip(smooth, map(float, values), strict=True))}
        return tabulate(dataclasses.replace(remembering, hyper=hyper), sde, grid, denoise)

    z_T, exact = evaluator.noise(), evaluator.exact(evaluator.batch_size)
    floor = evaluator.floor(evaluator.batch_size)
    best, best_loss = first, np.inf

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, best_loss
        grid, values = times(theta), theta[segments:]
        here = table(grid, values)
        loss, slopes = _loss_and_slopes(
            _floats(here), evaluator.model.eps_fn, here, z_T, exact, evaluator.target(), floor, evaluator.features
        )
        slopes = jax.tree.map(np.asarray, slopes)

        def derivative(move: Callable[[float], Tableau], step: float) -> float:
            up, down = _floats(move(step)), _floats(move(-step))
            return float(sum(np.sum(slopes[k] * (up[k] - down[k])) for k in slopes)) / (2 * step)

        by_time = np.zeros(len(grid))
        for i in range(1, len(grid) - 1):  # the ends stay where they are
            unit = np.eye(len(grid))[i]
            step = _STEP * (grid[i] - grid[i + 1])
            by_time[i] = derivative(lambda h, unit=unit: table(grid + h * unit, values), step)
        by_value = [
            derivative(lambda h, unit=unit: table(grid, values + h * unit), _STEP) for unit in np.eye(len(values))
        ]
        shifts = _STEP * np.eye(segments, len(theta))
        by_segment = [by_time @ (times(theta + shift) - times(theta - shift)) / (2 * _STEP) for shift in shifts]
        gradient = np.array([*by_segment, *by_value])
        if not (np.isfinite(loss) and np.isfinite(gradient).all()):
            return 1e3, np.zeros_like(theta)
        if loss < best_loss:
            best, best_loss = theta, float(loss)
        return float(loss), gradient

    bounds = np.stack([first - _REACH, first + _REACH], axis=1)
    options = {"maxiter": steps, "maxfun": 2 * steps}
    minimize(objective, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    hyper = {name: float(value) for name, value in zip(smooth, best[segments:], strict=True)}
    return dataclasses.replace(setting, grid=tuple(map(float, times(best))), hyper={**setting.hyper, **hyper})


def _floats(table: Tableau) -> dict[str, np.ndarray]:
    """The coefficients of a table: its floating rows."""
    return {k: v for k, v in table.rows().items() if v is not None and np.issubdtype(v.dtype, np.floating)}


@functools.partial(jax.jit, static_argnames="features")
def _loss_and_slopes(rows, eps_fn, table, z_T, exact, target, floor, features):
    """The logarithm of ``Score.loss`` of the samples, and its derivatives with respect to every coefficient."""

    def loss(rows: dict[str, Array]) -> Array:
        x = sample(eps_fn, dataclasses.replace(table, **rows), z_T, remat=True)[0]
        distance = target.distance(features(jnp.clip(x, -1, 1)))
        return jnp.log(jnp.mean((x - exact) ** 2)) + jnp.log(excess(distance, floor))

    return jax.value_and_grad(loss)(rows)
