"""Phase Space Langevin Diffusion (Pandey & Mandt, ICCV 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import gammainc

from psld_jax._runtime.checks import check_number
from psld_jax.sde.base import LinearSDE
from psld_jax.sde.named import register

Array = Any


@register("psld")
class PSLD(LinearSDE):
    """Phase Space Langevin Diffusion: position ``x`` and momentum ``m``, critically damped.

    ``F_t = beta(t)/2 [[-gamma, mass_inv], [-1, -nu]]``, ``D_t = beta(t) diag(gamma, mass nu)``, with
    ``mass_inv = (gamma - nu)^2 / 4`` (Pandey & Mandt, ICCV 2023, eq. 6). ``gamma = 0`` is critically damped
    Langevin diffusion (CLD), where the score is needed for the momentum only; ``nu = 0`` needs it for the
    position only. The stationary covariance is ``diag(1, mass)``; momentum starts with variance
    ``kappa mass`` (hybrid score matching, HSM).

    With ``lam = -(gamma + nu)/4`` the double eigenvalue of ``F`` and ``N = F - lam I`` (``N^2 = 0``), and ``b``
    the integral of ``beta``: ``Psi = e^{lam b} (I + b N)`` and
    ``noise = J_0 D + J_1 (N D + D N^T) + J_2 N D N^T``, ``J_k = int_0^b u^k e^{2 lam u} du``, an incomplete
    gamma function: relative precision is kept down to ``t = 0``, where the textbook form (stationary
    minus remembered covariance) cancels.

    Args:
      gamma, nu: friction of position and of momentum, ``>= 0`` and not equal.
      beta_min, beta_max: rates at ``t = 0`` and ``t = 1``.
      kappa: initial momentum variance in units of the mass, ``>= 0``.
      decomposition: ``"lower"`` or ``"upper"``.
      jitter: added to the diagonal of every marginal covariance (1e-9 in the original).

    Raises:
      ValueError: for a negative or equal ``gamma`` and ``nu`` (then ``mass_inv = 0``), a negative ``kappa``, and as
        :class:`LinearSDE`.
    """

    def __init__(
        self,
        gamma: float = 0.01,
        nu: float = 4.01,
        beta_min: float = 8.0,
        beta_max: float = 8.0,
        kappa: float = 0.04,
        decomposition: str = "lower",
        jitter: float = 1e-9,
    ):
        for name, value in (("gamma", gamma), ("nu", nu), ("kappa", kappa)):
            check_number(name, value, 0)
        if gamma == nu:
            raise ValueError(
                f"gamma = nu = {gamma} gives no mass: mass_inv = (gamma - nu)^2 / 4 must be > 0; "
                "choose different values, e.g. gamma=0.01, nu=4.01"
            )
        self.gamma, self.nu, self.kappa = float(gamma), float(nu), float(kappa)
        self.mass_inv = (self.gamma - self.nu) ** 2 / 4
        self.mass = 1 / self.mass_inv
        super().__init__(
            0.5 * np.array([[-self.gamma, self.mass_inv], [-1.0, -self.nu]]),
            np.diag([self.gamma, self.mass * self.nu]),
            beta_min=beta_min,
            beta_max=beta_max,
            initial_cov=np.diag([0.0, self.kappa * self.mass]),
            decomposition=decomposition,
            jitter=jitter,
        )
        self._eigenvalue = -(self.gamma + self.nu) / 4
        self._nilpotent = self.unit_drift - self._eigenvalue * np.eye(2)

    def __repr__(self) -> str:
        return (
            f"PSLD(gamma={self.gamma}, nu={self.nu}, beta_min={self.beta_min}, beta_max={self.beta_max}, "
            f"kappa={self.kappa}, decomposition={self.decomposition!r}, jitter={self.jitter})"
        )

    def transition(self, s: Array, t: Array) -> np.ndarray:
        b = (self.beta_integral(s) - self.beta_integral(t))[..., None, None]
        return np.exp(self._eigenvalue * b) * (np.eye(2) + b * self._nilpotent)

    def noise_cov(self, t: Array, s: Array = 0.0) -> np.ndarray:
        b = self.beta_integral(t) - self.beta_integral(s)
        rate = -2 * self._eigenvalue
        # J_k = k! P(k + 1, rate b) / rate^(k + 1), P the regularised lower incomplete gamma function.
        j0, j1, j2 = (
            (factorial * gammainc(k + 1, rate * b) / rate ** (k + 1))[..., None, None]
            for k, factorial in enumerate((1, 1, 2))
        )
        nd = self._nilpotent @ self.unit_diffusion
        return j0 * self.unit_diffusion + j1 * (nd + nd.T) + j2 * (nd @ self._nilpotent.T)

    def prior_cov(self) -> np.ndarray:
        return np.diag([1.0, self.mass])
