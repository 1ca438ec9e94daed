"""Finding a time grid, and lambda, by the gradient of the loss of the samples, differentiated through the scan.

Reverse mode gives the gradient with respect to every entry of the table, in one backward pass whatever their number.
The table is made on the host, from coefficients that are exact to 1e-12, so that central differences give its
derivatives with respect to the times; moving one time changes a few steps only, and the others are remembered.

One compiled program serves every sampler and budget: rows and history are filled up, as in the loop.
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

from psld_jax._runtime import xla
from psld_jax.integrators import grids
from psld_jax.integrators.tableau import Tableau, tabulate
from psld_jax.sampling.loop import differentiable
from psld_jax.sampling.rows import padded
from psld_jax.sampling.settings import Setting
from psld_jax.tuning._evaluate import Evaluator, excess

Array = Any

#: A grid is described by at most so many segments; what is between them is interpolated (``grids.resample``).
_SEGMENTS = 12
#: Central differences move a parameter by so much (a time by this part of a step): their error is of its square.
_STEP = 1e-4
#: Hyper-parameters that a table depends on smoothly.
SMOOTH = ("lam",)
#: How far the search goes from where it starts, in every parameter: a segment may become 20 times longer or shorter.
_REACH = 3.0
#: The smallest capacity for rows, see ``sampling.rows``. Budgets up to it share one program, and those up to twice it,
#: and so on. A row that is filled up costs the backward pass its state and history in memory.
_ROWS = 16
#: Coefficients of the table of a sampler without noise.
_COEFFICIENTS = ("tau", "P", "U", "V", "A", "B")
#: The loss where there is none, such as after an overflow: the line search turns back.
_HOPELESS = 1e3


def refine(setting: Setting, evaluator: Evaluator, nfe: int, steps: int = 20) -> Setting:
    """Improve ``setting`` of a deterministic sampler: find the grid (and ``lam``) with the least loss, by L-BFGS.

    Args:
      setting: the start.
      evaluator: its first ``batch_size`` noises, fine solution and target are what the loss is taken of.
      nfe: the budget, denoising included.
      steps: iterations.

    Returns:
      The best setting that was met, with its times in ``grid``.
    """
    objective = Objective(setting, evaluator, nfe)
    best, best_loss = objective.start, np.inf

    def watched(theta: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, best_loss
        loss, gradient = objective(theta)
        if not (np.isfinite(loss) and np.isfinite(gradient).all()):
            return _HOPELESS, np.zeros_like(theta)
        if loss < best_loss:
            best, best_loss = theta.copy(), loss
        return loss, gradient

    bounds = np.stack([objective.start - _REACH, objective.start + _REACH], axis=1)
    options = {"maxiter": steps, "maxfun": 2 * steps}
    minimize(watched, objective.start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return objective.setting(best)


class Objective:
    """``theta -> (loss, gradient)`` with the loss ``log Score.loss``.

    ``theta [p]``, float64, holds the logarithms of the lengths of at most 12 segments in ``log t``, before them that of
    the way to the start of the grid if the state is led there, and ``lam`` where there is one.

    Attributes:
      start: ``theta`` of the setting that was given.
    """

    def __init__(self, setting: Setting, evaluator: Evaluator, nfe: int):
        self._setting, self._evaluator, integrator = setting, evaluator, setting.integrator()
        sde, self._t_end, self._denoise = evaluator.model.sde, evaluator.t_end, evaluator.denoise
        self._led = setting.t_start < 1
        times = setting.table(sde, nfe - bool(self._denoise), t_end=self._t_end, denoise=False).times
        times = np.append(setting.t_start, times[1:])
        self._n_steps, self._smooth = len(times) - 1, [name for name in SMOOTH if name in integrator.hyper]
        knots = grids.resample(times, min(self._n_steps, _SEGMENTS))
        lengths = -np.diff(np.log(np.append(1.0, knots) if self._led else knots))
        self._segments = len(lengths)
        self.start = np.concatenate([np.log(lengths), [integrator.hyper[name] for name in self._smooth]])
        # Moving one time changes a few steps only.
        self._integrator = dataclasses.replace(integrator, fn=functools.lru_cache(8192)(integrator.fn))

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        evaluator, n = self._evaluator, self._evaluator.batch_size
        times, values = self._times(theta), theta[self._segments :]
        table, noise = self._table(times, values), evaluator.noise()
        rows, count = padded(table, noise[0].dtype, _ROWS)
        loss, slopes = _loss_and_slopes(
            {name: rows[name] for name in _COEFFICIENTS},
            evaluator.model.eps_fn,
            rows,
            count,
            noise,
            evaluator.exact(n),
            evaluator.target(),
            evaluator.floor(n),
            evaluator.features.fn,
        )
        slopes = {
            name: np.asarray(slopes[name], np.float64)[tuple(map(slice, values.shape))]  # without what was filled up
            for name, values in _coefficients(table).items()
        }

        def derivative(move: Callable[[float], Tableau], step: float) -> float:
            up, down = _coefficients(move(step)), _coefficients(move(-step))
            return float(sum(np.sum(slopes[k] * (up[k] - down[k])) for k in slopes)) / (2 * step)

        by_time = np.zeros(len(times))  # the end stays where it is, and the start unless the state is led there
        for i, unit in list(enumerate(np.eye(len(times))))[not self._led : -1]:
            step = _STEP * (times[i] - times[i + 1])
            by_time[i] = derivative(lambda h, unit=unit: self._table(times + h * unit, values), step)
        by_value = [
            derivative(lambda h, unit=unit: self._table(times, values + h * unit), _STEP)
            for unit in np.eye(len(values))
        ]
        shifts = _STEP * np.eye(self._segments, len(theta))
        moved = [(self._times(theta + shift) - self._times(theta - shift)) / (2 * _STEP) for shift in shifts]
        return float(loss), np.array([*(by_time @ velocity for velocity in moved), *by_value])

    def setting(self, theta: np.ndarray) -> Setting:
        """Return the setting that ``theta`` stands for.

        ``theta`` is a vector ``[p]``.
        """
        hyper = {**self._setting.hyper, **self._hyper(theta[self._segments :])}
        times = tuple(map(float, self._times(theta)))
        return dataclasses.replace(self._setting, grid=times, hyper=hyper, t_start=times[0])

    def _hyper(self, values: np.ndarray) -> dict[str, float]:
        return dict(zip(self._smooth, map(float, values), strict=True))

    def _times(self, theta: np.ndarray) -> np.ndarray:
        weights = np.exp(theta[: self._segments] - theta[: self._segments].max())
        knots = np.exp(np.log(self._t_end) * np.concatenate([[0.0], np.cumsum(weights) / weights.sum()]))
        return grids.resample(np.append(knots[self._led : -1], self._t_end), self._n_steps)

    def _table(self, times: np.ndarray, values: np.ndarray) -> Tableau:
        hyper = {**self._integrator.hyper, **self._hyper(values)}
        integrator = dataclasses.replace(self._integrator, hyper=hyper)
        return tabulate(integrator, self._evaluator.model.sde, times, self._denoise, analytic_start=self._led)


def _coefficients(table: Tableau) -> dict[str, np.ndarray]:
    """Return the coefficients of a table that it has, ``[nfe, ...]``."""
    return {name: values for name in _COEFFICIENTS if (values := getattr(table, name)) is not None}


@functools.partial(xla.jit, what="the gradient of the tuner", static_argnames="features")
def _loss_and_slopes(coefficients, eps_fn, rows, count, z_T, exact, target, floor, features):
    """Return the logarithm of ``Score.loss`` of the samples, and its derivatives by every coefficient."""

    def loss(coefficients: dict[str, Array]) -> Array:
        x = differentiable(eps_fn, {**rows, **coefficients}, count, z_T)[0]
        distance = target.distance(features(jnp.clip(x, -1, 1)))
        error = jnp.mean((x - exact) ** 2).astype(distance.dtype)
        return jnp.log(error) + jnp.log(excess(distance, floor))

    return jax.value_and_grad(loss)(coefficients)
