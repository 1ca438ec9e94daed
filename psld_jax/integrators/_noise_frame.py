"""Steps in the noise frame, for well-known samplers that are written for ``x + sigma eps``.

Of a diffusion of one block, ``x_t = alpha x_0 + sigma eps``, the state ``y = x / alpha`` obeys ``dy = eps d(sigma /
alpha)``. For K blocks the same holds with matrices: ``y = Psi(t, 0)^-1 z``, ``dy = d(Psi(t, 0)^-1 R_t) eps_R`` with
``R`` of :meth:`psld_jax.sde.LinearSDE.frame` and ``eps_R = -R^T score``. So what is published in ``sigma`` carries over
to any K.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from psld_jax._runtime.checks import check_number
from psld_jax.integrators.base import Place, Stage, choice
from psld_jax.integrators.exponential import make_prediction
from psld_jax.sde import LinearSDE, cholesky

#: Whether polynomials are integrated exactly, or by what the authors' code has for it.
RULES = ("exact", "original")
#: Largest part of sigma that churn adds in one step (Karras et al., 2022, algorithm 2).
_MOST = np.sqrt(2.0) - 1.0
#: A ``sigma`` above this is infinite but for rounding.
_NO_SIGNAL = 1e12
#: The finest relative tolerance that scipy's root finder takes.
_EXACT = 4 * np.finfo(float).eps


def gone(sde: LinearSDE, t: float) -> bool:
    """Tell whether nothing of the data is left at ``t``, where ``sigma`` is infinite: a flow at ``t = 1``."""
    return bool(sde.sigma(np.float64(t)) > _NO_SIGNAL)


def regular(sde: LinearSDE, past: tuple[float, ...]) -> tuple[float, ...]:
    """Return the earlier times whose evaluations a multistep method can use: those where some signal is left."""
    return tuple(u for u in past if not gone(sde, u))


def lowered(order: int, place: Place, lower_order_final: bool, *, ago: int = 0) -> int:
    """Return the most evaluations that the step so many steps ``ago`` may use: as many as were left, itself included.

    That is if ``lower_order_final``, and ``order`` otherwise. The denoising step is one of those that are left.
    ``ValueError`` for a ``lower_order_final`` that is not a bool.
    """
    choice("lower_order_final", lower_order_final, (False, True))
    return min(order, place.num_steps - place.step + ago) if lower_order_final else order


def noise_step(sde: LinearSDE, t: float, s: float) -> tuple[np.ndarray, np.ndarray]:
    """``E``, ``B`` of ``z_s = E z_t + B eps_R``, exact for a constant ``eps_R``; ``[K, K]`` each.

    ``E = Psi(s, t)`` and ``B = R_s - Psi(s, t) R_t``; for K = 1, ``alpha_s (sigma_s / alpha_s - sigma_t / alpha_t)``.
    """
    psi = sde.transition(s, t)
    return psi, sde.frame(s) - psi @ sde.frame(t)


def data_step(sde: LinearSDE, t: float, s: float) -> tuple[np.ndarray, np.ndarray]:
    """``G``, ``P`` of ``z_s = G z_t + P q``, exact for a constant ``x_0`` in the first block of ``q``; ``[K, K]`` each.

    ``G = R_s R_t^-1`` and ``P = mu_s - G mu_t``; for K = 1, ``alpha_s (1 - e^-h)`` with ``h`` half of the gain in
    log-SNR.
    """
    gain = sde.frame(s) @ np.linalg.inv(sde.frame(t))
    return gain, (sde.mean(s) - gain @ sde.mean(t)) @ np.eye(sde.num_blocks)[:1]


def data_rate(sde: LinearSDE, s: float) -> np.ndarray:
    """``dz/dlambda`` of the ODE at ``s`` for a prediction of one, ``[K, K]``: ``N dt/dlambda``.

    For K = 1 it is ``alpha_s``.
    """
    u = np.float64(s)
    mu = sde.mean(u)
    pulled = np.linalg.solve(sde.cov(u), mu)
    # d log(mu^T Sigma^-1 mu) / dt = -|G^T Sigma^-1 mu|^2 / (mu^T Sigma^-1 mu), and lambda is half of that log.
    speed = -0.5 * float((pulled.T @ sde.diffusion(u) @ pulled)[0, 0] / (mu.T @ pulled)[0, 0])
    return make_prediction(sde, "data").N(u) / speed


def first_order(sde: LinearSDE, t: float, s: float) -> Stage:
    """Make the step that is exact for a constant prediction, with its evaluation at ``t``.

    The prediction is ``eps_R``, or ``x_0`` if need be. Both are the same step, but where no signal is left the noise
    says nothing of ``x_0``.
    """
    if gone(sde, t):
        gain, pull = data_step(sde, t, s)
        return evaluated(sde, Stage(gain, (pull,)), t, "data")
    e, b = noise_step(sde, t, s)
    return evaluated(sde, Stage(e, (b,)), t)


def evaluated(sde: LinearSDE, stage: Stage, tau: float, kind: str = "eps_r") -> Stage:
    """Put an evaluation at ``tau`` before ``stage``, which takes its prediction ``kind``."""
    prediction, u = make_prediction(sde, kind), np.float64(tau)
    return dataclasses.replace(stage, tau=float(tau), U=prediction.U(u), V=prediction.V(u))


def time_between(sde: LinearSDE, level: float, t: float, s: float) -> float:
    """Return the time between ``t`` and ``s < t`` at which ``sigma`` is ``level``, or the nearer end."""

    def lack(u: float) -> float:
        return level / float(sde.sigma(np.float64(u))) - 1.0

    if lack(t) >= 0:
        return t
    return s if lack(s) <= 0 else float(np.asarray(brentq(lack, s, t, xtol=1e-300, rtol=_EXACT)))


def half_way(sde: LinearSDE, t: float, s: float) -> float:
    """Return the time half way in ``log sigma``, or half way in time where ``sigma`` is infinite."""
    if gone(sde, t):
        return (t + s) / 2
    return time_between(sde, float(np.sqrt(sde.sigma(np.float64(t)) * sde.sigma(np.float64(s)))), t, s)


class Churn(NamedTuple):
    """Noise that is added before a step (Karras et al., 2022, algorithm 2).

    In each of ``N`` steps with ``S_min <= sigma <= S_max`` it raises ``sigma`` by the factor ``1 + min(S_churn / N,
    sqrt(2) - 1)``. ``S_noise`` scales the noise. ``sigma`` is in units of ``alpha``.
    """

    S_churn: float
    S_min: float
    S_max: float
    S_noise: float

    def check(self) -> Churn:
        """Return these values as floats; ``ValueError`` for one that is negative or NaN, or ``S_min > S_max``."""
        most = np.inf if self.S_max == np.inf else check_number("S_max", self.S_max, 0.0)
        rest = (check_number(name, getattr(self, name), 0.0) for name in ("S_churn", "S_min", "S_noise"))
        churn, low, scale = rest
        if low > most:
            raise ValueError(f"need S_min <= S_max, got S_min={low:g}, S_max={most:g}: no step would have noise")
        return Churn(churn, low, most, scale)

    def __call__(self, sde: LinearSDE, t: float, place: Place) -> tuple[float, list[Stage]]:
        """Return the time to which the noise leads, at most 1, and the update that adds it.

        With ``S_churn > 0`` there is a draw in every step, also where nothing is added, as in the original.
        """
        if not self.S_churn:
            return t, []
        level = float(sde.sigma(np.float64(t)))
        gain = min(self.S_churn / place.num_steps, _MOST) if self.S_min <= level <= self.S_max else 0.0
        higher = t
        if gain:
            higher = time_between(sde, level * (1 + gain), 1.0, t)
        if higher == t:
            return t, [Stage(np.eye(sde.num_blocks), R=np.zeros((sde.num_blocks,) * 2))]
        psi, cov = sde.transition(higher, t), sde.noise_cov(higher, t)
        return higher, [Stage(psi, R=self.S_noise * cholesky(cov))]
