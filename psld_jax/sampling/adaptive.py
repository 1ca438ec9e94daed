"""Adaptive Runge-Kutta methods for the probability-flow ODE in both directions, by diffrax."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psld_jax import blocks
from psld_jax._runtime import xla
from psld_jax._runtime.checks import MIN_TIME, check_number
from psld_jax._runtime.device import TimeFunction, to_device, wide
from psld_jax._runtime.errors import check_callable, check_choice, check_counts
from psld_jax.integrators.baselines import check_last_step, last_stage
from psld_jax.sampling.states import EpsFn, check_state, evaluate
from psld_jax.sde import LinearSDE, check_sde

Array = Any

#: Adaptive Runge-Kutta methods, and what diffrax calls them.
SOLVERS = {"rk23": "Bosh3", "rk45": "Dopri5", "tsit5": "Tsit5", "dopri8": "Dopri8"}

#: Steps of a solve at most, rejected ones included.
MAX_STEPS = 4096


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
    max_steps: int = MAX_STEPS,
) -> tuple[blocks.State, Array]:
    """Solve the probability-flow ODE with an adaptive Runge-Kutta method (diffrax).

    ``dz/dt = (F - D Cskip / 2) z - D C eps(z, t) / 2`` from ``t_start`` to ``t_end``.

    Args:
      eps_fn, z_T: as for :func:`sample`, but a state in half precision is solved in float32, and rounded at the end:
        rounding is no error that smaller steps would mend.
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
      ValueError: for an unknown solver, tolerances or times out of range, or a state that does not fit; and for
        tolerances that cannot be met. Inside ``jax.jit``, where nothing can be raised, such samples are NaN.
    """
    check_sde(sde)
    check_callable("eps_fn", eps_fn, "a function of a state and a time")
    _, dtype = check_state(z_T, sde.num_blocks)
    problem = ode_problem(sde, wide(dtype), t_end, t_start, solver, rtol, atol, denoise, step_control, max_steps)
    return _solved(problem, eps_fn, z_T, dtype)


def encode_ode(
    eps_fn: EpsFn,
    sde: LinearSDE,
    z: blocks.State,
    *,
    t_end: float | None = None,
    solver: str = "rk45",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = MAX_STEPS,
) -> tuple[blocks.State, Array]:
    """Follow the probability-flow ODE the other way, from ``t_end`` to 1.

    Args:
      eps_fn, sde, solver, rtol, atol, max_steps: as for :func:`sample_ode`.
      z: state at ``t_end``, leaves ``[n, ...]`` of one floating dtype; see :func:`sample_ode` for half precision.
      t_end: where to start, in (0, 1); ``sde.t_end`` by default.

    Returns:
      The state at 1, and the true NFE of each sample, int ``[n]``.

    Raises:
      ValueError: as :func:`sample_ode`.
    """
    _, dtype = check_state(z, sde.num_blocks)
    problem = ode_problem(sde, wide(dtype), t_end, 1.0, solver, rtol, atol, False, max_steps=max_steps, encode=True)
    return _solved(problem, eps_fn, z, dtype)


def check_solver(solver: str, rtol: float, atol: float, dtype: Any = np.float32) -> None:
    """Raise a ``ValueError`` for an unknown solver, or tolerances that are not > 0 or that ``dtype`` cannot resolve."""
    check_choice("ODE solver", solver, SOLVERS)
    check_number("rtol", rtol, 0, strict=True)
    check_number("atol", atol, 0, strict=True)
    resolved = float(2 * jnp.finfo(dtype).eps)
    if max(rtol, atol) < resolved:
        raise ValueError(
            f"{solver} with rtol={rtol:g} and atol={atol:g} asks for more than {np.dtype(dtype).name} resolves: one of "
            f"them must be at least {resolved:.1e}"
        )


def check_reached(problem: OdeProblem, reached: Array, nfe: Array) -> None:
    """Raise a ``ValueError`` for the first sample whose solve did not come to its end.

    ``reached`` and ``nfe`` are ``[n]``, from :func:`solve_ode`.
    """
    start, end, rtol, atol = (float(value) for value in problem.times)
    wrong = np.flatnonzero(np.asarray(reached) != np.asarray(problem.times)[1])
    if len(wrong):
        i = wrong[0]
        raise ValueError(
            f"{problem.solver} cannot meet rtol={rtol:g} and atol={atol:g} for {len(wrong)} of {len(reached)} samples: "
            f"from t={start:g} to {end:g} it came to t={float(np.asarray(reached)[i]):.4g}, {int(nfe[i])} evaluations; "
            f"take larger tolerances, or more steps than max_steps={problem.max_steps}"
        )


def velocity(sde: LinearSDE, t_end: float, t_start: float) -> TimeFunction:
    """Return ``[H, N] [K, 2 K]`` of the probability-flow ODE ``dz/dt = H z + N eps`` between the two times."""
    return TimeFunction(
        lambda t: np.concatenate(sde.probability_flow(t), axis=-1), t_end * (1 - 1e-5), t_start, knots=sde.knots
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OdeProblem:
    """A solve of the probability-flow ODE as data of a program; :func:`ode_problem` makes it.

    Attributes:
      velocity: ``[H, N]`` of ``velocity``.
      final: ``[2, K, K]``, the step to the data that ends it, or ``None``.
      times: ``[4]``: start, end, rtol, atol.
      solver, step_control, max_steps: see :func:`sample_ode`.
    """

    velocity: TimeFunction
    final: Array | None
    times: Array
    solver: str = dataclasses.field(metadata={"static": True})
    step_control: str = dataclasses.field(metadata={"static": True})
    max_steps: int = dataclasses.field(metadata={"static": True})


def ode_problem(
    sde: LinearSDE,
    dtype: Any,
    t_end: float | None,
    t_start: float,
    solver: str,
    rtol: float,
    atol: float,
    denoise: bool | str,
    step_control: str = "sample",
    max_steps: int = MAX_STEPS,
    *,
    encode: bool = False,
) -> OdeProblem:
    """Make the solve from ``t_start`` down to ``t_end``, or up to encode; checks arguments as :func:`sample_ode`.

    Raises:
      ValueError: for an unknown solver or step control, tolerances or steps out of range, or times that are not
        ``1e-9 <= t_end < t_start <= 1``.
    """
    check_last_step(denoise)
    t_end = sde.t_end if t_end is None else check_number("t_end", t_end)
    t_start = check_number("t_start", t_start)
    if not MIN_TIME <= t_end < t_start <= 1:
        raise ValueError(f"need {MIN_TIME:g} <= t_end < t_start <= 1, got t_end={t_end}, t_start={t_start}")
    check_solver(solver, rtol, atol, dtype)
    check_counts(max_steps=max_steps)
    check_choice("step_control", step_control, ("sample", "batch"))
    start, end = (t_end, t_start) if encode else (t_start, t_end)
    last = last_stage(sde, end, denoise or True)
    final = to_device(np.stack([last.A, last.B[0]]), dtype) if denoise else None
    times = to_device(np.array([start, end, rtol, atol]), dtype)
    return OdeProblem(velocity(sde, t_end, t_start), final, times, solver, step_control, max_steps)


def solve_ode(
    problem: OdeProblem, eps_fn: Any, z: blocks.State, own: dict[str, Array] | None = None
) -> tuple[blocks.State, Array, Array]:
    """Solve, as a function to be traced: the state at the end, leaves ``[n, ...]``, NFE ``[n]`` and times ``[n]``.

    The times are those that were reached; where that is not the end, the state is NaN. With ``own``, what samples have
    of their own as arrays ``[n, ...]``, ``eps_fn(own)`` is the function of a state of these samples and a time: each
    sample has steps of its own, and so its own part of them.
    """

    def solve(z, own):
        of_these = eps_fn if own is None else eps_fn(own)

        def field(t, z, _):
            matrix = problem.velocity(t)
            k = matrix.shape[0]
            eps = evaluate(of_these, z, t)
            return blocks.add(blocks.apply(matrix[:, :k], z), blocks.apply(matrix[:, k:], eps))

        z, nfe, reached = integrate(field, problem.solver, problem.times, z, max_steps=problem.max_steps)
        if problem.final is not None:
            eps = evaluate(of_these, z, problem.times[1])
            z = blocks.add(blocks.apply(problem.final[0], z), blocks.apply(problem.final[1], eps))
            nfe = nfe + 1
        done = reached == problem.times[1]
        return jax.tree.map(lambda leaf: jnp.where(done, leaf, jnp.nan), z), nfe, reached

    if problem.step_control == "batch":
        z, nfe, reached = solve(z, own)
        n = jax.tree.leaves(z)[0].shape[0]
        return z, jnp.full(n, nfe), jnp.full(n, reached)
    z, nfe, reached = jax.vmap(solve)(*jax.tree.map(lambda leaf: leaf[:, None], (z, own)))
    return jax.tree.map(lambda leaf: leaf[:, 0], z), nfe, reached


_solve = xla.jit(solve_ode, "the adaptive solver")


def _solved(problem: OdeProblem, eps_fn: EpsFn, z: blocks.State, dtype: Any) -> tuple[blocks.State, Array]:
    z = jax.tree.map(lambda leaf: jnp.asarray(leaf, wide(dtype)), z)
    z, nfe, reached = _solve(problem, blocks.as_pytree(eps_fn), z)
    if not isinstance(reached, Tracer):
        check_reached(problem, reached, nfe)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), z), nfe


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
) -> tuple[Any, Array, Array]:
    """Integrate ``dz/dt = field(t, z, args)`` from ``times[0]`` to ``times[1]`` at tolerances ``times[2:]``.

    ``times`` holds four scalars, ``z`` is a pytree. ``first_step`` is a hundredth of the interval if not given,
    ``norm`` of a step's error the root mean square. Returns the end; the evaluations of ``field``: the stages of every
    step, of which FSAL methods reuse the last one in the next step; and the time that was reached. That is not
    ``times[1]`` where ``max_steps`` were not enough, or where rounding alone is more than the tolerance, so that no
    step would be small enough.
    """
    import diffrax  # here, since it takes a second that most samplers need not wait for

    t_start, t_end, rtol, atol = times
    # A step below the rounding of the later time moves nothing.
    smallest = 4 * jnp.finfo(t_start.dtype).eps * jnp.maximum(t_start, t_end)
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
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, dtmin=smallest, **control),
        saveat=diffrax.SaveAt(t1=True),
        max_steps=max_steps,
        throw=False,
    )
    steps, tableau = solution.stats["num_steps"], method.tableau
    end = jax.tree.map(lambda leaf: leaf[0], solution.ys)
    times_reached: Any = solution.ts
    nfe = steps * tableau.num_stages - int(tableau.fsal) * (steps - 1)
    return end, nfe, times_reached[0]
