"""Tables as the compiled loop takes them: rows and history are filled up to capacities that all tables share.

A program is compiled for shapes. So the rows of a table are filled up with inert ones, and its history with
predictions of weight zero, until they have a capacity: another sampler, budget, order or grid then has the same shapes
and runs in the same program. The capacity is a function of the table alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from psld_jax._runtime.device import to_device
from psld_jax.conditioning.conjugate import Pull
from psld_jax.conditioning.inpainting import Known
from psld_jax.integrators.tableau import Tableau

Array = Any

#: Rows of the smallest capacity; the next ones are twice and four times as large. Rows that are not run cost nothing
#: but their place (some 40 numbers each), so nearly every table has the smallest.
MIN_ROWS = 1024

#: Capacities of the history. Each slot costs a sum over the state, so there is a limit; multistep methods use up to 4.
HISTORIES = (4, 8, 16)


def capacity(needed: int, smallest: int) -> int:
    """Return the smallest power of two times ``smallest`` that holds ``needed`` entries."""
    return smallest * 2 ** max(0, int(np.ceil(np.log2(needed / smallest))))


def history_capacity(needed: int) -> int:
    """Return the smallest entry of :data:`HISTORIES` that holds ``needed`` predictions; ``ValueError`` if none does."""
    for size in HISTORIES:
        if needed <= size:
            return size
    raise ValueError(f"the sampler combines {needed} predictions, the loop keeps at most {HISTORIES[-1]}")


def padded(table: Tableau, dtype: Any, smallest: int = MIN_ROWS) -> tuple[dict[str, Array], np.int32]:
    """Fill up the rows of ``table``, and return how many there were; kept with the table until its numbers change.

    An inert row leaves the state as it is: ``P = A = I``, all else zero, no draws. The fields of
    :meth:`Tableau.rows` are all there, ``[capacity, ...]``, floating ones in ``dtype``; ``end`` is
    :meth:`Tableau.ends`.

    Raises:
      ValueError: for a table with a longer history than the loop keeps.
    """
    content = [None if values is None else np.asarray(values).tobytes() for values in table.rows().values()]
    which = np.dtype(dtype), smallest, content, np.asarray(table.last_rows).tobytes()
    made = table.__dict__.get("_padded")
    if made is None or made[0] != which:
        # What is kept must be numbers, also where JAX is tracing.
        with jax.ensure_compile_time_eval():
            made = which, to_device(_filled_up(table, smallest), dtype)
        table.__dict__["_padded"] = made
    return made[1], np.int32(table.nfe)


def _filled_up(table: Tableau, smallest: int) -> dict[str, np.ndarray]:
    size, k = capacity(table.nfe, smallest), table.num_blocks
    identity, zero = np.eye(k), np.zeros((k, k))
    history = history_capacity(table.B.shape[1])

    def fill(values: Array | None, inert: Any) -> np.ndarray:
        out = np.empty((size, *np.shape(inert)), np.asarray(inert).dtype)
        out[:] = inert
        if values is not None:
            out[: table.nfe] = values
        return out

    b = np.zeros((size, history, k, k))
    b[: table.nfe, : table.B.shape[1]] = table.B
    none = np.int32(-1)
    return {
        "tau": fill(table.tau, 1.0),
        "P": fill(table.P, identity),
        "Rpre": fill(table.Rpre, zero),
        "pre_draw": fill(table.pre_draw, none),
        "U": fill(table.U, zero),
        "V": fill(table.V, zero),
        "A": fill(table.A, identity),
        "B": b,
        "R": fill(table.R, zero),
        "post_draw": fill(table.post_draw, none),
        "end": fill(table.ends(), np.int32(0)),
    }


def padded_known(known: Known | None) -> Known | None:
    """Fill up ``known`` like the rows of its table, without what is static: it is only data of the program."""
    if known is None:
        return None
    missing = capacity(len(known.draws), MIN_ROWS) - len(known.draws)

    def fill(values: Array) -> np.ndarray:
        return np.pad(np.asarray(values), [(0, missing), *[(0, 0)] * (np.ndim(values) - 1)])

    mean, factor, draws = fill(known.mean), fill(known.factor), fill(known.draws)
    return dataclasses.replace(known, mean=mean, factor=factor, draws=draws, num_draws=0)


def padded_pull(pull: Pull | None) -> Pull | None:
    """Fill up ``pull`` like the rows and the history of its table. What is added pulls at nothing."""
    if pull is None:
        return None
    size, history = capacity(len(pull.weights), MIN_ROWS), history_capacity(pull.weights.shape[2])
    rows, slots = (0, size - len(pull.weights)), (0, history - pull.weights.shape[2])
    return dataclasses.replace(
        pull,
        weights=np.pad(pull.weights, (rows, (0, 0), slots, (0, 0))),
        last=np.pad(pull.last, (rows, (0, 0))),
    )
