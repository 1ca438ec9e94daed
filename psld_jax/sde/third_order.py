"""Third-order Langevin diffusion, critically damped: position, velocity and acceleration."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import gammainc

from psld_jax._runtime.checks import check_number
from psld_jax.sde.base import LinearSDE
from psld_jax.sde.named import register

Array = Any


@register("third_order_langevin")
class ThirdOrder(LinearSDE):
    """Third-order Langevin diffusion, K = 3: noise enters the acceleration, and the position through the velocity.

    ``dz = beta(t) F z dt + sqrt(beta(t)) G dw`` with ``F = [[0, 1, 0], [-1, 0, g], [0, -g, -x]]`` and ``D = diag(0, 0,
    2 x)`` (Mou et al., JMLR 2021; for generative models Shi & Liu, 2023). ``g = 2 sqrt(2)``, ``x = 3 sqrt(3)`` are the
    one choice with a triple eigenvalue, ``lam = -sqrt(3)``: critical damping, the fastest way to the stationary law
    ``N(0, I)`` that does not oscillate. With ``N = F - lam I``, ``N^3 = 0``, and ``b`` the integral of ``beta``,
    ``Psi = e^{lam b} (I + b N + b^2 N^2 / 2)`` and ``noise = sum_jk N^j D N^kT J_{j+k} / (j! k!)``, ``J_n = int_0^b u^n
    e^{2 lam u} du``, an incomplete gamma function: nothing cancels near ``t = 0``, where the noise in ``x`` is ``b^5``.

    Args:
      beta_min, beta_max: rates at ``t = 0`` and ``t = 1``.
      kappa: variance of velocity and acceleration at ``t = 0``, >= 0.
      decomposition: ``"lower"`` or ``"upper"``.
      jitter: added to the diagonal of every marginal covariance.

    Raises:
      ValueError: for a negative ``kappa``, and as :class:`LinearSDE`.
    """

    def __init__(
        self,
        beta_min: float = 8.0,
        beta_max: float = 8.0,
        kappa: float = 0.04,
        decomposition: str = "lower",
        jitter: float = 1e-9,
    ):
        self.kappa = check_number("kappa", kappa, 0)
        g, x = np.sqrt(8.0), np.sqrt(27.0)
        self._eigenvalue = -np.sqrt(3.0)
        drift = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, g], [0.0, -g, -x]])
        super().__init__(
            drift,
            np.diag([0.0, 0.0, 2 * x]),
            beta_min=beta_min,
            beta_max=beta_max,
            initial_cov=np.diag([0.0, self.kappa, self.kappa]),
            decomposition=decomposition,
            jitter=jitter,
        )
        nilpotent = drift - self._eigenvalue * np.eye(3)
        self._powers = [np.eye(3), nilpotent, nilpotent @ nilpotent / 2]

    def __repr__(self) -> str:
        return (
            f"ThirdOrder(beta_min={self.beta_min}, beta_max={self.beta_max}, kappa={self.kappa}, "
            f"decomposition={self.decomposition!r}, jitter={self.jitter})"
        )

    def transition(self, s: Array, t: Array) -> np.ndarray:
        b = (self.beta_integral(s) - self.beta_integral(t))[..., None, None]
        return np.exp(self._eigenvalue * b) * sum(b**k * power for k, power in enumerate(self._powers))

    def noise_cov(self, t: Array, s: Array = 0.0) -> np.ndarray:
        b = self.beta_integral(t) - self.beta_integral(s)
        rate, cov = -2 * self._eigenvalue, 0.0
        for n, factorial in enumerate((1, 1, 2, 6, 24)):
            # J_n = n! P(n + 1, rate b) / rate^(n + 1), P the regularised lower incomplete gamma function.
            integral = factorial * gammainc(n + 1, rate * b) / rate ** (n + 1)
            pairs = [(j, n - j) for j in range(3) if 0 <= n - j < 3]
            weight = sum(self._powers[j] @ self.unit_diffusion @ self._powers[k].T for j, k in pairs)
            cov = cov + integral[..., None, None] * weight
        return np.asarray(cov)

    def prior_cov(self) -> np.ndarray:
        return np.eye(3)
