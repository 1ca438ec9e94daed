"""SA-Solver: stochastic Adams methods for the reverse SDE with any part of its noise (Xue et al., 2023). Any K."""

from __future__ import annotations

import itertools
import math

import numpy as np

from psld_jax._runtime.checks import check_number
from psld_jax.integrators._noise_frame import RULES, data_rate, data_step, evaluated, gone, lowered
from psld_jax.integrators.base import Place, Stage, choice, register
from psld_jax.integrators.exponential import Prediction, exponential_step, make_prediction
from psld_jax.sde import LinearSDE, cholesky
from psld_jax.sde._quadrature import conjugate_flow
from psld_jax.sde.one_block import OneBlock


def _dynamics(sde: LinearSDE, tau: float) -> Prediction:
    """The drift of ``dz = (F z - (1 + tau^2) / 2 D score) dt + tau G dw`` in data prediction."""
    data, weight = make_prediction(sde, "data"), 1.0 + tau**2
    # For the ODE, tau = 0, H = F + D Sigma^-1 / 2: what is beyond F grows with the weight, and N does.
    return data._replace(
        H=lambda t: sde.drift(t) + weight * (data.H(t) - sde.drift(t)),
        N=lambda t: weight * data.N(t),
        scale=(lambda t: sde.std(t) * sde.sigma(t) ** tau**2) if isinstance(sde, OneBlock) else None,
    )


def _parts(sde: LinearSDE, tau: float, t: float, s: float) -> list[tuple[float, float]]:
    """Return parts of a step in which the noise level falls by no more than a factor of 4 if ``tau`` is 1.

    So little is kept over a longer one that its ``E`` is nearly singular. K = 1 needs no parts.
    """
    if sde.num_blocks == 1:
        return [(t, s)]
    first, last = (float(sde.sigma(np.float64(u))) for u in (t, s))
    count = max(1, math.ceil((1 + tau**2) / 2 * math.log(first / last, 4)))
    inner = (float(sde.time(level)) for level in np.geomspace(first, last, count + 1)[1:-1])
    return list(itertools.pairwise((t, *inner, s)))


def _noise(sde: LinearSDE, dynamics: Prediction, tau: float, t: float, s: float) -> np.ndarray:
    """Return the covariance of a step's noise, ``tau^2 int_s^t E(s, u) D_u E(s, u)^T du``, ``[K, K]``."""
    if sde.num_blocks == 1:
        return -np.expm1(tau**2 * (sde.log_snr(np.float64(t)) - sde.log_snr(np.float64(s)))) * sde.cov(s)
    k = sde.num_blocks
    one = np.eye(k)

    def generator(u: np.ndarray) -> np.ndarray:
        h = -dynamics.H(u)
        # A (x) A solves the equation with this generator if A solves that with h.
        return (h[:, :, None, :, None] * one[:, None, :] + one[:, None, :, None] * h[:, None, :, None, :]).reshape(
            len(u), k * k, k * k
        )

    def forcing(u: np.ndarray) -> np.ndarray:
        return sde.diffusion(u).reshape(len(u), k * k, 1)

    cov = np.zeros((k * k, 1))
    for start, end in _parts(sde, tau, t, s):
        square, gathered = conjugate_flow(generator, forcing, start, end)
        cov = np.linalg.solve(square, cov - tau**2 * gathered)
    cov = cov.reshape(k, k)
    return (cov + cov.T) / 2


def _step(
    sde: LinearSDE, tau: float, t: float, s: float, nodes: tuple[float, ...], rule: str
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return ``E`` and ``B`` with the predictions interpolated through ``nodes``, in log-SNR.

    By the rule ``"original"`` the slope through two of them is gathered as it is over short steps, at the rate of their
    end: ``(1 + tau^2) alpha_s h^2 / 2`` for K = 1.
    """
    if rule == "original" and len(nodes) == 2 and not gone(sde, max(nodes)):
        e, (whole,) = _step(sde, tau, t, s, nodes[:1], rule)
        start, end, newer, older = (float(sde.log_snr(np.float64(u))) / 2 for u in (t, s, *nodes))
        slope = (1 + tau**2) * data_rate(sde, s) * (end - start) ** 2 / 2 / (newer - older)
        # The polynomial has the value of the prediction at t there.
        at_t, other = (whole + slope, -slope) if nodes[0] == t else (slope, whole - slope)
        return e, (at_t, other)
    if not gone(sde, t):
        dynamics, zero = _dynamics(sde, tau), np.zeros((sde.num_blocks,) * 2)
        e, b = np.eye(sde.num_blocks), (zero,) * len(nodes)
        for start, end in _parts(sde, tau, t, s):
            kept, gained = exponential_step(sde, dynamics, "log_snr", start, end, nodes)
            e, b = kept @ e, tuple(kept @ old + new for old, new in zip(b, gained, strict=True))
        return e, b
    # With noise, nothing of a state without signal is kept; what was predicted there is infinitely far away.
    e, b = data_step(sde, t, s) if tau == 0 else (np.zeros((1, 1)), sde.mean(s))
    nearest = min(nodes)
    return e, tuple(b if u == nearest else np.zeros_like(b) for u in nodes)


@register("sa_solver", order=lambda hyper: min(hyper["order"], 2), aliases=("SA-Solver",), source="Xue et al., 2023")
def sa_solver(
    sde: LinearSDE,
    t: float,
    s: float,
    past: tuple[float, ...],
    place: Place,
    *,
    order: int = 3,
    corrector: int = 3,
    tau: float = 1.0,
    sigma_min: float = 0.0,
    sigma_max: float = np.inf,
    rule: str = "exact",
    lower_order_final: bool = False,
) -> list[Stage]:
    """SA-Solver: Adams predictor and corrector in data prediction for the SDE with noise ``tau`` (Xue et al., 2023).

    ``z_s = E z_t + sum_j B_j D_j + noise``: the linear part and the noise of ``dz = (F z - (1 + tau^2) / 2 D score) dt
    + tau G dw`` are exact, ``D`` is interpolated in log-SNR. For K = 1, ``E = sigma_s / sigma_t e^(-tau^2 h)`` and the
    variance of the noise is ``sigma_s^2 (1 - e^(-2 tau^2 h))``. The corrector repeats the step with the evaluation at
    its end and the same noise, as part of the next step. Weak order 2, NFE 1, one draw (none for ``tau=0``), any K.

    Args:
      order: evaluations that the predictor uses, 1 to 3.
      corrector: evaluations that the corrector uses, the new one included, 1 to 4, or 0 for none.
      tau: 0 for the probability-flow ODE, 1 for the reverse SDE, more for more noise.
      sigma_min, sigma_max: steps that begin with a ``sigma`` outside are taken without noise.
      rule: ``"exact"`` integrates the polynomials. ``"original"`` takes ``(1 + tau^2) alpha_s h^2 / 2`` for the
        integral of the slope where two evaluations are used, as the authors' code and diffusers do.
      lower_order_final: take the last step but one of the run, denoising included, with order 2 at most, and the last
        with 1. The authors' code and diffusers do so unless they are told otherwise.

    Raises:
      ValueError: for another order, corrector or rule, a ``tau`` or bound that is negative or NaN, or a
        ``lower_order_final`` that is not a bool.
    """
    choice("order", order, (1, 2, 3))
    choice("corrector", corrector, (0, 1, 2, 3, 4))
    choice("rule", rule, RULES)
    tau, low = check_number("tau", tau, 0.0), check_number("sigma_min", sigma_min, 0.0)
    high = np.inf if sigma_max == np.inf else check_number("sigma_max", sigma_max, 0.0)
    if low > high:
        raise ValueError(f"need sigma_min <= sigma_max, got sigma_min={low:g}, sigma_max={high:g}")

    def strength(u: float) -> float:
        return tau if low <= float(sde.sigma(np.float64(u))) <= high else 0.0

    now = strength(t)
    e, b = _step(sde, now, t, s, (t, *past)[: lowered(order, place, lower_order_final)], rule)
    root = cholesky(_noise(sde, _dynamics(sde, now), now, t, s)) if tau else None
    step = Stage(e, b, root)
    if not (past and corrector):
        return [evaluated(sde, step, t, "data")]
    before = strength(past[0])
    # A corrector may have one evaluation more than the predictor of the step that it corrects.
    predicted = past[: lowered(order, place, lower_order_final, ago=1)]
    corrected = (t, *past)[: lowered(corrector, place, lower_order_final, ago=2)]
    new, old = (_step(sde, before, past[0], t, nodes, rule)[1] for nodes in (corrected, predicted))
    zero = np.zeros((sde.num_blocks,) * 2)
    weights = tuple(a - b for a, b in itertools.zip_longest(new, (zero, *old), fillvalue=zero))
    correction = Stage(np.eye(sde.num_blocks), weights)
    return [evaluated(sde, correction, t, "data"), step]
