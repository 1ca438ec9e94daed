"""The one scan that runs every table, and adaptive Runge-Kutta (diffrax) beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime import random, xla
from psld_jax._runtime.device import TimeFunction, to_device
from psld_jax._runtime.errors import check_choice
from psld_jax.conditioning.inpainting import Known
from psld_jax.integrators.baselines import last_stage
from psld_jax.integrators.tableau import Tableau
from psld_jax.sde import LinearSDE

Array = Any
EpsFn = Callable[[blocks.State, Array], blocks.State]


def _check_state(z: Any, num_blocks: int) -> tuple[int, Any]:
    """Validate a state; return its batch size and dtype."""
    if not isinstance(z, tuple):
        raise ValueError(f"a state is a tuple of {num_blocks} blocks, got {type(z).__name__}")
    if len(z) != num_blocks:
        raise ValueError(f"the state has {len(z)} blocks, the sampler's SDE has {num_blocks}")
    structures = {str(jax.tree.structure(block)) for block in z}
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(block)] for block in z]
    if len(structures) > 1 or any(s != shapes[0] for s in shapes):
        raise ValueError(f"all blocks of a state must have the same structure and shapes, got {shapes}")
    leaves = jax.tree.leaves(z)
    dtypes = {jnp.result_type(leaf) for leaf in leaves}
    if len(dtypes) != 1 or not jnp.issubdtype(next(iter(dtypes)), jnp.floating):
        raise ValueError(f"all leaves of a state must share one floating dtype, got {sorted(map(str, dtypes))}")
    if any(jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != jnp.shape(leaves[0])[0] for leaf in leaves):
        raise ValueError(f"all leaves of a state need the same leading batch axis, got shapes {shapes[0]}")
    return jnp.shape(leaves[0])[0], dtypes.pop()


def evaluate(eps_fn: EpsFn, z: blocks.State, t: Array) -> blocks.State:
    """``eps_fn(z, t)`` as a state of the type of ``z``.

    Leaves ``[n, ...]`` and a scalar ``t``.

    Raises:
      ValueError: when it is traced, if what ``eps_fn`` returns has not the shapes of ``z``.
    """
    eps = eps_fn(z, t)
    if not isinstance(eps, tuple) or jax.tree.map(jnp.shape, tuple(eps)) != jax.tree.map(jnp.shape, tuple(z)):
        raise ValueError(
            f"eps_fn returned {jax.tree.map(jnp.shape, eps)}; it must return a state like its input, "
            f"{jax.tree.map(jnp.shape, z)}"
        )
    return blocks.like(z, eps)


def sample(
    eps_fn: EpsFn,
    table: Tableau,
    z_T: blocks.State,
    key: Array | None = None,
    *,
    noise: blocks.State | None = None,
    known: Known | None = None,
    return_trajectory: bool = False,
    unroll: int = 1,
    remat: bool = False,
) -> blocks.State:
    """Run a sampler from the prior to the data: one jitted ``lax.scan`` over the rows of ``table``.

    Args:
      eps_fn: ``eps_fn(z, t)``: state and scalar ``t`` in, state out. A pytree such as
        ``jax.tree_util.Partial(apply, params)`` keeps parameters out of the compiled program.
      table: from :func:`psld_jax.tabulate`.
      z_T: state tuple of K blocks, leaves ``[n, ...]`` of one floating dtype; everything runs in that dtype.
      key: one key (sample ``i`` uses ``fold_in(key, i)``) or one key per sample; needed if the sampler is
        stochastic and ``noise`` is not given.
      noise: recorded draws, a state whose leaves have a leading axis of length ``table.num_draws``, and so many more
        as ``known`` takes.
      known: pixels that are known, from :func:`psld_jax.known_pixels` for the same table.
      return_trajectory: also keep the state after every step: leaves ``[num_steps + 1, n, ...]``, ``z_T`` first.
      unroll: passed to ``lax.scan``.
      remat: compute each row again in the backward pass of a gradient, so that its memory is that of one evaluation.

    Returns:
      The final state (or the trajectory), same structure and dtype as ``z_T``.

    Raises:
      ValueError: for a state, key or noise that does not fit, before anything is compiled.
    """
    n, dtype = _check_state(z_T, table.num_blocks)
    keys, num_draws = None, table.num_draws + (0 if known is None else known.num_draws)
    if known is not None and (len(known.mean) != len(table.times) or int(known.draws[0]) != table.num_draws):
        raise ValueError("known pixels are of another table; make them with known_pixels(sde, table, ...)")
    if noise is not None:
        expected = [(num_draws, *jnp.shape(leaf)) for leaf in jax.tree.leaves(z_T)]
        got = [tuple(jnp.shape(leaf)) for leaf in jax.tree.leaves(noise)]
        if got != expected:
            raise ValueError(f"noise must hold {num_draws} draws, leaves of shape {expected}, got {got}")
        noise = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), blocks.like(z_T, noise))
    elif num_draws:
        if key is None:
            raise ValueError(f"this sampler draws noise {num_draws} times: pass key=... or noise=...")
        keys = random.per_sample(key, n)
    return _run(
        blocks.as_pytree(eps_fn),
        to_device(table.rows(), dtype),
        jnp.asarray(table.last_rows) if return_trajectory else None,
        jax.tree.map(jnp.asarray, z_T),
        keys,
        noise,
        known,
        None if known is None else jnp.asarray(table.ends()),
        unroll=unroll,
        remat=remat,
    )


@partial(xla.jit, static_argnames=("unroll", "remat"))
def _run(eps_fn, rows, last_rows, z_T, keys, noise, known, ends, *, unroll: int, remat: bool):
    """The scan over the rows of a table. What a sampler lacks is ``None``, so it is not in the program."""

    def draw(number: Array, z: blocks.State) -> blocks.State:
        if noise is not None:
            return jax.tree.map(lambda xi: xi[number], noise)
        return random.normal_like(keys, number, z)

    def add_noise(z: blocks.State, matrix: Array, number: Array) -> blocks.State:
        return jax.lax.cond(number >= 0, lambda z: blocks.add(z, blocks.apply(matrix, draw(number, z))), lambda z: z, z)

    def body(carry, inputs):
        (z, history), (row, end) = carry, inputs
        if row["P"] is not None:
            z = add_noise(blocks.apply(row["P"], z), row["Rpre"], row["pre_draw"])
        eps = evaluate(eps_fn, z, row["tau"])
        q = blocks.add(blocks.apply(row["U"], z), blocks.apply(row["V"], eps))
        history = (q, *history[:-1])
        terms = [blocks.apply(row["A"], z)] + [blocks.apply(row["B"][j], q) for j, q in enumerate(history)]
        z = blocks.add(*terms)
        if row["R"] is not None:
            z = add_noise(z, row["R"], row["post_draw"])
        if known is not None:
            z = jax.lax.cond(end > 0, lambda z: known(z, end, draw), lambda z: z, z)
        return (z, history), (None if last_rows is None else z)

    empty = jax.tree.map(jnp.zeros_like, z_T)
    if known is not None:
        z_T = known(z_T, 0, draw)
    carry = (z_T, (empty,) * rows["B"].shape[1])
    (z, _), path = jax.lax.scan(jax.checkpoint(body) if remat else body, carry, (rows, ends), unroll=unroll)
    if last_rows is None:
        return z
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest[last_rows]]), z_T, path)


#: Adaptive Runge-Kutta methods, and what diffrax calls them.
SOLVERS = {"rk23": "Bosh3", "rk45": "Dopri5", "tsit5": "Tsit5", "dopri8": "Dopri8"}


def sample_ode(
    eps_fn: EpsFn,
    sde: LinearSDE,
    z_T: blocks.State,
    *,
    t_start: float = 1.0,
    t_end: float | None = None,
    solver: str = "rk45",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    denoise: bool | str = True,
    step_control: str = "sample",
    max_steps: int = 4096,
) -> tuple[blocks.State, Array]:
    """Solve the probability-flow ODE with an adaptive Runge-Kutta method (diffrax).

    ``dz/dt = (F - D Cskip / 2) z - D C eps(z, t) / 2`` from ``t_start`` to ``t_end``.

    Args:
      eps_fn, z_T: as for :func:`sample`.
      solver: ``rk23``, ``rk45``, ``tsit5`` or ``dopri8``.
      rtol, atol: tolerances on the root-mean-square error of a step.
      t_end: that of the diffusion by default, ``sde.t_end``.
      denoise: add the step from ``t_end`` to the data (1 evaluation), see :func:`psld_jax.tabulate`.
      step_control: ``"sample"`` chooses steps for each sample alone, so that no sample depends on its batch;
        ``"batch"`` shares them (the original's behaviour; cheaper for tight reference solutions).
      max_steps: bound on the steps, rejected ones included. The first step is a hundredth of the interval.

    Returns:
      The final state, and the true NFE of each sample, int ``[n]``.

    Raises:
      ValueError: for an unknown solver, tolerances or times out of range, or a state that does not fit.
    """
    t_end = sde.t_end if t_end is None else t_end
    check_solver(solver, rtol, atol)
    if step_control not in ("sample", "batch"):
        raise ValueError(f"step_control={step_control!r} must be one of sample, batch")
    if not 0 < t_end < t_start <= 1:
        raise ValueError(f"need 0 < t_end < t_start <= 1, got t_end={t_end}, t_start={t_start}")
    _, dtype = _check_state(z_T, sde.num_blocks)
    last = last_stage(sde, t_end, denoise or True)
    final = to_device(np.stack([last.A, last.B[0]]), dtype) if denoise else None
    times = to_device(np.array([t_start, t_end, rtol, atol]), dtype)
    return _run_ode(
        blocks.as_pytree(eps_fn),
        velocity(sde, t_end, t_start),
        final,
        jax.tree.map(jnp.asarray, z_T),
        times,
        solver=solver,
        step_control=step_control,
        max_steps=max_steps,
    )


def encode_ode(
    eps_fn: EpsFn,
    sde: LinearSDE,
    z: blocks.State,
    *,
    t_end: float | None = None,
    solver: str = "rk45",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = 4096,
) -> tuple[blocks.State, Array]:
    """Follow the probability-flow ODE the other way, from ``t_end`` to 1.

    Args:
      eps_fn, sde, solver, rtol, atol, max_steps: as for :func:`sample_ode`.
      z: state at ``t_end``, leaves ``[n, ...]`` of one floating dtype.
      t_end: where to start, in (0, 1); ``sde.t_end`` by default.

    Returns:
      The state at 1, and the true NFE of each sample, int ``[n]``.

    Raises:
      ValueError: as :func:`sample_ode`.
    """
    t_end = sde.t_end if t_end is None else t_end
    check_solver(solver, rtol, atol)
    if not 0 < t_end < 1:
        raise ValueError(f"need 0 < t_end < 1, got t_end={t_end}")
    _, dtype = _check_state(z, sde.num_blocks)
    return _run_ode(
        blocks.as_pytree(eps_fn),
        velocity(sde, t_end, 1.0),
        None,
        jax.tree.map(jnp.asarray, z),
        to_device(np.array([t_end, 1.0, rtol, atol]), dtype),
        solver=solver,
        step_control="sample",
        max_steps=max_steps,
    )


def check_solver(solver: str, rtol: float, atol: float) -> None:
    """Raise a ``ValueError`` for an unknown solver, or tolerances that are not > 0."""
    check_choice("ODE solver", solver, SOLVERS)
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"rtol={rtol} and atol={atol} must be > 0")


def velocity(sde: LinearSDE, t_end: float, t_start: float) -> TimeFunction:
    """``[H, N] [K, 2 K]`` of the probability-flow ODE ``dz/dt = H z + N eps`` between the two times."""

    return TimeFunction(lambda t: np.concatenate(sde.probability_flow(t), axis=-1), t_end * (1 - 1e-5), t_start)


@partial(xla.jit, static_argnames=("solver", "step_control", "max_steps"))
def _run_ode(eps_fn, velocity, final, z_T, times, *, solver, step_control, max_steps):

    def field(t, z, _):
        matrix = velocity(t)
        k = matrix.shape[0]
        eps = evaluate(eps_fn, z, t)
        return blocks.add(blocks.apply(matrix[:, :k], z), blocks.apply(matrix[:, k:], eps))

    def solve(z):
        z, nfe = integrate(field, solver, times, z, max_steps=max_steps)
        if final is not None:
            eps = evaluate(eps_fn, z, times[1])
            z = blocks.add(blocks.apply(final[0], z), blocks.apply(final[1], eps))
            nfe = nfe + 1
        return z, nfe

    if step_control == "batch":
        z, nfe = solve(z_T)
        return z, jnp.full(jax.tree.leaves(z_T)[0].shape[0], nfe)
    z, nfe = jax.vmap(solve)(jax.tree.map(lambda leaf: leaf[:, None], z_T))
    return jax.tree.map(lambda leaf: leaf[:, 0], z), nfe


def integrate(
    field: Callable[..., Any],
    solver: str,
    times: Array,
    z: Any,
    *,
    max_steps: int,
    first_step: Array | None = None,
    args: Any = None,
    norm: Callable[[Any], Array] | None = None,
) -> tuple[Any, Array]:
    """``dz/dt = field(t, z, args)`` from ``times[0]`` to ``times[1]`` at tolerances ``times[2:]``, by diffrax.

    ``times`` holds four scalars, ``z`` is a pytree. ``first_step`` is a hundredth of the interval if not given,
    ``norm`` of a step's error the root mean square. Returns the end, and the evaluations of ``field``: the stages of
    every step, of which FSAL methods reuse the last one in the next step.
    """
    import diffrax  # here, since it takes a second that most samplers need not wait for

    t_start, t_end, rtol, atol = times
    method = getattr(diffrax, SOLVERS[solver])()
    control: dict[str, Any] = {} if norm is None else {"norm": norm}
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        method,
        t_start,
        t_end,
        0.01 * (t_end - t_start) if first_step is None else first_step,
        z,
        args=args,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, **control),
        saveat=diffrax.SaveAt(t1=True),
        max_steps=max_steps,
    )
    steps, tableau = solution.stats["num_steps"], method.tableau
    end = jax.tree.map(lambda leaf: leaf[0], solution.ys)
    return end, steps * tableau.num_stages - tableau.fsal * (steps - 1)
