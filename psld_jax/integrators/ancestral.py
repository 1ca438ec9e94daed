"""Ancestral sampling: the data prediction with fresh noise, exact for a known ``x_0``."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.linalg import schur

from psld_jax._runtime.checks import check_number
from psld_jax.integrators.base import Stage, choice, register
from psld_jax.integrators.exponential import Projection, make_prediction
from psld_jax.sde import LinearSDE, cholesky


def bridge(sde: LinearSDE, t: float, s: float, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """Gain and noise covariance of ``p(z_s | z_t, x_0)``, ``s < t``, with a part ``eta`` of its noise; ``[K, K]`` each.

    ``z_s = mu_s x_0 + K (z_t - mu_t x_0) + noise``. With all of the noise (``eta = 1``) the gain is
    ``K = Sigma_s Psi(t, s)^T Sigma_t^-1`` and the covariance ``S = Sigma_s - K Psi(t, s) Sigma_s``; with none it is the
    probability-flow ODE, ``K = R_s R_t^-1``. In between the noise is ``eta^2 S`` and ``K = R_s G R_t^-1``, where
    ``G G^T = I - eta^2 R_s^-1 S R_s^-T`` keeps the covariance of ``z_s`` at ``Sigma_s`` for every ``eta``. What this
    leaves open is a rotation on the right of ``G``: that of ``eta = 1``, to the power ``eta``.
    """
    psi, end = sde.transition(t, s), sde.cov(s)
    full = end @ np.linalg.solve(sde.cov(t), psi).T
    # Joseph's form, a sum of positive terms: the difference would cancel for small steps.
    rest = np.eye(sde.num_blocks) - full @ psi
    noise = rest @ end @ rest.T + full @ sde.noise_cov(t, s) @ full.T
    r_t, r_s = sde.frame(t), sde.frame(s)
    # I - R_s^-1 S R_s^-T is G G^T of eta = 1, whose singular values are at hand: nothing has to be subtracted.
    u, values, v = np.linalg.svd(np.linalg.solve(r_s, full @ r_t))
    root = (u * np.sqrt(1 - eta**2 + (eta * values) ** 2)) @ u.T
    # An orthogonal matrix is normal: its complex Schur form is diagonal, and a power is one of numbers.
    form, basis = schur(u @ v, output="complex")[:2]
    gain = root @ np.real((basis * np.diag(form) ** eta) @ basis.conj().T)
    return r_s @ gain @ np.linalg.inv(r_t), eta**2 * noise


@register("ancestral", order=lambda hyper: hyper["order"], source="Song, Meng & Ermon, 2021")
def ancestral(
    sde: LinearSDE,
    t: float,
    s: float,
    past: tuple[float, ...],
    *,
    order: int = 2,
    eta: float = 1.0,
    projection: Projection = "least_squares",
) -> list[Stage]:
    """Ancestral sampling in phase space: ``z_s ~ p(z_s | z_t, x_0)`` with the predicted ``x_0``, see :func:`bridge`.

    On VP, DDPM for ``eta = 1`` and DDIM with that ``eta`` below (Song, Meng & Ermon, ICLR 2021). Order 2 extrapolates
    ``x_0`` to the middle of the step in log-SNR, as SDE-DPM-Solver++(2M) does (Lu et al., 2022). Weak order 1 or 2 (1
    on the first step), NFE 1, one draw (none for ``eta = 0``, which is deterministic), any K.

    Args:
      order: 1 or 2.
      eta: 0 to 1, how much of the posterior's noise.
      projection: as for ``exponential_multistep``.

    Raises:
      ValueError: for another order or projection, or ``eta`` outside [0, 1].
    """
    choice("order", order, (1, 2))
    eta = check_number("eta", eta, 0.0)
    if eta > 1:
        raise ValueError(f"eta={eta} must lie in [0, 1]")
    stage = ancestral_stage(sde, t, s, eta, projection)
    if order == 2 and past:
        (pull,) = stage.B
        before, now, after = (sde.log_snr(np.float64(u)) for u in (past[0], t, s))
        slope = 0.5 * (after - now) / (now - before)
        stage = dataclasses.replace(stage, B=((1 + slope) * pull, -slope * pull))
    return [stage]


def ancestral_stage(
    sde: LinearSDE, t: float, s: float, eta: float = 1.0, projection: Projection = "least_squares"
) -> Stage:
    """``z_s ~ p(z_s | z_t, x_0)`` with ``x_0`` predicted at ``t``, see :func:`bridge`; exact for a known ``x_0``."""
    p, u = make_prediction(sde, "data", projection), np.float64(t)
    gain, noise = bridge(sde, t, s, eta)
    pull = (sde.mean(s) - gain @ sde.mean(t)) @ np.eye(sde.num_blocks)[:1]
    return Stage(gain, (pull,), cholesky(noise) if eta > 0 else None, t, p.U(u), p.V(u))


@register("ddpm", order=1, aliases=("DDPM",), source="Ho, Jain & Abbeel, 2020")
def ddpm(sde: LinearSDE, t: float, s: float, *, variance: str = "posterior") -> list[Stage]:
    """DDPM (Ho, Jain & Abbeel, NeurIPS 2020): ``ancestral`` with ``order=1``, and a choice of its noise.

    ``z_s = mu_s x_0 + K (z_t - mu_t x_0) + noise``, see :func:`bridge`. Weak order 1, NFE 1, one draw, any K.

    Args:
      variance: ``"posterior"``, of ``p(z_s | z_t, x_0)``, which is exact for a known ``x_0`` (``beta~`` of the paper,
        ``fixed_small`` in diffusers); or ``"forward"``, of ``p(z_t | z_s)``, the upper bound (``beta``,
        ``fixed_large``).

    Raises:
      ValueError: for another variance.
    """
    choice("variance", variance, ("posterior", "forward"))
    stage = ancestral_stage(sde, t, s)
    # Nothing is left to add where the data are reached.
    if variance == "forward" and s > 0:
        stage = dataclasses.replace(stage, R=cholesky(sde.noise_cov(t, s)))
    return [stage]


@register("euler_ancestral", order=1, source="Katherine Crowson, 2022")
def euler_ancestral(sde: LinearSDE, t: float, s: float, *, eta: float = 1.0) -> list[Stage]:
    """Euler with ancestral noise (k-diffusion, 2022, ``sample_euler_ancestral``): ``ancestral`` with ``order=1``.

    ``x <- x + (sigma_down - sigma_t) d + sigma_up xi`` with ``sigma_up = eta sigma_s sqrt(1 - sigma_s^2 / sigma_t^2)``
    and ``sigma_down^2 = sigma_s^2 - sigma_up^2``, in units of ``alpha``. Weak order 1, NFE 1, one draw (none for
    ``eta=0``), any K.

    Raises:
      ValueError: for ``eta`` outside [0, 1].
    """
    return list(ancestral(sde, t, s, (), order=1, eta=eta))
