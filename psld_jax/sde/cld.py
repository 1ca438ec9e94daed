"""Critically damped Langevin diffusion, as its authors parametrise it and its score (Dockhorn et al., ICLR 2022)."""

from __future__ import annotations

from typing import Any

import numpy as np

from psld_jax._runtime.checks import check_flag, check_number
from psld_jax._runtime.errors import check_choice
from psld_jax.sde.named import register
from psld_jax.sde.psld import PSLD

Array = Any

OBJECTIVES = ("hsm", "dsm")


@register("cld")
class CLD(PSLD):
    """Critically damped Langevin diffusion with the score of CLD-SGM, K = 2 (Dockhorn et al., 2022, eq. 5 and 9).

    ``dx = B v / m dt``, ``dv = -B x dt - f B v / m dt + sqrt(2 f B) dw``, ``f = 2 sqrt(m)``: :class:`PSLD` with
    ``gamma = 0``, ``nu = 2 sqrt(mass_inv)`` and ``beta = 2 B``. Only the score of the velocity is needed,

        score_v = c_t out,                 c_t = -sqrt(xx / (xx vv - xv^2)), or
        score_v = -v / vv_t + c_t out      if ``mixed``,

    where ``xx, xv, vv`` is the covariance of the kernel, and ``vv_t`` that of the velocity with its spread at the
    start. So the mixed score is ``Cskip = diag(0, -1 / vv_t)`` and ``C = -L^-T``.

    Args:
      mass_inv: ``1 / m``, ``> 0``.
      beta_min, beta_max: rates at ``t = 0`` and ``t = 1``, twice those of CLD-SGM.
      kappa: initial variance of the velocity in units of the mass, CLD-SGM's ``gamma``.
      mixed: whether the network predicts what a Gaussian's score leaves over.
      objective: ``"hsm"``, or ``"dsm"``: then the covariance in ``c_t`` is that of a known initial velocity.
      jitter: added to the diagonal of every marginal covariance, CLD-SGM's ``numerical_eps``.

    Raises:
      ValueError: for a mass that is not positive, an unknown objective, and as :class:`PSLD`.
    """

    def __init__(
        self,
        mass_inv: float = 4.0,
        beta_min: float = 8.0,
        beta_max: float = 8.0,
        kappa: float = 0.04,
        mixed: bool = False,
        objective: str = "hsm",
        jitter: float = 1e-9,
    ):
        mass_inv = check_number("mass_inv", mass_inv, 0, strict=True)
        check_choice("objective", objective, OBJECTIVES)
        super().__init__(0.0, 2 * float(np.sqrt(mass_inv)), beta_min, beta_max, kappa, "lower", jitter)
        self.mixed, self.objective = check_flag("mixed", mixed), objective

    def __repr__(self) -> str:
        return (
            f"CLD(mass_inv={self.mass_inv}, beta_min={self.beta_min}, beta_max={self.beta_max}, kappa={self.kappa}, "
            f"mixed={self.mixed}, objective={self.objective!r}, jitter={self.jitter})"
        )

    def preconditioned(self, data_std: float) -> PSLD:
        if self.mixed:
            raise ValueError(f"{self!r} has a mixed score, which is a preconditioning already: mixed must be False")
        return super().preconditioned(data_std)

    def score_matrix(self, t: Array, cov0: Array | None = None) -> np.ndarray:
        if cov0 is None and self.objective == "dsm":
            cov0 = np.zeros((2, 2))
        return super().score_matrix(t, cov0)

    def score_skip(self, t: Array) -> np.ndarray:
        skip = super().score_skip(t)
        if self.mixed:
            skip[..., 1, 1] = -1 / self.cov(t)[..., 1, 1]
        return skip

    def denoiser(self, t: Array, weights: Array | None = None) -> tuple[np.ndarray, np.ndarray]:
        if weights is None and self.data_std is None:
            # Of the equations Sigma score = mu x_0 - z the combination that leaves out the score of the position.
            cov, mu = self.cov(t), self.mean(t)
            weights = np.stack([cov[..., 0, 1], -cov[..., 0, 0]], axis=-1)[..., None]
            weights = weights / (np.swapaxes(weights, -1, -2) @ mu)
        return super().denoiser(t, weights)
