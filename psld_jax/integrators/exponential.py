"""Exponential integrators of the probability-flow ODE for three predictions, of high order, any K.

Each writes the ODE as ``dz/dt = H z + N q``, with a *prediction* ``q = U z + V eps`` that changes slowly on the way:

- ``eps``: what the network gives. ``H = F - 1/2 D Cskip``, ``N = -1/2 D C``.
- ``eps_r``: noise in the R-frame, ``q = -R^T score``. ``H = F``, ``N = 1/2 D R^-T``. Constant for a single data point.
- ``data``: ``q = E[x_0 | z] = w^T (z + Sigma score)``, in the first block. ``H = F + 1/2 D Sigma^-1``,
  ``N = -1/2 D Sigma^-1 mu``. Constant too; and it changes a network's output without training it again.

The linear part is solved exactly, ``q`` is interpolated by the polynomial through its values at a few times, and the
integrals are computed on the host to 1e-12.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from psld_jax.integrators.base import Stage, choice, register
from psld_jax.sde import LinearSDE, OneBlock
from psld_jax.sde._quadrature import conjugate_flow, integrate, once

Array = Any

PREDICTIONS = ("eps", "eps_r", "data")
VARIABLES = ("t", "log_t", "log_snr", "sigma", "vp_time")
PROJECTIONS = ("least_squares", "position", "momentum")


class Prediction(NamedTuple):
    """``dz/dt = H(t) z + N(t) q`` and ``q = U(t) z + V(t) eps``; functions of times ``[...]``, each ``[..., K, K]``.

    For a path of one block the flow of ``H`` is known: from ``t`` to ``s`` it is ``scale(s) / scale(t)``.
    """

    H: Callable[[Array], np.ndarray]
    N: Callable[[Array], np.ndarray]
    U: Callable[[Array], np.ndarray]
    V: Callable[[Array], np.ndarray]
    scale: Callable[[Array], np.ndarray] | None = None


Projection = str | Sequence[tuple[float, float, float]]


def projection(sde: LinearSDE, t: Array, kind: Projection = "least_squares") -> np.ndarray:
    """``w``, ``[..., K, 1]``, that makes one of the K equations ``z + Sigma score = mu x_0``: ``w^T mu = 1``.

    ``"least_squares"`` weighs them by ``Sigma^-1``, ``w = Sigma^-1 mu / (mu^T Sigma^-1 mu)``, as is best if ``eps`` has
    equal errors in all blocks; ``"position"`` and ``"momentum"`` take the first or the second equation alone. For a
    preconditioned network all are the same. Triples ``(t, a, b)`` are weights of what the two equations give for
    ``x_0``, as :func:`psld_jax.fit_projection` finds them for a network; linear in ``log t`` between the times. Where
    the network errs, ``a + b = w^T mu`` is less than 1.

    Raises:
      ValueError: for a diffusion that has not the blocks that are asked for.
    """
    mu = sde.mean(t)
    if not isinstance(kind, str):
        if sde.num_blocks != 2:
            raise ValueError(f"a fitted projection is for 2 blocks; {sde!r} has {sde.num_blocks}, use 'least_squares'")
        times, *weights = np.array(sorted(kind), np.float64).T
        return np.stack([np.interp(np.log(t), np.log(times), w) for w in weights], axis=-1)[..., None] / mu
    if kind == "least_squares":
        pull = np.linalg.solve(sde.cov(t), mu)
        return pull / (np.swapaxes(mu, -1, -2) @ pull)
    block = {"position": 0, "momentum": 1}[kind]
    if block >= sde.num_blocks:
        raise ValueError(f"projection={kind!r} needs a momentum; {sde!r} has none, use 'least_squares'")
    return np.eye(sde.num_blocks)[:, block : block + 1] / mu[..., block : block + 1, :]


def _check_projection(value: Any) -> None:
    if isinstance(value, str) and value in PROJECTIONS:
        return
    try:
        rows = np.array(value, np.float64)
    except (TypeError, ValueError):
        rows = np.zeros(0)
    if rows.ndim != 2 or rows.shape[-1] != 3 or not np.isfinite(rows).all() or not np.all(rows[:, 0] > 0):
        raise ValueError(f"projection={value!r} must be one of {', '.join(PROJECTIONS)}, or triples (t, a, b)")


def make_prediction(sde: LinearSDE, kind: str, project: Projection = "least_squares") -> Prediction:
    """Make the :class:`Prediction` of that name; ``project`` is for ``"data"``, see :func:`projection`.

    Raises:
      ValueError: for an unknown prediction or projection.
    """
    choice("prediction", kind, PREDICTIONS)
    _check_projection(project)
    first = np.eye(sde.num_blocks)[:, :1]

    def transposed(a: Array) -> np.ndarray:
        return np.swapaxes(a, -1, -2)

    eye = np.eye(sde.num_blocks)
    if kind == "eps":
        flow = once(sde.probability_flow)
        return Prediction(
            H=lambda t: flow(t)[0],
            N=lambda t: flow(t)[1],
            U=lambda t: np.zeros((*np.shape(t), *eye.shape)),
            V=lambda t: np.broadcast_to(eye, (*np.shape(t), *eye.shape)),
            scale=sde.flow_scale if isinstance(sde, OneBlock) else None,
        )
    if kind == "eps_r":
        return Prediction(
            H=sde.drift,
            N=lambda t: 0.5 * sde.diffusion(t) @ transposed(np.linalg.inv(sde.frame(t))),
            U=lambda t: -transposed(sde.frame(t)) @ sde.score_skip(t),
            V=lambda t: -transposed(sde.frame(t)) @ sde.score_matrix(t),
            scale=sde.alpha if isinstance(sde, OneBlock) else None,
        )

    def read(t: Array) -> tuple[np.ndarray, np.ndarray]:
        # One block has one equation for x_0, which holds where alpha vanishes, and projection() would divide by it.
        best = isinstance(project, str) and project in ("least_squares", "position")[: 3 - sde.num_blocks]
        return sde.denoiser(t, None if best else projection(sde, t, project))

    data_flow = once(sde.data_flow)
    return Prediction(
        H=lambda t: data_flow(t)[0],
        N=lambda t: data_flow(t)[1] @ first.T,
        U=lambda t: first @ read(t)[0],
        V=lambda t: first @ read(t)[1],
        scale=sde.std if isinstance(sde, OneBlock) else None,
    )


def interpolation_variable(sde: LinearSDE, name: str) -> Callable[[Array], np.ndarray]:
    """Return the variable of the interpolating polynomials.

    ``t``, ``log_t``, ``log_snr``, ``sigma = SNR^-1/2``, or ``vp_time = sqrt(log(1 + sigma^2))``, the time of a VP
    diffusion whose rate grows in proportion to it: one that is near its ``t``, for every path.
    A function of times ``[...]``, to the same shape.

    Raises:
      ValueError: for another name.
    """
    choice("variable", name, VARIABLES)
    return {
        "t": lambda t: np.asarray(t, np.float64),
        "log_t": np.log,
        "log_snr": sde.log_snr,
        "sigma": lambda t: np.exp(-0.5 * sde.log_snr(t)),
        "vp_time": lambda t: np.sqrt(np.logaddexp(0.0, -sde.log_snr(t))),
    }[name]


def exponential_step(
    sde: LinearSDE, prediction: Prediction, variable: str, t: float, s: float, nodes: Sequence[float]
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """``E`` and ``B`` of ``z_s = E z_t + sum_j B_j q(nodes_j)``, ``q`` interpolated through the nodes.

    ``E`` and each ``B_j`` are ``[K, K]``. ``E`` is the transition of ``H`` from ``t`` to ``s``, and ``B_j = int_t^s
    E(s, u) N(u) l_j(u) du`` with ``l_j`` the Lagrange polynomials of the nodes in ``variable``.
    """
    v = interpolation_variable(sde, variable)
    at = v(np.asarray(nodes, np.float64))
    # Where the signal is gone, log SNR is infinite: what was found there is too far away to count, unless it is all.
    used = [j for j in range(len(at)) if np.isfinite(at[j])] or [0]
    at = at[used]

    same = np.eye(len(at), dtype=bool)
    apart = np.subtract(at[:, None], at, out=np.ones(same.shape), where=~same)  # one that is infinite is alone

    def lagrange(u: np.ndarray) -> np.ndarray:
        if len(at) == 1:
            return np.ones((len(u), 1))
        return np.where(same, 1.0, (v(u)[:, None, None] - at) / apart).prod(axis=-1)

    def forcing(u: np.ndarray) -> np.ndarray:
        values, pull = lagrange(u), prediction.N(u)
        return np.concatenate([values[:, j, None, None] * pull for j in range(len(at))], axis=-1)

    scale = prediction.scale
    if scale is None:
        a, phi = conjugate_flow(lambda u: -prediction.H(u), forcing, t, s)
        transition = np.linalg.inv(a)
        phi = transition @ phi
    else:
        phi = scale(s) * integrate(lambda u: lagrange(u) * (prediction.N(u)[:, 0] / scale(u)[:, None]), t, s)[None]
        transition = np.reshape(scale(s) / scale(t), (1, 1))
    weights = dict(zip(used, np.split(phi, len(at), axis=1), strict=True))
    return transition, tuple(weights.get(j, np.zeros_like(transition)) for j in range(len(nodes)))


def _make_usable(
    sde: LinearSDE, kind: str, project: Projection, t: float, past: Sequence[float]
) -> tuple[Prediction, tuple[float, ...]]:
    """Return the prediction for a step from ``t``, and the earlier times at which it was made.

    Noise says nothing of ``x_0`` where a path has lost its signal. The step from there takes the data in its place, of
    first order the same step, and later ones do not look back to it.
    """
    if kind != "eps_r" or not isinstance(sde, OneBlock):
        return make_prediction(sde, kind, project), tuple(past)
    known = "eps_r" if sde.has_signal(t) else "data"
    return make_prediction(sde, known, project), tuple(u for u in past if sde.has_signal(u))


def _evaluate(prediction: Prediction, stage: Stage, tau: float) -> Stage:
    """Put an evaluation at ``tau`` before ``stage``, which takes its prediction."""
    return dataclasses.replace(stage, tau=tau, U=prediction.U(np.float64(tau)), V=prediction.V(np.float64(tau)))


@register("exponential_multistep", order=lambda hyper: hyper["order"], source="Zhang & Chen, 2023")
def exponential_multistep(
    sde: LinearSDE,
    t: float,
    s: float,
    past: tuple[float, ...],
    *,
    prediction: str = "data",
    order: int = 2,
    variable: str = "log_t",
    projection: Projection = "least_squares",
) -> list[Stage]:
    """Exponential Adams-Bashforth: ``q`` is extrapolated from the last ``order`` evaluations.

    ``z_s = E z_t + sum_j B_j q(t_-j)``. With ``eps`` in ``t`` this is tAB-DEIS (Zhang & Chen, ICLR 2023; DDIM at order
    1), with ``eps_r`` gDDIM (Zhang, Tao & Chen, ICLR 2023), with ``data`` in ``log_snr`` DPM-Solver++ (Lu et al., 2022)
    with its integrals exact. Order 2 by default, 1 to 3, NFE 1, deterministic, any K. The first step has order 1, the
    second 2; their error, of order 2, is small where ``q`` hardly moves, as ``"data"`` does near ``t = 1``.

    Args:
      prediction: ``"eps"``, ``"eps_r"`` or ``"data"``.
      order: 1, 2 or 3.
      variable: of the polynomials, ``"t"``, ``"log_t"``, ``"log_snr"``, ``"sigma"`` or ``"vp_time"``.
      projection: of ``"data"``, ``"least_squares"``, ``"position"``, ``"momentum"``, or fitted, see
        :func:`projection`.

    Raises:
      ValueError: for another prediction, order, variable or projection.
    """
    choice("order", order, (1, 2, 3))
    p, past = _make_usable(sde, prediction, projection, t, past)
    e, b = exponential_step(sde, p, variable, t, s, (t, *past[: order - 1]))
    return [_evaluate(p, Stage(e, b), t)]


@register("predictor_corrector", order=lambda hyper: hyper["order"] + 1, source="Zhao et al., 2023")
def predictor_corrector(
    sde: LinearSDE,
    t: float,
    s: float,
    past: tuple[float, ...],
    *,
    prediction: str = "data",
    order: int = 2,
    variable: str = "log_t",
    projection: Projection = "least_squares",
) -> list[Stage]:
    """Exponential multistep whose evaluation at ``t`` first corrects the step to there (as UniPC: Zhao et al., 2023).

    The step to ``t`` was taken with ``q`` extrapolated from before; with ``q(t)`` at hand it is repeated with ``q``
    interpolated: ``z_t <- z_t + sum_j (B'_j - B_j) q_j``, ``B'`` its weights and ``B`` those of the extrapolation. Then
    ``q(t)`` serves the next step. The last step is not corrected. Order 3 by default, in general ``order + 1``, NFE 1,
    deterministic, any K; arguments as for ``exponential_multistep``.

    Raises:
      ValueError: for another prediction, order, variable or projection.
    """
    choice("order", order, (1, 2, 3))
    p, past = _make_usable(sde, prediction, projection, t, past)
    e, b = exponential_step(sde, p, variable, t, s, (t, *past[: order - 1]))
    if not past:
        return [_evaluate(p, Stage(e, b), t)]
    # The step from past[0] to t again: what changes is the weight of each prediction.
    used = past[:order]
    _, old = exponential_step(sde, p, variable, past[0], t, used)
    _, new = exponential_step(sde, p, variable, past[0], t, (t, *used))
    correction = (new[0], *(after - before for after, before in zip(new[1:], old, strict=True)))
    return [_evaluate(p, Stage(np.eye(sde.num_blocks), correction), t), Stage(e, b)]


@register("exponential_runge_kutta", order=lambda hyper: hyper["order"], source="Lu et al., 2022")
def exponential_runge_kutta(
    sde: LinearSDE,
    t: float,
    s: float,
    *,
    prediction: str = "data",
    order: int = 2,
    variable: str = "log_t",
    projection: Projection = "least_squares",
) -> list[Stage]:
    """Exponential Runge-Kutta: where a multistep method reuses past evaluations, this one makes them within the step.

    ``z_s = E z_t + sum_j B_j q(tau_j)``. For order 2, the default, NFE 2: one at ``t``, one half way (in ``variable``).
    For order 3, NFE 3: at ``t``, one third and two thirds of the way; the last update takes those at 0 and 2/3. On VP,
    ``data`` in ``log_snr`` makes it DPM-Solver++(2S) and a (3S) with exact integrals (Lu et al., 2022). Deterministic,
    any K; arguments as for ``exponential_multistep``.

    Raises:
      ValueError: for another prediction, order, variable or projection.
    """
    choice("order", order, (1, 2, 3))
    p, _ = _make_usable(sde, prediction, projection, t, ())
    v = interpolation_variable(sde, variable)
    fractions = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}[order]
    middles = [_solve(v, t, s, fraction) for fraction in fractions]
    stages: list[Stage] = []
    zero = np.zeros((sde.num_blocks,) * 2)
    # Every update starts from z_t. The state at hand is ``reached z_t + sum(memory q)``, so z_t can be had from it.
    reached, memory = np.eye(sde.num_blocks), ()
    for i, (tau, end) in enumerate(zip([t, *middles], [*middles, s], strict=True)):
        e, weights = exponential_step(sde, p, variable, t, end, (t,) if i == 0 else (tau, t))
        weights = (weights[0], *[zero] * (i - 1), *weights[1:])  # newest first; t is the oldest
        back = e @ np.linalg.inv(reached)
        update = tuple(w - back @ m for w, m in zip(weights, (zero, *memory), strict=True))
        stages.append(_evaluate(p, Stage(back, update), tau))
        reached, memory = e, weights
    return stages


def _solve(v: Callable[[Array], np.ndarray], t: float, s: float, fraction: float) -> float:
    """Return the time between ``t`` and ``s`` at which the monotone ``v`` has gone that fraction of its way."""
    if not np.isfinite(v(np.float64(t))):
        return t + fraction * (s - t)
    target = v(np.float64(t)) + fraction * (v(np.float64(s)) - v(np.float64(t)))
    low, high = s, t
    falling = v(np.float64(t)) < v(np.float64(s))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (v(np.float64(middle)) > target) == falling else (low, middle)
    return (low + high) / 2
