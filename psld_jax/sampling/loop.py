"""The loop that runs every table: one compiled program for a network and a shape, whatever the sampler.

    table (float64, host) --padded--> rows[capacity]      n = table.nfe
                                         |
    z_T, keys ---------------> for i in 0 .. n - 1:  step(rows[i])  ---> z
                                 z <- P z + Rpre xi
                                 q  = U z + V eps(z, tau)      one evaluation of the network
                                 z <- A z + sum_j B_j q_{-j} + R xi
                                 z <- the pull of a measurement, where there is one
                                 z <- known pixels, where there are any

The step is written once (:func:`step_row`); two loops run it:

- :func:`_run`, a loop whose length ``n`` is an argument of the program. This is what :func:`sample` does. A sampler,
  budget, order or grid is data, so nothing is compiled for it; rows that are not used are not visited.
- :func:`_scan`, a ``lax.scan``, for what the first cannot do: keep the trajectory, or have a derivative in reverse
  mode. :func:`sample` takes it for ``return_trajectory`` and ``remat``, and when it is called inside a transformation
  (``jax.jit``, ``grad``, ``vmap``), where the caller's program is compiled anyway.

A scan over the padded rows, with ``lax.cond`` to pass inert ones by, gives the same bits. It visits each of them at
some 30 us on a CPU, 7% of 10 evaluations of the smallest model that ships; so it is not what runs by default.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from psld_jax import blocks
from psld_jax._runtime import random, xla
from psld_jax._runtime.checks import check_flag
from psld_jax._runtime.device import to_device
from psld_jax._runtime.errors import check_callable, check_kind
from psld_jax.conditioning.conjugate import Pull
from psld_jax.conditioning.inpainting import Known
from psld_jax.integrators.tableau import Tableau
from psld_jax.sampling.rows import padded, padded_known, padded_pull
from psld_jax.sampling.states import EpsFn, check_state, evaluate

Array = Any
Draw = Callable[[Array, blocks.State], blocks.State]

#: A trajectory is as long as its rows have capacity, so the smallest one is small.
_TRAJECTORY_ROWS = 64


def sample(
    eps_fn: EpsFn,
    table: Tableau,
    z_T: blocks.State,
    key: Array | None = None,
    *,
    noise: blocks.State | None = None,
    known: Known | None = None,
    pull: Pull | None = None,
    return_trajectory: bool = False,
    remat: bool = False,
) -> blocks.State:
    """Run a sampler from the prior to the data: the rows of ``table``, one evaluation of the network each.

    The program is compiled once for ``eps_fn`` and the shapes of ``z_T``, and serves every table after that.

    Args:
      eps_fn: ``eps_fn(z, t)``: state and scalar ``t`` in, state out. A pytree such as
        ``jax.tree_util.Partial(apply, params)`` keeps parameters out of the compiled program.
      table: from :func:`psld_jax.tabulate`.
      z_T: state tuple of K blocks, leaves ``[n, ...]`` of one floating dtype; everything runs in that dtype.
      key: one key (sample ``i`` uses ``fold_in(key, i)``) or one key per sample; needed if the sampler is
        stochastic and ``noise`` is not given.
      noise: recorded draws, a state whose leaves have a leading axis of length ``table.num_draws``, and so many more
        as ``known`` takes. Their number is a shape, so another number is another program.
      known: pixels that are known, from :func:`psld_jax.known_pixels` for the same table.
      pull: of a measurement, from :func:`psld_jax.measurement_pull` for the same table.
      return_trajectory: also keep the state after every step: leaves ``[num_steps + 1, n, ...]``, ``z_T`` first.
      remat: compute each row again in the backward pass of a gradient, so that its memory is that of one evaluation.

    Returns:
      The final state (or the trajectory), same structure and dtype as ``z_T``.

    Raises:
      ValueError: for a state, key or noise that does not fit, before anything is compiled.
    """
    check_callable("eps_fn", eps_fn, "a function of a state and a time")
    check_kind("table", table, Tableau, "one of psld_jax.tabulate")
    check_kind("known", known, (Known, type(None)), "one of psld_jax.known_pixels, or None")
    check_kind("pull", pull, (Pull, type(None)), "one of psld_jax.measurement_pull, or None")
    if pull is not None and len(pull.weights) != table.nfe:
        raise ValueError("the pull is of another table; make it with measurement_pull(sde, integrator, table, ...)")
    check_flag("return_trajectory", return_trajectory)
    check_flag("remat", remat)
    dtype, keys, noise = start_of(table, z_T, key, noise, known)
    eps_fn, z_T = blocks.as_pytree(eps_fn), jax.tree.map(jnp.asarray, z_T)
    if remat or any(
        isinstance(leaf, Tracer) for leaf in jax.tree.leaves((eps_fn, table, z_T, keys, noise, known, pull))
    ):
        rows = {**to_device(table.rows(), dtype), "end": jnp.asarray(table.ends())}
        z, path = _scan(eps_fn, rows, None, z_T, keys, noise, known, pull, keep=return_trajectory, remat=remat)
    elif return_trajectory:
        rows, count = padded(table, dtype, _TRAJECTORY_ROWS)
        z, path = _scan_program(eps_fn, rows, count, z_T, keys, noise, padded_known(known), padded_pull(pull))
    else:
        return _run(eps_fn, *padded(table, dtype), z_T, keys, noise, padded_known(known), padded_pull(pull))
    if not return_trajectory:
        return z
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest[table.last_rows]]), z_T, path)


def start_of(
    table: Tableau, z_T: blocks.State, key: Array | None, noise: blocks.State | None, known: Known | None
) -> tuple[Any, Array | None, blocks.State | None]:
    """Return the dtype of a run, and what it draws from: keys ``[n]`` or recorded draws. The other one is ``None``.

    Arguments as of :func:`sample`.

    Raises:
      ValueError: for a state, key, noise or known pixels that do not fit the table.
    """
    n, dtype = check_state(z_T, table.num_blocks)
    num_draws = table.num_draws + (0 if known is None else known.num_draws)
    if known is not None and (known.num_steps != table.num_steps or int(known.draws[0]) != table.num_draws):
        raise ValueError("known pixels are of another table; make them with known_pixels(sde, table, ...)")
    if noise is not None:
        expected = [(num_draws, *jnp.shape(leaf)) for leaf in jax.tree.leaves(z_T)]
        got = [tuple(jnp.shape(leaf)) for leaf in jax.tree.leaves(noise)]
        if got != expected:
            raise ValueError(f"noise must hold {num_draws} draws, leaves of shape {expected}, got {got}")
    elif num_draws and key is None:
        raise ValueError(f"this sampler draws noise {num_draws} times: pass key=... or noise=...")
    if noise is not None and num_draws:
        return dtype, None, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), blocks.like(z_T, noise))
    if num_draws:
        return dtype, random.per_sample(key, n), None
    # A sampler without draws runs in the program of those that have some, so it has keys too.
    if key is not None:
        random.check_key(key, n)
    return dtype, random.unused(n), None


def run_rows(
    eps_fn: Any, rows: Any, count: Array, z_T: blocks.State, keys: Any, noise: Any, known: Any, pull: Pull | None = None
) -> Any:
    """Run the loop of :func:`sample`, as a function to be traced: the first ``count`` of padded ``rows`` in turn.

    Returns a state like ``z_T``, leaves ``[n, ...]``.
    """
    return carry_after(eps_fn, rows, count, z_T, keys, noise, known, pull)[0]


def carry_after(
    eps_fn: Any, rows: Any, count: Array, z_T: blocks.State, keys: Any, noise: Any, known: Any, pull: Pull | None = None
) -> Any:
    """Return what :func:`run_rows` does, and the history of predictions beside it, states with leaves ``[n, ...]``."""
    draw = draws(keys, noise)

    def body(i: Array, carry: Any) -> Any:
        row = {name: values[i] for name, values in rows.items()}
        return step_row(eps_fn, draw, known, carry, row, None if pull is None else pull.at(i))

    return jax.lax.fori_loop(0, count, body, begin(rows, draw, known, z_T))


_run = xla.jit(run_rows, "the sampler")


def _scan(eps_fn, rows, count, z_T, keys, noise, known, pull=None, *, keep: bool, remat: bool):
    """Run it by ``lax.scan``: the final state, and those after every row if ``keep``; all rows if ``count`` is None."""
    draw = draws(keys, noise)

    def body(carry: Any, inputs: Any) -> Any:
        i, row = inputs
        step = partial(step_row, eps_fn, draw, known, row=row, pull=None if pull is None else pull.at(i))
        carry = step(carry) if count is None else jax.lax.cond(i < count, step, lambda carry: carry, carry)
        return carry, (carry[0] if keep else None)

    start = begin(rows, draw, known, z_T)
    numbers = jnp.arange(rows["tau"].shape[0], dtype=jnp.int32)
    (z, _), path = jax.lax.scan(jax.checkpoint(body) if remat else body, start, (numbers, rows))
    return z, path


_scan_program = xla.jit(partial(_scan, keep=True, remat=False), "the sampler with its trajectory")


def differentiable(eps_fn: Any, rows: Any, count: Array, z_T: blocks.State) -> blocks.State:
    """Run a sampler without noise like :func:`run_rows`, as a function that has a derivative in reverse mode.

    Every row is computed again in the backward pass. The draws of ``rows``, which no row makes, are not traced. The
    state is shaped like ``z_T``, any shape.
    """
    return _scan(eps_fn, {**rows, "Rpre": None, "R": None}, count, z_T, None, None, None, keep=False, remat=True)[0]


def draws(keys: Any, noise: Any) -> Draw:
    """Return draw number ``i`` of every sample, shaped like a state: from its key, or as it was recorded."""

    def draw(number: Array, z: blocks.State) -> blocks.State:
        if noise is not None:
            return jax.tree.map(lambda xi: xi[number], noise)
        return random.normal_like(keys, number, z)

    return draw


def begin(rows: Any, draw: Draw, known: Known | None, z_T: blocks.State) -> tuple[blocks.State, tuple[Any, ...]]:
    """Return the state and an empty history, leaves ``[n, ...]``."""
    empty = jax.tree.map(jnp.zeros_like, z_T)
    return (z_T if known is None else known(z_T, 0, draw)), (empty,) * rows["B"].shape[1]


def step_row(
    eps_fn: Any, draw: Draw, known: Known | None, carry: Any, row: dict[str, Any], pull: Pull | None = None
) -> Any:
    """Run one row, from ``(z, history)`` to ``(z, history)``. What exact rows lack is ``None``, and not traced.

    ``pull`` is that of a measurement in this row, :meth:`Pull.at`.
    """

    def add_noise(z: blocks.State, matrix: Array | None, number: Array) -> blocks.State:
        if matrix is None:
            return z
        return jax.lax.cond(number >= 0, lambda z: blocks.add(z, blocks.apply(matrix, draw(number, z))), lambda z: z, z)

    z, history = carry
    if row["P"] is not None:
        z = add_noise(blocks.apply(row["P"], z), row["Rpre"], row["pre_draw"])
    eps = evaluate(eps_fn, z, row["tau"])
    q = blocks.add(blocks.apply(row["U"], z), blocks.apply(row["V"], eps))
    history = (q, *history[:-1])
    z = blocks.add(blocks.apply(row["A"], z), *(blocks.apply(row["B"][j], q) for j, q in enumerate(history)))
    if pull is not None:
        z = pull(z, history)
    z = add_noise(z, row["R"], row["post_draw"])
    if known is not None:
        z = jax.lax.cond(row["end"] > 0, lambda z: known(z, row["end"], draw), lambda z: z, z)
    return z, history
