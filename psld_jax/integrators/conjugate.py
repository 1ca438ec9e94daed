"""Conjugate integrators: DDIM generalised (Pandey, Rudolph & Mandt, ICLR 2024, section 3.1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from psld_jax._runtime.checks import check_number
from psld_jax._runtime.errors import shown
from psld_jax.integrators._noise_frame import first_order
from psld_jax.integrators.ancestral import ancestral
from psld_jax.integrators.base import PAPER, Stage, register
from psld_jax.sde import LinearSDE, OneBlock
from psld_jax.sde._linear_algebra import real
from psld_jax.sde._quadrature import conjugate_flow, integrate, once


def conjugate_stage(
    sde: LinearSDE,
    t: float,
    s: float,
    b: np.ndarray,
    *,
    project: np.ndarray | None = None,
    stochastic: bool = False,
) -> Stage:
    """One conjugate step: Euler for ``zhat = A z`` from ``t`` to ``s``, written in the frame with ``A(t) = I``.

    ``z <- A(s)^-1 [(I - h B) z + Phi(s) eps]``, where ``dA/du = A (B - F + w D Cskip)`` and ``dPhi/du = -w A D C`` with
    ``w = 1/2`` (ODE). With ``stochastic`` the split drift of the reverse SDE is meant: ``w = 1`` and ``F + F_O`` for
    ``F`` (see ``splitting``). ``project`` = E restricts the flow to some blocks: ``E F``, ``E D``, ``E B``. ``B`` and
    ``E`` are ``[K, K]``, and so are the matrices of the stage.
    """
    k = sde.num_blocks
    e = np.eye(k) if project is None else project
    flow = once(sde.probability_flow)

    def generator(u: np.ndarray) -> np.ndarray:
        if not stochastic:
            return e @ (b - flow(u)[0])
        d = sde.diffusion(u)
        return e @ (b - sde.drift(u) + 0.5 * d @ np.linalg.inv(sde.prior_cov()) + d @ sde.score_skip(u))

    def forcing(u: np.ndarray) -> np.ndarray:
        if not stochastic:
            return e @ flow(u)[1]
        return -e @ sde.diffusion(u) @ sde.score_matrix(u)

    if isinstance(sde, OneBlock) and project is None and not stochastic:
        # The flow of H from t to s is scale(s) / scale(t), so A is known.
        rate, scale = float(b[0, 0]), sde.flow_scale

        def frame(u: Any) -> np.ndarray:
            return (np.exp(rate * (u - t)) * scale(t) / scale(u))[..., None, None]

        a, phi = frame(s), integrate(lambda u: (frame(u) @ forcing(u))[:, 0], t, s)[None]
    else:
        a, phi = conjugate_flow(generator, forcing, t, s)
    inverse = np.linalg.inv(a)
    return Stage(inverse @ (np.eye(k) - (t - s) * e @ b), (inverse @ phi,))


@register("ddim", order=1, aliases=("DDIM",), source="Song, Meng & Ermon, 2021")
def ddim(sde: LinearSDE, t: float, s: float, *, eta: float = 0.0) -> list[Stage]:
    """DDIM: the conjugate integrator with ``B = 0``, an exponential integrator in eps.

    With one block exactly DDIM (Song, Meng & Ermon, ICLR 2021), on PSLD first-order DEIS (Zhang & Chen, ICLR 2023).
    ``z <- A(s)^-1 [z + Phi(s) eps]``. Exact for constant eps. Order 1, NFE 1, deterministic, any K.

    Args:
      eta: 0 to 1; above 0 the published step with that part of the posterior's noise, ``ancestral`` with ``order=1``.

    Raises:
      ValueError: for ``eta`` outside [0, 1].
    """
    eta = check_number("eta", eta, 0.0)
    if eta > 0:
        return list(ancestral(sde, t, s, (), order=1, eta=eta))
    if sde.num_blocks == 1:
        # eps is the noise, also where the network is preconditioned and predicts something else.
        return [first_order(sde, t, s)]
    return [conjugate_stage(sde, t, s, np.zeros((sde.num_blocks,) * 2)).at(t)]


@register("lambda_ddim_i", order=1, aliases=("lambda-DDIM-I",), source=PAPER)
def lambda_ddim_i(sde: LinearSDE, t: float, s: float, *, lam: float = 0.5) -> list[Stage]:
    """lambda-DDIM-I: the conjugate integrator with ``B = lam I`` (paper, section 3.1).

    Order 1, NFE 1, deterministic, any K. ``lam = 0`` is DDIM; the best value falls with the NFE.

    Raises:
      ValueError: unless ``lam`` is a finite number.
    """
    lam = check_number("lam", lam)
    return [conjugate_stage(sde, t, s, lam * np.eye(sde.num_blocks)).at(t)]


@register("lambda_ddim_ii", order=1, aliases=("lambda-DDIM-II",), source=PAPER)
def lambda_ddim_ii(sde: LinearSDE, t: float, s: float, *, lam: float = 0.5) -> list[Stage]:
    """lambda-DDIM-II: the conjugate integrator with ``B = lam 1 1^T`` (paper, section 3.1).

    Order 1, NFE 1, deterministic, any K. ``lam = 0`` is DDIM; the best value falls with the NFE.

    Raises:
      ValueError: unless ``lam`` is a finite number.
    """
    lam = check_number("lam", lam)
    return [conjugate_stage(sde, t, s, lam * np.ones((sde.num_blocks,) * 2)).at(t)]


@register("conjugate", order=1, source=PAPER)
def conjugate(sde: LinearSDE, t: float, s: float, *, B: Any = 0.0) -> list[Stage]:
    """The conjugate integrator with any constant matrix ``B`` (paper, theorem 1).

    ``z <- A(s)^-1 [(I - h B) z + Phi(s) eps]``, see :func:`conjugate_stage`. Order 1, NFE 1, deterministic, any K.

    Args:
      B: ``[K, K]``, or a number for that multiple of the identity, in units of 1/time.

    Raises:
      ValueError: for a ``B`` that is not finite, or of another shape.
    """
    k = sde.num_blocks
    try:
        b = real(B)
    except (TypeError, ValueError):
        b = np.full((), np.nan)
    if b.shape not in ((), (k, k)) or not np.all(np.isfinite(b)):
        raise ValueError(f"B={shown(B)} must be a finite number or a finite {k} x {k} matrix, got shape {b.shape}")
    b = b * np.eye(k) if b.ndim == 0 else b
    return [conjugate_stage(sde, t, s, b).at(t)]
