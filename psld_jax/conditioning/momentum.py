"""Momentum guidance: the table extrapolates predictions away from the mean of those before them.

A sampler combines predictions ``q_i`` of the network (eps, or ``E[x_0 | z]``, whichever it interpolates). Momentum
guidance has

    q'_i = q_i + w (q_i - m_i),    m_i = sum_{j=1}^M a_j q_{i-j},    a_j proportional to decay^(j-1), of sum 1,

in place of ``q_i``: what changes from one evaluation to the next is taken further. It costs no evaluation, since
``q'_i`` is a sum of predictions that a table can weigh by itself:

    z <- A z + sum_j B_j q'_{-j} = A z + sum_j B'_j q_{-j}.

So it goes with every guide, and with a measurement in the table, whose weights belong to the same predictions. The
first prediction has none before it, and the denoising step gives ``E[x_0 | z]`` as it is: both are left alone.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from psld_jax._runtime.checks import check_number
from psld_jax.conditioning.conjugate import Pull
from psld_jax.integrators.tableau import Tableau

#: Predictions that a mean is taken of, M: with those of a sampler of order 4 they fit the history of one program.
PAST = 4


def check_momentum(momentum: float, decay: float) -> None:
    """Raise a ``ValueError`` unless ``momentum`` is a finite number, and ``decay`` one from 0 to 1."""
    check_number("momentum", momentum)
    check_number("momentum_decay", decay, 0, 1)


def with_momentum(table: Tableau, momentum: float, decay: float = 0.5) -> Tableau:
    """Return the table of the same sampler with momentum guidance of weight ``w = momentum``; no further evaluation.

    Args:
      table: from :func:`psld_jax.tabulate`, without ``resample``.
      momentum: above 0 predictions are taken further, below 0 they are smoothed; 0 leaves the table as it is.
      decay: of the weights of the mean: 0 is the last prediction alone, 1 the plain mean of the last four.

    Raises:
      ValueError: for numbers out of range, or a table that goes back in time, as ``resample`` and ``restart`` do.
    """
    check_momentum(momentum, decay)
    if momentum == 0:
        return table
    if not np.all(np.diff(table.times) < 0):
        raise ValueError("momentum needs a path without jumps: it goes with neither resample nor sampler='restart'")
    return dataclasses.replace(table, B=_spread(table, np.asarray(table.B), momentum, decay))


def pull_with_momentum(pull: Pull, table: Tableau, momentum: float, decay: float = 0.5) -> Pull:
    """Return the pull of a measurement on ``table``, for the table that :func:`with_momentum` makes of it.

    It is a sum of ``H^+ y - D_j``, and momentum acts on those as it acts on ``D_j``: its weights have the sum 1.
    """
    if momentum == 0:
        return pull
    moved = _spread(table, np.moveaxis(np.asarray(pull.weights), 1, 2), momentum, decay)
    return dataclasses.replace(pull, weights=np.moveaxis(moved, 2, 1))


def _spread(table: Tableau, weights: np.ndarray, momentum: float, decay: float) -> np.ndarray:
    """Return weights of ``q_{-j}``, ``[S, H + M, ...]``, from those of ``q'_{-j}``, ``[S, H, ...]``."""
    rows, depth = weights.shape[:2]
    out = np.zeros((rows, depth + PAST, *weights.shape[2:]))
    out[:, :depth] = weights
    # A step to time 0 is the denoising one.
    last = table.nfe if table.times[-1] > 0 else int(table.last_rows[-2]) + 1
    for row in range(min(rows, last)):
        for j in range(min(depth, row)):  # row - j >= 1: the first prediction has none before it
            share = float(decay) ** np.arange(min(row - j, PAST))
            share /= share.sum()
            out[row, j] += momentum * weights[row, j]
            for i, part in enumerate(share, start=1):
                out[row, j + i] -= momentum * part * weights[row, j]
    used = np.any(out != 0, axis=tuple(k for k in range(out.ndim) if k != 1))
    return out[:, : max(depth, int(np.flatnonzero(used).max(initial=0)) + 1)]
