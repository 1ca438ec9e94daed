"""The R-frame: the factor of the covariance in which the noise of a single data point stays constant over time."""

from __future__ import annotations

import numpy as np

from psld_jax._runtime.checks import MIN_TIME
from psld_jax.sde._quadrature import NODES, MatrixFunction, collocate

# Panels of equal length in log t, six to a decade and more, from 1 to below MIN_TIME. Twelve Gauss points on each give
# the rotation to 1e-13.
_PANEL = np.log(1e-7) / 96
_PANELS = int(np.ceil(np.log(MIN_TIME) / _PANEL))
_POINTS = np.concatenate([[0.0], NODES])
_BARYCENTRIC = 1 / np.prod(_POINTS[:, None] - _POINTS + np.eye(len(_POINTS)), axis=1)


class Rotation:
    """``Q(t)`` with ``R = L Q``: solves ``dQ/dt = S Q``, ``Q(1) = I``, for skew-symmetric ``S``.

    Of ``R R^T = Sigma`` and ``dR/dt = (F + 1/2 D Sigma^-1) R`` (Zhang, Tao & Chen, ICLR 2023) the first holds by
    construction, because ``Q`` is orthogonal. What is left of the second is ``S``, whose part above the diagonal, for a
    lower triangular ``L``, is that of ``L^-1 F L + 1/2 L^-1 D L^-T``; for an upper one it is the part below.

    Args:
      skew: ``S`` at times ``[n]``, ``[n, K, K]``.
    """

    def __init__(self, skew: MatrixFunction):
        self._log_edges = _PANEL * np.arange(_PANELS + 1)
        lengths = np.diff(self._log_edges)
        t = np.exp(self._log_edges[:-1, None] + lengths[:, None] * NODES)
        # collocate() solves dA/du = A G: A = Q^T, and S^T = -S.
        turning = skew(t.ravel())
        generator = -t[..., None, None] * turning.reshape(*t.shape, *turning.shape[1:])
        eye = np.eye(generator.shape[-1])
        start, values = eye, []
        for at_nodes, end in zip(*collocate(generator, lengths), strict=True):
            values.append(start @ np.concatenate([eye[None], at_nodes]))
            start = start @ end
        self._values = np.stack(values)  # Q^T at _POINTS of each panel

    def __call__(self, t: np.ndarray) -> np.ndarray:
        """``Q(t)``, ``[..., K, K]``; ``ValueError`` for times outside ``[1e-9, 1]``."""
        if not np.all((t >= MIN_TIME) & (t <= 1)):
            raise ValueError(f"the R-frame is defined for times in [{MIN_TIME:g}, 1], got {np.min(t)} to {np.max(t)}")
        u = np.log(t) / _PANEL
        panel = np.clip(np.floor(u), 0, _PANELS - 1).astype(int)
        difference = (u - panel)[..., None] - _POINTS
        exact = difference == 0
        weights = _BARYCENTRIC / np.where(exact, 1.0, difference)
        weights = np.where(exact.any(axis=-1, keepdims=True), exact, weights)
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.swapaxes(np.einsum("...i,...ijk->...jk", weights, self._values[panel]), -1, -2)
