"""Loss, gradient and curvature of the samples as functions of a table's coefficients, by forward mode.

The loss is that of the tuner (``_evaluate.Score.loss``) in its logarithm, with a weight for the distance:

    log mean |x - x*|^2  +  weight log excess(distance)

A coefficient of row ``k`` moves only what comes after it, so its column of the Jacobian starts there; some 16 columns
share one run. Gauss and Newton's curvature of the error is exact. That of the distance is an upper bound: the distance
of two Gaussians is the mean square of ``x - T(x)`` with their linear transport ``T`` (Olkin & Pukelsheim, 1982), which
moves with the samples and is held fixed here, as a surrogate that touches the distance from above.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks, metrics
from psld_jax._runtime import xla
from psld_jax._runtime.device import to_device
from psld_jax.integrators.tableau import Tableau
from psld_jax.sampling.loop import carry_after, draws, step_row
from psld_jax.sampling.rows import padded
from psld_jax.tuning._coefficients import Coefficients
from psld_jax.tuning._evaluate import Evaluator, Score, excess
from psld_jax.tuning._soft import moved

Array = Any

#: Columns of the Jacobian that share one run.
_COLUMNS = 16


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss that learning makes small, and its parts.

    Attributes:
      error: of features or pixels to the fine solution's, root mean square; ``None`` for a stochastic sampler.
      score: of the samples.
      weight: of the distance.
    """

    error: float | None
    score: Score
    weight: float

    @property
    def value(self) -> float:
        """Return the loss, which is infinite where the samples are not finite."""
        return self._with(self.weight)

    @property
    def selection(self) -> float:
        """The loss that chooses among iterations: in it the distance has a weight of at least 1."""
        return self._with(max(self.weight, 1.0))

    def _with(self, weight: float) -> float:
        above = float(excess(self.score.distance, self.score.floor))
        if not np.isfinite(above) or (self.error is not None and not np.isfinite(self.error)):
            return np.inf
        if self.error is None:
            return float(np.log(above))
        return float(2 * np.log(max(self.error, 1e-30)) + (weight * np.log(above) if weight else 0.0))


class Objective:
    """Loss and curvature of a table on fixed noise.

    Args:
      evaluator: model, noise, fine solution and target; ``batch_size`` samples run at a time.
      coefficients: what is learned.
      n: samples, a multiple of the batch size.
      weight: of the distance in the loss.
      error: ``"pixels"`` or ``"features"``: what the error to the fine solution is taken of; ``"none"`` for a
        stochastic sampler, whose samples have no such partner.
      soft: how far the start of each sample may move towards the fine solution, see :func:`_soft.moved`.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        coefficients: Coefficients,
        n: int,
        *,
        weight: float,
        error: str,
        soft: float = 0.0,
    ):
        self.coefficients, self.weight, self._error, self._soft = coefficients, weight, error, soft
        self._evaluator, self._n = evaluator, n
        self._features = evaluator.features
        self._kept: dict[bytes, tuple[np.ndarray, list[Any]]] = {}

    def samples(self, theta: Array) -> np.ndarray:
        """``x`` of all samples, ``[n, H, W, C]``."""
        return self._drawn(theta)[0]

    def _drawn(self, theta: Array) -> tuple[np.ndarray, list[Any]]:
        """Return ``x`` of all samples, and keys and states where their batches started.

        Those of the last two ``theta`` are kept. A step begins at the last one, or at the one before, if a longer step
        was tried in vain.
        """
        theta = np.asarray(theta, np.float64)
        key = theta.tobytes()
        if key not in self._kept:
            table = self.coefficients.table(theta)
            starts = [self._start(table, start) for start in range(0, self._n, self._evaluator.batch_size)]
            x = np.concatenate([self._evaluator.run_from(table, z, keys) for keys, z in starts])
            self._kept = {**dict(list(self._kept.items())[-1:]), key: (x, starts)}
        return self._kept[key]

    def _start(self, table: Tableau, start: int) -> tuple[Any, Any]:
        """Keys and states where the batch from sample ``start`` on begins."""
        evaluator = self._evaluator
        keys, z_T = evaluator.start(start)
        if not self._soft:
            return keys, z_T
        goal = evaluator.exact(self._n)[start : start + evaluator.batch_size]
        of = _clipped_features(self._features) if self._error == "features" else _pixels
        cov = to_device(evaluator.model.sde.prior_cov(), jnp.float32)
        eps_fn = blocks.as_pytree(evaluator.model.eps_fn)
        return keys, moved(eps_fn, table, z_T, of(goal), cov, jnp.asarray(self._soft, jnp.float32), of)

    def loss(self, x: np.ndarray) -> Loss:
        """Return the loss of :meth:`samples`, ``[n, H, W, C]``."""
        evaluator, n = self._evaluator, self._n
        if not np.isfinite(x).all():
            return Loss(np.inf, Score(np.inf, np.inf, evaluator.floor(n)), self.weight)
        score = evaluator.judge(x, paired=self._error != "none")
        error = score.rmse
        if self._error == "features":
            error = float(np.sqrt(np.mean((self._of(x) - self._of(evaluator.exact(n))) ** 2)))
        return Loss(error, score, self.weight)

    def _of(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self._features(np.clip(x, -1, 1)), np.float64)

    def normal_equations(self, theta: Array, x: np.ndarray, parts: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return curvature ``[p, p]`` and gradient ``[p]`` of the loss at ``theta``, from samples ``x`` in batches.

        Float64. Batch ``i`` holds samples ``i batch_size`` and the following. Both are zero where the distance alone is
        made small and is within the noise.
        """
        evaluator, size = self._evaluator, self.coefficients.size
        error = None if self._error == "none" else self._weighted_error(x)
        distance = self._weighted_distance(x) if self.weight or error is None else None
        if error is None and distance is None:
            return np.zeros((size, size)), np.zeros(size)
        rows, count = padded(self.coefficients.table(theta), jnp.float32)
        starts = self._drawn(theta)[1]
        eps_fn = blocks.as_pytree(evaluator.model.eps_fn)
        curvature, gradient = np.zeros((size, size)), np.zeros(size)
        for part in parts:
            start = part * evaluator.batch_size
            here = slice(start, start + evaluator.batch_size)
            keys, z_T = starts[part]
            jacobian = np.zeros((size, *x[here].shape), np.float32)
            for k in np.unique(self.coefficients.rows):
                mine = np.flatnonzero(self.coefficients.rows == k)
                carry = _carry_before(eps_fn, rows, np.int32(k), z_T, keys, None, None)
                for few in np.split(mine, range(_COLUMNS, len(mine), _COLUMNS)):
                    tangents = self.coefficients.directions(theta, few.tolist(), _COLUMNS)
                    columns = _columns(eps_fn, rows, np.int32(k), count, carry, tangents, keys)
                    jacobian[few] = np.asarray(columns)[: len(few)]
            in_features = self._pushed(jacobian, x[here]) if self._error == "features" or distance else jacobian
            for term, moves in (
                (error, in_features if self._error == "features" else jacobian),
                (distance, in_features),
            ):
                if term is not None:
                    slope, weight = term
                    flat = moves.reshape(size, -1).astype(np.float64)
                    curvature += weight * flat @ flat.T
                    gradient += flat @ slope[here].reshape(-1)
        whole = self._n / (len(parts) * evaluator.batch_size)
        return curvature * whole, gradient * whole

    def _weighted_error(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the slope of ``log mean |x - x*|^2``, and its curvature, one number."""
        exact = self._evaluator.exact(self._n)
        apart = self._of(x) - self._of(exact) if self._error == "features" else x.astype(np.float64) - exact
        weight = 2.0 / (apart.size * np.mean(apart**2))
        return weight * apart, float(weight)

    def _weighted_distance(self, x: np.ndarray) -> tuple[np.ndarray, float] | None:
        """Return slope and curvature of ``weight log excess(distance)`` in the features; ``None`` within the noise."""
        target, floor = self._evaluator.target(), self._evaluator.floor(self._n)
        value, slope = jax.value_and_grad(target.distance)(jnp.asarray(self._of(x), jnp.float32))
        above = float(value) - floor
        if above <= float(excess(0.0, floor)):
            return None
        weight = (self.weight or 1.0) / above
        return weight * np.asarray(slope, np.float64), 2.0 * weight / self._n

    def _pushed(self, jacobian: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Turn a Jacobian ``[p, n, H, W, C]`` of pixels into one of features, ``[p, n, d]``."""
        if self._features.name == "pixels":
            return jacobian * (np.abs(x) <= 1)  # what is clipped does not move
        parts = np.split(jacobian, range(_COLUMNS, len(jacobian), _COLUMNS))
        return np.concatenate([_feature_columns(self._features, jnp.asarray(x), jnp.asarray(part)) for part in parts])


#: State and history before a row.
_carry_before = xla.jit(carry_after)


@xla.jit
def _columns(eps_fn, rows, k, count, carry, tangents, keys):
    """Return how ``x`` moves with row ``k``, for each of ``tangents`` ``[c, ...]``: ``[c, n, ...]``."""
    draw = draws(keys, None)
    own = {name: values[k] for name, values in rows.items()}
    free = {name: own[name] for name in tangents}

    def samples(free: dict[str, Array]) -> Array:
        def body(i: Array, carry: Any) -> Any:
            row = {name: values[i] for name, values in rows.items()}
            row |= {name: jnp.where(i == k, values, row[name]) for name, values in free.items()}
            return step_row(eps_fn, draw, None, carry, row)

        return jax.lax.fori_loop(k, count, body, carry)[0][0]

    history = rows["B"].shape[1]
    wide = {name: values.astype(own[name].dtype) for name, values in tangents.items()}
    wide["B"] = jnp.pad(wide["B"], [(0, 0), (0, history - wide["B"].shape[1]), (0, 0), (0, 0)])
    return jax.vmap(lambda direction: jax.jvp(samples, (free,), (direction,))[1])(wide)


def _pixels(x: Array) -> Array:
    return x


@functools.cache
def _clipped_features(features: metrics.Features) -> Callable[[Array], Array]:
    """Features of clipped images, ``[n, d]``; the same function each time, so that programs with it are found again."""
    return lambda x: features.fn(jnp.clip(x, -1, 1)).reshape(len(x), -1)


@functools.partial(xla.jit, static_argnames="features")
def _feature_columns(features: metrics.Features, x: Array, columns: Array) -> Array:
    of = _clipped_features(features)
    return jax.vmap(lambda column: jax.jvp(of, (x,), (column,))[1])(columns)
