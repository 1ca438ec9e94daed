"""Baselines: Euler, Euler-Maruyama, Heun, and the symmetric splitting SSCS."""

from __future__ import annotations

from typing import Any

import numpy as np

from psld_jax._runtime.checks import check_flag, check_number
from psld_jax.integrators.ancestral import ancestral_stage
from psld_jax.integrators.base import Stage, check_stationary, choice, register
from psld_jax.sde import LinearSDE, OneBlock, cholesky, linear_flow


def euler_stage(sde: LinearSDE, t: float, h: float, *, stochastic: bool = False) -> Stage:
    """Make one Euler update of length ``h`` from ``t``: coefficients frozen at ``t``, no noise, one evaluation.

    ``z <- (I - h F + w h D Cskip) z + w h D C eps``, ``w = 1/2`` for the probability-flow ODE and 1 for the
    drift of the reverse SDE.
    """
    if not stochastic:
        flow, forcing = sde.probability_flow(t)
        return Stage(np.eye(sde.num_blocks) - h * flow, (-h * forcing,)).at(t)
    d = sde.diffusion(t)
    a = np.eye(sde.num_blocks) - h * sde.drift(t) + h * d @ sde.score_skip(t)
    return Stage(a, (h * d @ sde.score_matrix(t),)).at(t)


#: How samples are brought from the end of a grid to the data.
LAST_STEPS = ("euler", "exponential")


def check_last_step(denoise: Any) -> None:
    """Raise a ``ValueError`` unless ``denoise`` is True, False or the name of a last step."""
    if isinstance(denoise, str):
        choice("denoise", denoise, LAST_STEPS)
    else:
        check_flag("denoise", denoise)


def last_stage(sde: LinearSDE, t: float, how: bool | str = True, *, stochastic: bool = False) -> Stage:
    """Make the step from ``t`` to the data at 0, without noise; one evaluation.

    ``"euler"`` is :func:`euler_stage` over the whole of ``t``, the original's. ``"exponential"`` is the step that is
    exact for a constant ``E[x_0 | z]``, which ends there: ``x <- E[x_0 | z]``; for ``alpha = 1`` and ``sigma``
    proportional to time both are the same. Momenta, which nothing depends on any more, follow Euler. ``True`` is the
    one that the diffusion has for its own.

    Raises:
      ValueError: for another name.
    """
    its_own = isinstance(how, (bool, np.bool_)) and how
    how = sde.last_step if its_own else choice("denoise", how, LAST_STEPS)
    if how == "euler":
        return euler_stage(sde, t, t, stochastic=stochastic)
    u, v = sde.denoiser(t)
    if sde.num_blocks == 1:
        return Stage(u, (v,)).at(t)
    rest = euler_stage(sde, t, t, stochastic=stochastic)
    return Stage(np.concatenate([u, rest.A[1:]]), (np.concatenate([v, rest.B[0][1:]]),)).at(t)


@register("euler", order=1, source="Song et al., 2021")
def euler(sde: LinearSDE, t: float, s: float) -> list[Stage]:
    """Euler's method on the probability-flow ODE ``dz/dt = F z - D score / 2`` (Song et al., ICLR 2021, eq. 13).

    ``z <- (I - h F) z + (h/2) D C eps``. Order 1, NFE 1, deterministic, any K.
    """
    return [euler_stage(sde, t, t - s)]


@register("heun", order=2, source="Karras et al., 2022")
def heun(sde: LinearSDE, t: float, s: float) -> list[Stage]:
    """Heun's method (trapezoidal rule with an Euler predictor) on the probability-flow ODE.

    ``z' = z + h k(z, t)``, ``z <- z + (h/2)(k(z, t) + k(z', s))`` (Karras et al., 2022, algorithm 1).
    Order 2, NFE 2, deterministic, any K.
    """
    h = t - s
    predictor, slope = euler_stage(sde, t, h), euler_stage(sde, s, h)
    # The old state is recovered from the predicted one, z = A^-1 (z' - B eps_0); then z <- (z + z' + h k_1) / 2.
    back = np.linalg.inv(predictor.A)
    corrector = Stage(0.5 * (back + slope.A), (0.5 * slope.B[0], -0.5 * back @ predictor.B[0]), tau=s)
    return [predictor, corrector]


@register("euler_maruyama", order=1, aliases=("EM",), source="Song et al., 2021")
def euler_maruyama(sde: LinearSDE, t: float, s: float) -> list[Stage]:
    """Euler-Maruyama on the reverse SDE ``dz = (F z - D score) dt + G dw`` (Song et al., ICLR 2021, eq. 6).

    ``z <- (I - h F) z + h D C eps + sqrt(h) G xi``. Weak order 1, NFE 1, one draw, any K. Where a path has lost its
    signal, the first step is that of ``ancestral``.
    """
    if isinstance(sde, OneBlock) and not sde.has_signal(t):
        # All noise is new there: the step of the SDE is infinitely long, and the one for a known x_0 is exact.
        return [ancestral_stage(sde, t, s)]
    h = t - s
    drift = euler_stage(sde, t, h, stochastic=True)
    return [Stage(drift.A, drift.B, np.sqrt(h) * sde.dispersion(t)).at(t)]


@register("sscs", order=1, aliases=("SSCS",), source="Dockhorn et al., 2022")
def sscs(sde: LinearSDE, t: float, s: float, *, beta_rule: str = "exact", jitter: float | None = None) -> list[Stage]:
    """Symmetric splitting of the reverse SDE (CLD-SGM's SSCS: Dockhorn et al., ICLR 2022, section 3.3).

    Half a step of the exact flow of ``dz = (-F - D Sigma_inf^-1) z + G dw`` (in reverse time), the score
    step ``z <- (I + h D Sigma_inf^-1) z + h D score`` at ``t``, half a step again. Weak order 1 (the score step
    is an Euler step at the start of the interval), NFE 1, two draws, any K.

    Args:
      beta_rule: ``"exact"`` integrates ``beta`` over each half-step. ``"original"`` reproduces the original PSLD
        code, which uses the first half's integral for both (equal for a constant beta).
      jitter: added to the diagonal of each half-step's covariance; ``None`` for that of the diffusion, as in the
        original PSLD code. CLD-SGM adds ``sscs_num_stab``, which is 0 in its configurations.

    Raises:
      ValueError: for another ``beta_rule``, a jitter that is negative or not finite, or a diffusion without a
        stationary law.
    """
    if beta_rule not in ("exact", "original"):
        raise ValueError(f"beta_rule={beta_rule!r} must be one of exact, original")
    jitter = sde.jitter if jitter is None else check_number("jitter", jitter, 0.0)
    check_stationary(sde, "SSCS")
    h, middle = t - s, (t + s) / 2
    b = sde.beta_integral
    first_half = b(t) - b(middle)
    lengths = first_half, b(middle) - b(s) if beta_rule == "exact" else first_half
    pull = sde.diffusion(t) @ np.linalg.inv(sde.prior_cov())
    score = Stage(
        np.eye(sde.num_blocks) + h * pull + h * sde.diffusion(t) @ sde.score_skip(t),
        (h * sde.diffusion(t) @ sde.score_matrix(t),),
    )
    first, last = (_reverse_ou(sde, length, jitter) for length in lengths)
    return [first, score.at(t), last]


def _reverse_ou(sde: LinearSDE, length: float, jitter: float) -> Stage:
    """Exact flow of ``dz = (-F - D Sigma_inf^-1) z + G dw`` over ``length`` units of ``int beta``.

    Its drift is ``Sigma_inf F^T Sigma_inf^-1`` (time reversal of the stationary process), so it keeps
    ``Sigma_inf``. The jitter is added to the covariance gained.
    """
    sigma, f, d = sde.prior_cov(), sde.unit_drift, sde.unit_diffusion
    flow, cov = linear_flow(sigma @ f.T @ np.linalg.inv(sigma), d, length)
    return Stage(flow, R=cholesky(cov + jitter * np.eye(sde.num_blocks), sde.decomposition))
