"""The exact posterior of a smoothed data set under a linear measurement, to judge solvers of inverse problems by.

For the mixture ``sum_i N(x_i, h^2 I) / N`` and ``y = H x + noise_std n``, the posterior is a mixture with weights
proportional to ``N(y; H x_i, S)``, ``S = h^2 H H^T + noise_std^2 I``, and components of mean
``x_i + h^2 H^T S^-1 (y - H x_i)`` and covariance ``h^2 I - h^4 H^T S^-1 H``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from psld_jax._runtime.checks import check_number
from psld_jax._runtime.errors import check_counts

Array = Any

# A measurement without noise and a projection have singular values of 0, whose inverse is to be none.
_SINGULAR = 1e-10


def operator_matrix(operator: Callable[[Array], Array], image_shape: tuple[int, ...]) -> np.ndarray:
    """Return the matrix ``H [m, d]``, float64, of a linear function of images ``[n, H, W, C]`` with ``d`` pixels."""
    pixels = np.eye(int(np.prod(image_shape)), dtype=np.float32).reshape(-1, *image_shape)
    return np.asarray(operator(jnp.asarray(pixels)), np.float64).reshape(len(pixels), -1).T


class MixturePosterior:
    """Posteriors of the mixture of ``N(x_i, bandwidth^2 I)`` under ``y = H x + noise_std n``; :meth:`sample` draws.

    Args:
      data: ``[N, H, W, C]``, the points ``x_i``.
      bandwidth: ``h > 0``.
      operator: ``H``, a linear function of images.
      noise_std: of the measurement, at least 0.

    Raises:
      ValueError: for a bandwidth or noise out of range.
    """

    def __init__(self, data: Array, bandwidth: float, operator: Callable[[Array], Array], noise_std: float):
        self.variance = check_number("bandwidth", bandwidth, 0, strict=True) ** 2
        self.noise_std = check_number("noise_std", noise_std, 0)
        self.shape = np.shape(data)[1:]
        self.points = np.asarray(data, np.float64).reshape(len(data), -1)
        self.matrix = operator_matrix(operator, self.shape)
        spread = self.variance * self.matrix @ self.matrix.T + self.noise_std**2 * np.eye(len(self.matrix))
        self.inverse = np.linalg.pinv(spread, rcond=_SINGULAR, hermitian=True)

    def weights(self, measurement: Array) -> np.ndarray:
        """Return the probability of each point given one measurement ``[...]``, ``[N]``; they sum to 1."""
        missing = np.reshape(measurement, -1) - self.points @ self.matrix.T
        logs = -0.5 * np.einsum("ni,ij,nj->n", missing, self.inverse, missing)
        weights = np.exp(logs - logs.max())
        return weights / weights.sum()

    def sample(self, measurement: Array, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw ``n`` images given one measurement ``[...]``, float64 ``[n, H, W, C]``.

        A draw of the component and of its measurement is corrected by ``h^2 H^T S^-1 (y - y')``, which gives the law
        of the one given the other without a factor of the covariance (Matheron's rule).

        Raises:
          ValueError: for an ``n`` below 1.
        """
        check_counts(n=n)
        x = self.points[rng.choice(len(self.points), n, p=self.weights(measurement))]
        x = x + np.sqrt(self.variance) * rng.standard_normal(x.shape)
        seen = x @ self.matrix.T + self.noise_std * rng.standard_normal((n, len(self.matrix)))
        x = x + self.variance * (np.reshape(measurement, -1) - seen) @ self.inverse @ self.matrix
        return x.reshape(n, *self.shape)


def energy_distance(a: Array, b: Array) -> float:
    """Return ``2 E|A - B| - E|A - A'| - E|B - B'|`` of two samples ``[n, ...]``, ``[m, ...]``: 0 for the same law.

    Unbiased, so it may be a little below 0 (Szekely & Rizzo, 2013). Euclidean distances, float64.

    Raises:
      ValueError: for fewer than 2 entries, or entries of different sizes.
    """
    a, b = (np.reshape(np.asarray(v, np.float64), (len(v), -1)) for v in (a, b))
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"two samples [n, ...] of at least 2 entries of equal size are needed, got {a.shape}, {b.shape}"
        )

    def mean(p: np.ndarray, q: np.ndarray, pairs: int) -> float:
        squared = (p**2).sum(1)[:, None] + (q**2).sum(1) - 2 * p @ q.T
        if p is q:
            np.fill_diagonal(squared, 0.0)
        return float(np.sqrt(np.maximum(squared, 0)).sum() / pairs)

    n, m = len(a), len(b)
    return 2 * mean(a, b, n * m) - mean(a, a, n * (n - 1)) - mean(b, b, m * (m - 1))
