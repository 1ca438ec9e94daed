"""Splitting and conjugate splitting integrators (Pandey, Rudolph & Mandt, ICLR 2024, sections 3.2 and 3.3).

A splitting is a word. Each letter advances one part of the dynamics while the rest stands still:

- ``A``: position (the rows of x), ``B``: momentum (the rows of m), with the network's prediction;
- ``O``: the Ornstein-Uhlenbeck part of the reverse SDE, solved exactly. A word without it splits the ODE.

A letter that occurs twice advances half a step each time: the first over ``[t, middle]``, the second over
``[middle, s]``. *Naive* schemes evaluate the network anew for every A and B, always at time ``t``. *Reduced*
schemes evaluate at ``t`` before the first letter that needs it, and once more at ``s`` where a letter comes
back: that letter ends the step, so it should see the end's state and time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from psld_jax._runtime.checks import check_number
from psld_jax.integrators.base import PAPER, Stage, check_stationary, register
from psld_jax.integrators.conjugate import conjugate_stage
from psld_jax.sde import LinearSDE

_PROJECT = {"A": np.diag([1.0, 0.0]), "B": np.diag([0.0, 1.0])}
_NOISE_SCALING = ("step", "mean_time")

# (projection E, evaluation time, start, end, stochastic) -> the stage that advances E's rows.
Flow = Callable[[np.ndarray, float, float, float, bool], Stage]


def split_step(
    sde: LinearSDE,
    t: float,
    s: float,
    word: str,
    *,
    reduced: bool,
    flow: Flow,
    lam_s: float = 1.0,
    noise_scaling: str = "step",
) -> list[Stage]:
    """Return the stages of one step of the splitting ``word``; see the module's docstring for the rules.

    Raises:
      ValueError: for a diffusion without a momentum or (with O) a stationary law, ``lam_s < 0``, or another
        ``noise_scaling``.
    """
    if sde.num_blocks != 2:
        raise ValueError(
            f"a splitting integrator needs a position and a momentum block (K = 2), this SDE has K = "
            f"{sde.num_blocks}; use e.g. euler, ddim or sscs"
        )
    stochastic, middle = "O" in word, (t + s) / 2
    if stochastic:
        check_stationary(sde, f"the splitting {word}")
    stages: list[Stage] = []
    tau: float | None = None
    for i, letter in enumerate(word):
        again = letter in word[:i]
        if again:
            start, end = middle, s
        else:
            start, end = t, middle if letter in word[i + 1 :] else s
        if letter == "O":
            stages.append(_ornstein_uhlenbeck(sde, start, end, lam_s, noise_scaling))
            continue
        due = s if again and reduced else t
        fresh = not reduced or tau is None or (again and tau != s)
        tau = due if fresh else tau
        assert tau is not None
        stage = flow(_PROJECT[letter], tau, start, end, stochastic)
        stages.append(stage.at(tau) if fresh else stage)
    return stages


def _ornstein_uhlenbeck(sde: LinearSDE, t: float, s: float, lam_s: float, noise_scaling: str) -> Stage:
    """O from ``t`` to ``s``: ``z_k <- e^{-r_k} z_k + sqrt(S_k (1 - e^{-2 r_k})) xi_k``.

    ``r = (b(t) - b(s))/2 diag(D Sigma_inf^-1)/beta``, which is ``h beta (gamma, nu)/2`` for PSLD. ``lam_s`` multiplies
    the exponent of the position's noise; ``noise_scaling="mean_time"`` puts ``b((t + s)/2)`` there.
    """
    lam_s = check_number("lam_s", lam_s, 0.0)
    if noise_scaling not in _NOISE_SCALING:
        raise ValueError(f"noise_scaling={noise_scaling!r} must be one of {', '.join(_NOISE_SCALING)}")
    b = sde.beta_integral
    prior = np.diagonal(sde.prior_cov())
    friction = np.diagonal(sde.unit_diffusion) / prior  # (gamma, nu)
    length = b(t) - b(s)
    position = lam_s * (length if noise_scaling == "step" else b((t + s) / 2))
    exponent = np.array([position, length]) * friction
    return Stage(np.diag(np.exp(-length * friction / 2)), R=np.diag(np.sqrt(prior * -np.expm1(-exponent))))


def euler_flow(sde: LinearSDE) -> Flow:
    """Advance letters by Euler, with coefficients frozen at the time of the evaluation.

    ODE: ``z <- (I - h E F) z + (h/2) E D score``. SDE: ``z <- (I + h E (-F - F_O)) z + h E D score`` with
    ``F_O = -D Sigma_inf^-1 / 2``, the drift that O takes over.
    """

    def flow(e: np.ndarray, tau: float, start: float, end: float, stochastic: bool) -> Stage:
        h, f, d = start - end, sde.drift(tau), sde.diffusion(tau)
        weight = 1.0 if stochastic else 0.5
        if stochastic:
            f = f - 0.5 * d @ np.linalg.inv(sde.prior_cov())
        a = np.eye(2) + h * e @ (-f + weight * d @ sde.score_skip(tau))
        return Stage(a, (weight * h * e @ d @ sde.score_matrix(tau),))

    return flow


def conjugate_split_flow(sde: LinearSDE, lam: Any) -> Flow:
    """Advance letters by a conjugate step over their own interval, with ``B = lam 1 1^T``.

    Raises:
      ValueError: unless ``lam`` is a finite number.
    """
    b = check_number("lam", lam) * np.ones((2, 2))

    def flow(e: np.ndarray, tau: float, start: float, end: float, stochastic: bool) -> Stage:
        del tau  # the coefficients are averaged over the sub-step, wherever eps was evaluated
        return conjugate_stage(sde, start, end, b, project=e, stochastic=stochastic)

    return flow


# --- the ODE: position and momentum by turns ------------------------------------------------------------


@register("naive_symplectic_euler", order=1, aliases=("NSE",), source=PAPER)
def naive_symplectic_euler(sde: LinearSDE, t: float, s: float) -> list[Stage]:
    """NSE: momentum, then position, each with its own evaluation at ``t``. Word ``BA``.

    Order 1, NFE 2, deterministic, K = 2.
    """
    return split_step(sde, t, s, "BA", reduced=False, flow=euler_flow(sde))


@register("reduced_symplectic_euler", order=1, aliases=("RSE",), source=PAPER)
def reduced_symplectic_euler(sde: LinearSDE, t: float, s: float) -> list[Stage]:
    """RSE: momentum, then position, sharing one evaluation at ``t``. Word ``BA``.

    Order 1, NFE 1, deterministic, K = 2.
    """
    return split_step(sde, t, s, "BA", reduced=True, flow=euler_flow(sde))


@register("naive_velocity_verlet", order=1, aliases=("NVV",), source=PAPER)
def naive_velocity_verlet(sde: LinearSDE, t: float, s: float) -> list[Stage]:
    """NVV: half a step of momentum, position, half a step of momentum; three evaluations at ``t``. Word ``BAB``.

    Order 1, NFE 3, deterministic, K = 2.
    """
    return split_step(sde, t, s, "BAB", reduced=False, flow=euler_flow(sde))


@register("reduced_velocity_verlet", order=1, aliases=("RVV",), source=PAPER)
def reduced_velocity_verlet(sde: LinearSDE, t: float, s: float) -> list[Stage]:
    """RVV: as NVV, but one evaluation at ``t`` for the first two updates and one at ``s`` for the last. Word ``BAB``.

    Order 1, NFE 2, deterministic, K = 2.
    """
    return split_step(sde, t, s, "BAB", reduced=True, flow=euler_flow(sde))


# --- the SDE: A, B and O ---------------------------------------------------------------------------------


@register("naive_oba", order=1, aliases=("NOBA",), source=PAPER)
def naive_oba(sde: LinearSDE, t: float, s: float, *, lam_s: float = 1.0, noise_scaling: str = "step") -> list[Stage]:
    """NOBA: O, then momentum and position with an evaluation each. Word ``OBA``.

    Weak order 1, NFE 2, one draw, K = 2. ``lam_s >= 0`` scales the noise exponent of the position (1 is exact).
    """
    return split_step(sde, t, s, "OBA", reduced=False, flow=euler_flow(sde), lam_s=lam_s, noise_scaling=noise_scaling)


@register("naive_baoab", order=1, aliases=("NBAOAB",), source=PAPER)
def naive_baoab(sde: LinearSDE, t: float, s: float, *, lam_s: float = 1.0, noise_scaling: str = "step") -> list[Stage]:
    """NBAOAB: an evaluation at ``t`` for each of the four half updates around O. Word ``BAOAB``.

    Weak order 1, NFE 4, one draw, K = 2. ``lam_s`` as in ``naive_oba``.
    """
    return split_step(sde, t, s, "BAOAB", reduced=False, flow=euler_flow(sde), lam_s=lam_s, noise_scaling=noise_scaling)


@register("naive_obab", order=1, aliases=("NOBAB",), source=PAPER)
def naive_obab(sde: LinearSDE, t: float, s: float, *, lam_s: float = 1.0, noise_scaling: str = "step") -> list[Stage]:
    """NOBAB: O, then a velocity-Verlet sweep with an evaluation at ``t`` for each update. Word ``OBAB``.

    Weak order 1, NFE 3, one draw, K = 2. ``lam_s`` as in ``naive_oba``.
    """
    return split_step(sde, t, s, "OBAB", reduced=False, flow=euler_flow(sde), lam_s=lam_s, noise_scaling=noise_scaling)


@register("reduced_oba", order=1, aliases=("ROBA",), source=PAPER)
def reduced_oba(sde: LinearSDE, t: float, s: float, *, lam_s: float = 1.0, noise_scaling: str = "step") -> list[Stage]:
    """ROBA: O, then momentum and position from one evaluation at ``t``. Word ``OBA``.

    Weak order 1, NFE 1, one draw, K = 2. ``lam_s`` as in ``naive_oba``.
    """
    return split_step(sde, t, s, "OBA", reduced=True, flow=euler_flow(sde), lam_s=lam_s, noise_scaling=noise_scaling)


@register("reduced_baoab", order=1, aliases=("RBAOAB",), source=PAPER)
def reduced_baoab(
    sde: LinearSDE, t: float, s: float, *, lam_s: float = 1.0, noise_scaling: str = "step"
) -> list[Stage]:
    """RBAOAB: momentum and position from an evaluation at ``t``, O, position and momentum from one at ``s``.

    Word ``BAOAB``. Weak order 1, NFE 2, one draw, K = 2. ``lam_s`` as in ``naive_oba``.
    """
    return split_step(sde, t, s, "BAOAB", reduced=True, flow=euler_flow(sde), lam_s=lam_s, noise_scaling=noise_scaling)


@register("reduced_obab", order=1, aliases=("ROBAB",), source=PAPER)
def reduced_obab(sde: LinearSDE, t: float, s: float, *, lam_s: float = 1.0, noise_scaling: str = "step") -> list[Stage]:
    """ROBAB: O, then a velocity-Verlet sweep with evaluations at ``t`` and at ``s``. Word ``OBAB``.

    Weak order 1, NFE 2, one draw, K = 2. ``lam_s`` as in ``naive_oba``.
    """
    return split_step(sde, t, s, "OBAB", reduced=True, flow=euler_flow(sde), lam_s=lam_s, noise_scaling=noise_scaling)


# --- conjugate splitting ---------------------------------------------------------------------------------


@register("conjugate_symplectic_euler", order=1, aliases=("CSE",), source=PAPER)
def conjugate_symplectic_euler(sde: LinearSDE, t: float, s: float, *, lam: float = 0.5) -> list[Stage]:
    """CSE: RSE with conjugate steps (``B = lam 1 1^T``) in place of Euler's. Word ``BA``.

    Order 1, NFE 1, deterministic, K = 2.
    """
    return split_step(sde, t, s, "BA", reduced=True, flow=conjugate_split_flow(sde, lam))


@register("conjugate_velocity_verlet", order=1, aliases=("CVV", "CSPS-D"), source=PAPER)
def conjugate_velocity_verlet(sde: LinearSDE, t: float, s: float, *, lam: float = 0.5) -> list[Stage]:
    """CVV, the paper's CSPS-D: RVV with conjugate steps (``B = lam 1 1^T``) in place of Euler's. Word ``BAB``.

    Order 1, NFE 2, deterministic, K = 2.
    """
    return split_step(sde, t, s, "BAB", reduced=True, flow=conjugate_split_flow(sde, lam))


@register("conjugate_oba", order=1, aliases=("COBA",), source=PAPER)
def conjugate_oba(
    sde: LinearSDE, t: float, s: float, *, lam: float = 0.5, lam_s: float = 1.0, noise_scaling: str = "step"
) -> list[Stage]:
    """COBA: ROBA with conjugate steps (``B = lam 1 1^T``) in place of Euler's. Word ``OBA``.

    Weak order 1, NFE 1, one draw, K = 2. ``lam_s`` as in ``naive_oba``.
    """
    flow = conjugate_split_flow(sde, lam)
    return split_step(sde, t, s, "OBA", reduced=True, flow=flow, lam_s=lam_s, noise_scaling=noise_scaling)


@register("conjugate_baoab", order=1, aliases=("CBAOAB",), source=PAPER)
def conjugate_baoab(
    sde: LinearSDE, t: float, s: float, *, lam: float = 0.5, lam_s: float = 1.0, noise_scaling: str = "step"
) -> list[Stage]:
    """CBAOAB: RBAOAB with conjugate steps (``B = lam 1 1^T``) in place of Euler's. Word ``BAOAB``.

    Weak order 1, NFE 2, one draw, K = 2. ``lam_s`` as in ``naive_oba``.
    """
    flow = conjugate_split_flow(sde, lam)
    return split_step(sde, t, s, "BAOAB", reduced=True, flow=flow, lam_s=lam_s, noise_scaling=noise_scaling)


@register("conjugate_obab", order=1, aliases=("COBAB", "CSPS-S"), source=PAPER)
def conjugate_obab(
    sde: LinearSDE, t: float, s: float, *, lam: float = 0.5, lam_s: float = 1.0, noise_scaling: str = "step"
) -> list[Stage]:
    """COBAB, the paper's CSPS-S: ROBAB with conjugate steps (``B = lam 1 1^T``) in place of Euler's. Word ``OBAB``.

    Weak order 1, NFE 2, one draw, K = 2. ``lam_s`` as in ``naive_oba``.
    """
    flow = conjugate_split_flow(sde, lam)
    return split_step(sde, t, s, "OBAB", reduced=True, flow=flow, lam_s=lam_s, noise_scaling=noise_scaling)
