"""The base class of linear diffusions of K blocks, ``dz = F_t z dt + G_t dw``, in float64.

All run on one clock, ``t`` in [0, 1]: data at 0, noise at 1. The simplest are defined here: ``F_t = beta(t) F`` and
``D_t = G_t G_t^T = beta(t) D`` with constant matrices and a linear rate ``beta(t)`` from ``beta_min`` to ``beta_max``.
In the operational time ``b(t) = int_0^t beta`` such a diffusion is autonomous, so everything is a matrix exponential.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from scipy.linalg import expm, solve_continuous_lyapunov

from psld_jax._runtime.checks import check_number
from psld_jax._runtime.errors import check_kind
from psld_jax.sde._frame import Rotation
from psld_jax.sde._linear_algebra import (
    check_covariance,
    check_reached,
    cholesky,
    linear_flow,
    real_matrix,
    triangular,
)
from psld_jax.sde._noise_levels import NoiseLevels, as_times
from psld_jax.sde._states import StatesOfBlocks

Array = Any
DECOMPOSITIONS = ("lower", "upper")


class LinearSDE(NoiseLevels, StatesOfBlocks):
    """A linear diffusion of K blocks with constant matrices, and the base class of all others.

    A diffusion is its transition, the covariance of what is added on the way, its mean, its prior, and what the network
    predicts; every method here that is not one of these is made of them. Other kinds override them:
    :class:`psld_jax.sde.one_block.OneBlock` (any ``x_t = alpha x_0 + sigma eps``) and
    :class:`psld_jax.sde.varying.VaryingSDE` (any ``F(t)``, ``D(t)``).

    Called by its own name it is ``dz = beta(t) F z dt + sqrt(beta(t)) G dw``, ``D = G G^T`` (Pandey & Mandt, ICCV 2023,
    eq. 3, and any other time-changed linear SDE: variance-preserving, critically damped or higher-order Langevin).
    Subclasses with a known transition override :meth:`transition` and :meth:`noise_cov`; this class
    computes them with matrix exponentials and serves as the check on those closed forms.

    Time is forward time: data at ``t = 0``, noise at ``t = 1``. Every method of time takes a float or a
    float64 array ``[...]`` and returns float64 ``[..., K, K]``.

    ``unit_drift`` and ``unit_diffusion`` hold the constant matrices; ``data_std`` is set by :meth:`preconditioned`.
    ``stationary`` says whether the matrices are constant up to the rate, so that there is a law which stays;
    ``prediction`` what the network predicts, ``"eps"`` for the noise of the kernel; ``t_end`` where grids end unless
    told otherwise; ``last_step`` how samples are brought from there to the data; ``grid`` the one that is taken if none
    is named.

    Args:
      drift: ``[K, K]``, the constant ``F``; all eigenvalues in the open left half-plane.
      diffusion: ``[K, K]``, the constant ``D``, symmetric positive semi-definite.
      beta_min, beta_max: rates at ``t = 0`` and ``t = 1`` (per unit of time).
      initial_cov: ``[K, K]``, ``Sigma_0``, the covariance of the state at ``t = 0`` given ``x_0``.
      decomposition: ``"lower"`` or ``"upper"`` triangular factor of the covariance.
      jitter: added to the diagonal of every marginal covariance.

    Raises:
      ValueError: for rates that are negative or vanish together, matrices of the wrong shape, an
        unknown decomposition, a negative jitter, a covariance that is none, a drift without a stationary law, or noise
        that does not reach every block.
    """

    stationary = True
    prediction = "eps"
    t_end = 1e-3
    last_step = "euler"
    grid = "quadratic"
    #: Of one block: whether data of unit variance keep it, so that the prior is N(0, 1); else it is N(0, sigma(1)^2).
    variance_preserving = False
    #: What part of ``E[x_0 | z]`` moves the state, a function of times; ``None``: all, see :meth:`measured`.
    share: Callable[[Array], Array] | None = None
    #: Times at which slopes jump, float64 ``[m]``: what is made of the diffusion is smooth between them.
    knots: np.ndarray = np.zeros(0)

    def __init__(
        self,
        drift: Array,
        diffusion: Array,
        *,
        beta_min: float,
        beta_max: float,
        initial_cov: Array | None = None,
        decomposition: str = "lower",
        jitter: float = 0.0,
    ):
        self.unit_drift, self.unit_diffusion = real_matrix("drift", drift), real_matrix("diffusion", diffusion)
        if (
            self.unit_drift.ndim != 2
            or self.unit_drift.shape[0] != self.unit_drift.shape[1]
            or self.unit_diffusion.shape != self.unit_drift.shape
        ):
            raise ValueError(
                "drift and diffusion must be square matrices of equal size, "
                f"got {np.shape(drift)} and {np.shape(diffusion)}"
            )
        for name, beta in (("beta_min", beta_min), ("beta_max", beta_max)):
            check_number(name, beta, 0)
        if beta_min == beta_max == 0:
            raise ValueError("beta_min = beta_max = 0 diffuses nothing; at least one must be > 0")
        check_covariance("diffusion", self.unit_diffusion, self.unit_drift.shape)
        if not (np.isfinite(self.unit_drift).all() and np.all(np.linalg.eigvals(self.unit_drift).real < 0)):
            raise ValueError(
                f"drift={self.unit_drift.tolist()} has an eigenvalue outside the left half-plane: no stationary law"
            )
        check_reached(LinearSDE.prior_cov(self))
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)
        self._set_up(len(self.unit_drift), initial_cov, decomposition, jitter)

    def _set_up(self, num_blocks: int, initial_cov: Array | None, decomposition: str, jitter: float) -> None:
        """Set what every diffusion has, whatever its matrices are."""
        if decomposition not in DECOMPOSITIONS:
            raise ValueError(f"decomposition={decomposition!r} must be one of {', '.join(DECOMPOSITIONS)}")
        check_number("jitter", jitter, 0)
        #: K: 1 for position alone, 2 for position and momentum.
        self.num_blocks = num_blocks
        self.decomposition, self.jitter = decomposition, float(jitter)
        self.data_std: float | None = None
        shape = (num_blocks, num_blocks)
        self.initial_cov = np.zeros(shape) if initial_cov is None else real_matrix("initial_cov", initial_cov)
        check_covariance("initial_cov", self.initial_cov, shape)

    # --- coefficients of the SDE ---------------------------------------------------------------

    def beta(self, t: Array) -> Array:
        """Rate ``beta(t)``, ``[...]``, per unit of time."""
        return self.beta_min + (self.beta_max - self.beta_min) * as_times(t)

    def beta_integral(self, t: Array) -> Array:
        """``b(t) = int_0^t beta``, ``[...]``, dimensionless."""
        t = as_times(t)
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def drift(self, t: Array) -> np.ndarray:
        """Drift matrix ``F_t``, ``[..., K, K]``."""
        return self.beta(t)[..., None, None] * self.unit_drift

    def diffusion(self, t: Array) -> np.ndarray:
        """Diffusion matrix ``D_t = G_t G_t^T``, ``[..., K, K]``."""
        return self.beta(t)[..., None, None] * self.unit_diffusion

    def dispersion(self, t: Array) -> np.ndarray:
        """Noise matrix ``G_t``, the lower Cholesky factor of ``D_t``, ``[..., K, K]``."""
        return cholesky(self.diffusion(t))

    # --- the kernel p(z_t | x_0) -----------------------------------------------------------------

    def transition(self, s: Array, t: Array) -> np.ndarray:
        """Transition ``Psi(s, t)``: it carries ``dz = F z dt`` from ``t`` to ``s`` (either order), ``[..., K, K]``."""
        return expm((self.beta_integral(s) - self.beta_integral(t))[..., None, None] * self.unit_drift)

    def noise_cov(self, t: Array, s: Array = 0.0) -> np.ndarray:
        """Covariance of ``z_t`` given ``z_s``, ``s <= t``: ``int_s^t Psi(t, u) D_u Psi(t, u)^T du``, ``[..., K, K]``.

        See :func:`linear_flow`: no cancellation near ``t = s``.
        """
        return linear_flow(self.unit_drift, self.unit_diffusion, self.beta_integral(t) - self.beta_integral(s))[1]

    def mean(self, t: Array) -> np.ndarray:
        """Mean vector ``mu_t = Psi(t, 0) e_1``, ``[..., K, 1]``: the kernel has mean ``mu_t x_0``."""
        return self.transition(t, 0.0)[..., :, :1]

    def cov(self, t: Array, cov0: Array | None = None) -> np.ndarray:
        """Kernel covariance ``Sigma_t = Psi(t,0) cov0 Psi(t,0)^T + noise + jitter I``, ``[..., K, K]``.

        ``cov0`` defaults to the SDE's own ``Sigma_0``; pass zeros for denoising score matching (DSM).

        Raises:
          ValueError: for a ``cov0`` of another shape.
        """
        start = self.initial_cov if cov0 is None else np.asarray(cov0, np.float64)
        if start.shape != self.initial_cov.shape:
            raise ValueError(f"cov0 has shape {start.shape}, expected {self.initial_cov.shape}")
        psi = self.transition(t, 0.0)
        spread = psi @ start @ np.swapaxes(psi, -1, -2)
        return spread + self.noise_cov(t) + self.jitter * np.eye(self.num_blocks)

    def factor(self, t: Array, cov0: Array | None = None) -> np.ndarray:
        """Factor ``L_t`` with ``L_t L_t^T = Sigma_t``, triangular as ``decomposition`` says, ``[..., K, K]``.

        Raises:
          ValueError: for a ``cov0`` that is no covariance of that shape.
        """
        root = self._initial_root
        if cov0 is not None:
            start = np.asarray(cov0, np.float64)
            check_covariance("cov0", start, self.initial_cov.shape)
            root = cholesky(start)
        # Of what the parts are squares of: a short time after the start the covariance itself is nearly singular.
        parts = [self.transition(t, 0.0) @ root, cholesky(self.noise_cov(t))]
        parts += [np.broadcast_to(np.sqrt(self.jitter) * np.eye(self.num_blocks), parts[1].shape)]
        return triangular(np.concatenate(parts, axis=-1), self.decomposition)

    @functools.cached_property
    def _initial_root(self) -> np.ndarray:
        return cholesky(self.initial_cov)

    def frame(self, t: Array) -> np.ndarray:
        """Factor ``R_t``, ``[..., K, K]``: ``R R^T = Sigma``, ``dR/dt = (F + 1/2 D Sigma^-1) R`` (Zhang et al., 2023).

        In this frame ``eps_R = R^-1 (z - mu x_0)`` of a single data point is constant along the probability-flow ODE.
        Determined up to a constant rotation, fixed by ``R_1 = L_1``; see :class:`psld_jax.sde._frame.Rotation`.
        """
        return self.factor(t) @ self._rotation(np.asarray(t, np.float64))

    @functools.cached_property
    def _rotation(self) -> Rotation:
        def skew(t: np.ndarray) -> np.ndarray:
            factor = self.factor(t)
            inverse = np.linalg.inv(factor)
            rate = inverse @ (self.drift(t) @ factor + 0.5 * self.diffusion(t) @ np.swapaxes(inverse, -1, -2))
            half = np.triu(rate, 1) if self.decomposition == "lower" else np.tril(rate, -1)
            return half - np.swapaxes(half, -1, -2)

        return Rotation(skew)

    def gaussian_flow(self, s: Array, t: Array, data_std: float) -> np.ndarray:
        """``Phi(s, t)``, ``[..., K, K]``: carries the probability-flow ODE of data ``N(0, data_std^2 I)`` from t to s.

        The score of such data is ``-Stilde^-1 z`` with :meth:`total_cov`, so ``dPhi/ds = (F + 1/2 D Stilde^-1) Phi``.
        For one block it is ``(Stilde_s / Stilde_t)^(1/2)``. Where noise hides the data nearly whole, all data are like
        that: the analytical first step (GENIE, Dockhorn et al., 2022) takes the ODE there without an evaluation.

        Raises:
          ValueError: unless ``data_std`` is finite and > 0.
        """
        data_std = check_number("data_std", data_std, 0, strict=True)
        known = self.__dict__.setdefault("_with_gaussian_data", {})
        if data_std not in known:
            # Gaussian data are noise of their own at t = 0, and what is left is an image that is 0 everywhere.
            wide = copy.copy(self)
            for made_of_it in ("_rotation", "_initial_root"):
                wide.__dict__.pop(made_of_it, None)
            wide.initial_cov = self.initial_cov + data_std**2 * np.diag(np.eye(self.num_blocks)[0])
            known[data_std] = wide
        wide = known[data_std]
        return wide.frame(s) @ np.linalg.inv(wide.frame(t))

    # --- what the network predicts: score(z, t) = Cskip z + C eps(Cin z, t) -------------------------

    def preconditioned(self, data_std: float) -> Self:
        """Return the same diffusion for a network preconditioned in phase space, for data of that standard deviation.

        With ``Stilde = Sigma + data_std^2 mu mu^T`` the Gaussian-optimal score is ``-Stilde^-1 z``; what is left over
        has rank one. So ``Cskip = -Stilde^-1``, ``Cin = Stilde^(-1/2)``, and the first column of ``C`` is
        ``Sigma^-1 mu (data_std^-2 + mu^T Sigma^-1 mu)^(-1/2)``: the network predicts one block, ``eps = (N, 0)``.
        Inputs and targets have unit variance at every time. For K = 1 and a variance-exploding SDE these are the
        ``c_skip``, ``c_out``, ``c_in`` of Karras et al. (2022, table 1).

        Raises:
          ValueError: unless ``data_std`` is finite and > 0.
        """
        sde = copy.copy(self)
        sde.data_std = check_number("data_std", data_std, 0, strict=True)
        return sde

    def total_cov(self, t: Array, data_std: float) -> np.ndarray:
        """Covariance of ``z_t`` for Gaussian data: ``Stilde_t = Sigma_t + data_std^2 mu_t mu_t^T``, ``[..., K, K]``."""
        mu = self.mean(t)
        return self.cov(t) + data_std**2 * mu @ np.swapaxes(mu, -1, -2)

    def score_matrix(self, t: Array, cov0: Array | None = None) -> np.ndarray:
        """``C_t = -L_t^{-T}``, ``[..., K, K]``, or as in :meth:`preconditioned`."""
        if self.data_std is None:
            return -np.swapaxes(np.linalg.inv(self.factor(t, cov0)), -1, -2)
        mu = self.mean(t)
        pull = np.linalg.solve(self.cov(t, cov0), mu)
        scale = (self.data_std**-2 + np.swapaxes(mu, -1, -2) @ pull) ** -0.5
        return np.concatenate([pull * scale, np.zeros((*np.shape(t), self.num_blocks, self.num_blocks - 1))], axis=-1)

    def score_skip(self, t: Array) -> np.ndarray:
        """``Cskip_t``, ``[..., K, K]``: zero unless the network is :meth:`preconditioned`."""
        if self.data_std is None:
            return np.zeros((*np.shape(t), self.num_blocks, self.num_blocks))
        return -np.linalg.inv(self.total_cov(t, self.data_std))

    def input_matrix(self, t: Array) -> np.ndarray:
        """``Cin_t``, ``[..., K, K]``: the identity unless the network is :meth:`preconditioned`."""
        if self.data_std is None:
            return np.broadcast_to(np.eye(self.num_blocks), (*np.shape(t), self.num_blocks, self.num_blocks))
        values, vectors = np.linalg.eigh(self.total_cov(t, self.data_std))
        return (vectors * values[..., None, :] ** -0.5) @ np.swapaxes(vectors, -1, -2)

    # --- what samplers solve, and what they ask the network for --------------------------------------

    def probability_flow(self, t: Array) -> tuple[np.ndarray, np.ndarray]:
        """``H, N`` of the probability-flow ODE ``dz/dt = H z + N out``, ``[..., K, K]`` each.

        ``out`` is what the network gives: ``H = F - 1/2 D Cskip``, ``N = -1/2 D C``.
        """
        d = self.diffusion(t)
        return self.drift(t) - 0.5 * d @ self.score_skip(t), -0.5 * d @ self.score_matrix(t)

    def data_flow(self, t: Array) -> tuple[np.ndarray, np.ndarray]:
        """``H [..., K, K]`` and ``N [..., K, 1]`` of the same ODE in ``E[x_0 | z]``: ``dz/dt = H z + N E[x_0 | z]``.

        ``H = F + 1/2 D Sigma^-1``, ``N = -1/2 D Sigma^-1 mu``, the latter times the share of :meth:`measured`.
        """
        h, n = self._data_flow(t)
        return (h, n) if self.share is None else (h, np.asarray(self.share(t))[..., None, None] * n)

    def measured(self, share: Callable[[Array], Array]) -> Self:
        """The same diffusion for what a measurement tells of an image, where ``E[x_0 | z]`` counts for a part only.

        There the ODE is ``dz/dt = H z + N (share(t) E[x_0 | z] + (1 - share(t)) H^+ y)``; :meth:`data_flow` has the
        first of the two terms. ``share`` is a function of times ``[...]``, to the same shape.
        """
        sde = copy.copy(self)
        sde.share = share
        return sde

    def _data_flow(self, t: Array) -> tuple[np.ndarray, np.ndarray]:
        """Those of :meth:`data_flow` where all of ``E[x_0 | z]`` counts."""
        d, cov = self.diffusion(t), self.cov(t)
        return self.drift(t) + 0.5 * d @ np.linalg.inv(cov), -0.5 * d @ np.linalg.solve(cov, self.mean(t))

    def denoiser(self, t: Array, weights: Array | None = None) -> tuple[np.ndarray, np.ndarray]:
        """``U, V [..., 1, K]`` of ``E[x_0 | z] = U z + V out``, from ``Sigma score = mu E[x_0 | z] - z``.

        These are K equations for one unknown. ``weights [..., K, 1]`` makes one of them, ``U = w^T (I + Sigma Cskip)``,
        ``V = w^T Sigma C``; by default least squares, ``w = Sigma^-1 mu / SNR``.
        """
        cov = self.cov(t)
        if weights is None:
            mu = self.mean(t)
            pull = np.linalg.solve(cov, mu)
            weights = pull / (np.swapaxes(mu, -1, -2) @ pull)
        row = np.swapaxes(weights, -1, -2)
        return row @ (np.eye(self.num_blocks) + cov @ self.score_skip(t)), row @ cov @ self.score_matrix(t)

    # --- the prior --------------------------------------------------------------------------------

    def prior_cov(self) -> np.ndarray:
        """``Sigma_inf``, ``[K, K]``: solves ``F S + S F^T + D = 0``."""
        return solve_continuous_lyapunov(self.unit_drift, -self.unit_diffusion)


def check_sde(sde: Any) -> None:
    """Raise a ``ValueError`` unless ``sde`` is a :class:`LinearSDE`."""
    check_kind("sde", sde, LinearSDE, "a diffusion, such as psld_jax.sde.PSLD()")
