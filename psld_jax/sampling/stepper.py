"""A sampler step by step, for those who have a loop of their own: pure functions ``init`` and ``step`` of pytrees.

    stepper = pj.stepper(table)
    state = stepper.init(z_T, key)
    for _ in range(stepper.num_steps):
        state = stepper.step(eps_fn, state)

A step is the one that :func:`psld_jax.sample` takes (:func:`psld_jax.sampling.loop.step_row`), with the same rows and
the same draws, so ``state.z`` after the last step is what :func:`psld_jax.sample` returns.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime import xla
from psld_jax._runtime.errors import check_callable, check_kind
from psld_jax.conditioning.inpainting import Known
from psld_jax.integrators.tableau import Tableau
from psld_jax.sampling.loop import begin, draws, start_of, step_row
from psld_jax.sampling.rows import MIN_ROWS, capacity, history_capacity, padded, padded_known
from psld_jax.sampling.states import EpsFn

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepState:
    """The state of a run: all that the next step needs besides the network. It is a pytree, so it can be saved.

    Attributes:
      z: the state of the sampler, a tuple of K blocks, leaves ``[n, ...]``. A loop may change it between steps.
      history: the predictions of earlier steps, newest first, each like ``z``.
      step: how many steps have been taken, a scalar int32.
      keys: one random key per sample, ``[n]``; ``None`` with recorded draws.
      noise: recorded draws, leaves ``[draws, n, ...]``; ``None`` with keys.
      known: known pixels, or ``None``.
    """

    z: blocks.State
    history: tuple[blocks.State, ...]
    step: Array
    keys: Array | None
    noise: blocks.State | None
    known: Known | None


@dataclasses.dataclass(frozen=True, eq=False)
class Stepper:
    """A table that is run step by step; :func:`stepper` makes one.

    Attributes:
      table: what is run.
      bounds: ``[capacity + 1]`` integers: step ``k`` has rows ``bounds[k]`` to ``bounds[k + 1] - 1``; there are no rows
        after the last step.
      width: the largest number of rows of a step.
    """

    table: Tableau
    bounds: Array
    width: int

    @property
    def num_steps(self) -> int:
        """Number of steps of the run, the denoising step included."""
        return self.table.num_steps

    @property
    def times(self) -> Array:
        """Forward times, float64 ``[num_steps + 1]``: ``state.z`` is at ``times[state.step]``."""
        return self.table.times

    def init(
        self,
        z_T: blocks.State,
        key: Array | None = None,
        *,
        noise: blocks.State | None = None,
        known: Known | None = None,
    ) -> StepState:
        """Return the state before the first step. Arguments are those of :func:`psld_jax.sample`: leaves ``[n, ...]``.

        Raises:
          ValueError: for a state, key, noise or known pixels that do not fit the table.
        """
        dtype, keys, noise = start_of(self.table, z_T, key, noise, known)
        known, (rows, _) = padded_known(known), padded(self.table, dtype)
        z, history = begin(rows, draws(keys, noise), known, jax.tree.map(jnp.asarray, z_T))
        return StepState(z, history, jnp.zeros((), jnp.int32), keys, noise, known)

    def step(self, eps_fn: EpsFn, state: StepState) -> StepState:
        """Return the state after one more step of the grid. After the last step the state stays as it is.

        It can be jitted and differentiated; then the rows are constants of the caller's program. Called as it is, it
        runs in a program that is compiled once for ``eps_fn`` and the shapes of ``state``, and serves every sampler,
        budget and grid whose steps have as many evaluations.

        Args:
          eps_fn: ``eps_fn(z, t)``: state and scalar ``t`` in, state out. It may be another one at every step.
          state: from :meth:`init`, or from the step before.

        Raises:
          ValueError: for what is no function or no state; when it is traced, if ``eps_fn`` returns another shape than
            that of ``state.z``.
        """
        check_callable("eps_fn", eps_fn, "a function of a state and a time")
        check_kind("state", state, StepState, "one of init or step")
        dtype = jax.tree.leaves(state.z)[0].dtype
        rows, _ = padded(self.table, dtype)
        return _advance(blocks.as_pytree(eps_fn), rows, jnp.asarray(self.bounds), state, width=self.width)


def stepper(table: Tableau) -> Stepper:
    """Return ``init`` and ``step`` of a sampler, for a loop of your own with the numbers of :func:`psld_jax.sample`.

    A step is one of the grid, from ``times[k]`` to ``times[k + 1]``, with all of its evaluations: one with most
    samplers, two with Heun's method. All steps together take ``table.nfe``.

    Args:
      table: from :func:`psld_jax.tabulate`.

    Example:
      >>> import jax, psld_jax as pj
      >>> model, integrator = pj.load("digits"), pj.integrators.get("reduced_oba")
      >>> table = pj.tabulate(integrator, model.sde, pj.grids.for_budget("quadratic", integrator, nfe=10))
      >>> stepper = pj.stepper(table)
      >>> state = stepper.init(model.sde.prior_sample(jax.random.key(0), (4, 8, 8, 1)), jax.random.key(1))
      >>> for _ in range(stepper.num_steps):
      ...     state = stepper.step(model.eps_fn, state)
      >>> state.z.x.shape
      (4, 8, 8, 1)

    Raises:
      ValueError: for a table with a longer history than the loop keeps.
    """
    check_kind("table", table, Tableau, "one of psld_jax.tabulate")
    history_capacity(table.B.shape[1])
    bounds = np.full(capacity(table.nfe, MIN_ROWS) + 1, table.nfe, np.int32)
    bounds[0], bounds[1 : table.num_steps + 1] = 0, table.last_rows + 1
    return Stepper(table, bounds, int(np.diff(bounds).max()))


def _advance_by_rows(eps_fn: Any, rows: Any, bounds: Array, state: StepState, *, width: int) -> StepState:
    """Run the rows of one step in turn. A step with fewer than ``width`` rows skips the others."""
    first, end = bounds[state.step], bounds[state.step + 1]
    draw = draws(state.keys, state.noise)

    def body(carry: Any, i: Array) -> Any:
        row = {name: values[i] for name, values in rows.items()}
        step = partial(step_row, eps_fn, draw, state.known, row=row)
        return jax.lax.cond(i < end, step, lambda carry: carry, carry), None

    (z, history), _ = jax.lax.scan(body, (state.z, state.history), first + jnp.arange(width, dtype=first.dtype))
    number = state.step + (first < end).astype(jnp.int32)
    return dataclasses.replace(state, z=z, history=history, step=number)


_advance = xla.jit(_advance_by_rows, "a step of the sampler", static_argnames=("width",))
