"""The part of a table that is learned: a vector of numbers that is added to the coefficients of a given table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from psld_jax._runtime.checks import MIN_TIME
from psld_jax._runtime.errors import check_choice
from psld_jax.integrators.tableau import Tableau, with_first_updates

Array = Any

#: Coefficients that can be learned, see :class:`psld_jax.Tableau`; ``R`` only of a stochastic sampler.
FREE = ("tau", "P", "U", "V", "A", "B", "R")


class Coefficients:
    """``theta -> table``: linear, with ``theta = 0`` the table that is given.

    Row ``k`` may have

    - ``tau``: the time that the network is told, apart from that of the step; a number is a part of it,
    - ``A``, ``P``: what the state is multiplied by after and before the evaluation, ``K^2`` numbers each,
    - ``U``, ``V``: what is read from the network, for the blocks of the prediction that the table uses,
    - ``B``: the weights of the last ``history`` predictions, ``K`` numbers for each block of one,
    - ``R``: the factor of the noise, where the table has some.

    Args:
      table: where learning starts.
      free: which of these.
      steps: of which rows; () for all.
      history: predictions that are combined; at least as many as the table combines.
      consistent: leave ``A`` and ``P``, and the sum of the weights ``B``, as they are: where the prediction is constant
        a step stays as exact as it was.

    Attributes:
      size: numbers in ``theta``.
      rows: the row that each belongs to, ``[size]``.

    Raises:
      ValueError: for an unknown coefficient, or nothing that could be learned.
    """

    def __init__(
        self,
        table: Tableau,
        *,
        free: Sequence[str],
        steps: Sequence[int] = (),
        history: int,
        consistent: bool = False,
    ):
        for name in free:
            check_choice("free", name, FREE)
        missing = max(0, min(history, table.nfe) - table.B.shape[1])
        b = np.pad(table.B, [(0, 0), (0, missing), (0, 0), (0, 0)])
        table = dataclasses.replace(table, B=b)
        self._table = with_first_updates(table) if "P" in free else table
        moves = self._all_moves(set(free), history, consistent)
        self._moves = [(row, entries) for row, entries in moves if not steps or row in steps]
        if not self._moves:
            raise ValueError(f"free={tuple(free)} leaves nothing to learn of this table")
        self.size = len(self._moves)
        self.rows = np.array([row for row, _ in self._moves])

    def _all_moves(self, free: set[str], history: int, consistent: bool) -> Iterator[tuple[int, list[Any]]]:
        """Return for each number its row, and ``(field, index, factor)`` of the coefficients that it is added to."""
        table, k = self._table, self._table.num_blocks
        used = np.flatnonzero(np.abs(table.U).sum(axis=(0, 2)) + np.abs(table.V).sum(axis=(0, 2)))
        every = [(a, b) for a in range(k) for b in range(k)]
        matrices = {"U": [(a, b) for a in used for b in range(k)]}
        matrices["V"] = matrices["U"]
        if not consistent:
            matrices |= {"A": every, "P": every}
        for row in range(table.nfe):
            if "tau" in free:
                yield row, [("tau", (), table.tau[row])]
            for name in matrices:
                if name in free and getattr(table, name) is not None:
                    yield from ((row, [(name, index, 1.0)]) for index in matrices[name])
            for j in range(int(consistent), min(history, row + 1)) if "B" in free else ():
                for a, b in ((a, b) for a in range(k) for b in used):
                    back = [("B", (0, a, b), -1.0)] if consistent else []
                    yield row, [("B", (j, a, b), 1.0), *back]
            if "R" in free and table.R is not None:
                yield from ((row, [("R", (a, b), 1.0)]) for a, b in every if table.R[row, a, b] != 0)

    def table(self, theta: Array) -> Tableau:
        """Return the table for ``theta``, float64 ``[size]``. Times that the network is told stay within (0, 1]."""
        fields = {name: v.copy() for name, v in self._table.rows().items() if v is not None}
        for value, (row, entries) in zip(np.asarray(theta, np.float64), self._moves, strict=True):
            for name, index, factor in entries:
                fields[name][(row, *index)] += factor * value
        fields["tau"] = np.clip(fields["tau"], MIN_TIME, 1.0)
        return dataclasses.replace(self._table, **fields)

    def directions(self, theta: Array, numbers: Sequence[int], width: int) -> dict[str, np.ndarray]:
        """Return how these numbers, all of one row, move its coefficients: fields ``[width, ...]``, zero beyond.

        Float32. A time beyond the bounds of :meth:`table` does not move.
        """
        table = self._table
        names = [name for name in FREE if getattr(table, name) is not None]
        out = {name: np.zeros((width, *getattr(table, name).shape[1:]), np.float32) for name in names}
        for column, number in enumerate(numbers):
            row, entries = self._moves[number]
            for name, index, factor in entries:
                beyond = name == "tau" and not MIN_TIME <= table.tau[row] * (1 + theta[number]) <= 1
                out[name][(column, *index)] = 0.0 if beyond else factor
        return out


def with_more_rows(table: Tableau, nfe: int) -> Tableau:
    """Return the same sampler with ``nfe`` evaluations. The added ones come first, and nothing depends on them.

    Each repeats the first evaluation and leaves the state as it is, so that only learning makes something of them. The
    update before the first evaluation stays before all.
    """
    more = nfe - table.nfe
    if more <= 0:
        return table
    eye, zero = np.eye(table.num_blocks), np.zeros((table.num_blocks,) * 2)
    before = {"P": eye, "Rpre": zero, "pre_draw": np.int64(-1)}
    after = {"A": eye, "B": np.zeros(table.B.shape[1:]), "R": zero, "post_draw": np.int64(-1)}
    rows: dict[str, Any] = {}
    for name, values in table.rows().items():
        if values is None:
            rows[name] = None
        elif name in before:
            rows[name] = np.concatenate([values[:1], np.repeat(np.asarray(before[name])[None], more, 0), values[1:]])
        else:
            added = np.asarray(after.get(name, values[0]))
            rows[name] = np.concatenate([np.repeat(added[None], more, 0), values])
    return dataclasses.replace(table, **rows, last_rows=table.last_rows + more)
