"""DPM-Solver++ as published (Lu et al., 2022): data prediction, in ``lambda = log(alpha / sigma)``. Any K.

``z_s = G z_t + P D`` is exact for a constant prediction ``D`` of ``x_0``, with ``G = R_s R_t^-1`` and ``P = mu_s - G
mu_t``; for K = 1, ``G = sigma_s / sigma_t`` and ``P = -alpha_s (e^-h - 1)``, ``h = lambda_s - lambda_t``. Where
``exponential_multistep`` integrates the polynomial through the last predictions, some of the published rules take a
simpler weight of the same order.
"""

from __future__ import annotations

import numpy as np

from psld_jax.integrators._noise_frame import RULES, data_step, evaluated, half_way, lowered, regular
from psld_jax.integrators.ancestral import ancestral
from psld_jax.integrators.base import Place, Stage, choice, register
from psld_jax.integrators.exponential import exponential_step, interpolation_variable, make_prediction
from psld_jax.sde import LinearSDE


@register("dpm_solver_pp_2m", order=2, aliases=("DPM-Solver++(2M)", "dpmpp_2m"), source="Lu et al., 2022")
def dpm_solver_pp_2m(sde: LinearSDE, t: float, s: float, past: tuple[float, ...]) -> list[Stage]:
    """DPM-Solver++(2M): data prediction extrapolated to the middle of the step (Lu et al., 2022, algorithm 2).

    ``z_s = G z_t + P [(1 + 1/(2r)) D_t - 1/(2r) D_before]``, ``r`` the last step over this one, in log-SNR. The same as
    ``ancestral`` with ``order=2, eta=0``. Order 2, NFE 1, deterministic, any K. The first step has order 1.
    """
    return list(ancestral(sde, t, s, past, order=2, eta=0.0))


@register("dpm_solver_pp_2m_sde", order=2, aliases=("SDE-DPM-Solver++(2M)", "dpmpp_2m_sde"), source="Lu et al., 2022")
def dpm_solver_pp_2m_sde(
    sde: LinearSDE, t: float, s: float, past: tuple[float, ...], *, eta: float = 1.0
) -> list[Stage]:
    """SDE-DPM-Solver++(2M), midpoint form: the same extrapolation, with the noise of the reverse SDE.

    ``z_s = sigma_s / sigma_t e^-h z_t + alpha_s (1 - e^-2h) [(1 + 1/(2r)) D_t - 1/(2r) D_before] + sigma_s sqrt(1 -
    e^-2h) xi`` for K = 1. The same as ``ancestral`` with ``order=2``. Weak order 2, NFE 1, one draw, any K.

    Args:
      eta: 0 to 1, how much of the noise, as in ``ancestral``; k-diffusion's ``eta`` is another for values between.

    Raises:
      ValueError: for ``eta`` outside [0, 1].
    """
    return list(ancestral(sde, t, s, past, order=2, eta=eta))


@register("dpm_solver_pp_2s", order=2, aliases=("DPM-Solver++(2S)", "dpmpp_2s"), source="Lu et al., 2022")
def dpm_solver_pp_2s(sde: LinearSDE, t: float, s: float) -> list[Stage]:
    """DPM-Solver++(2S): the prediction of half way in log-SNR serves the whole step (Lu et al., 2022, algorithm 1).

    ``u = G' z_t + P' D(z_t, t)`` at ``m``, then ``z_s = G z_t + P D(u, m)``. Order 2, NFE 2, deterministic, any K.
    """
    middle = half_way(sde, t, s)
    half, pull = data_step(sde, t, middle)
    gain, whole = data_step(sde, t, s)
    back = gain @ np.linalg.inv(half)
    predictor = evaluated(sde, Stage(half, (pull,)), t, "data")
    return [predictor, evaluated(sde, Stage(back, (whole, -back @ pull)), middle, "data")]


def _published_third(
    sde: LinearSDE, weights: tuple[np.ndarray, ...], nodes: tuple[float, ...]
) -> tuple[np.ndarray, ...]:
    """The weights of three predictions with half of the exact share of their second difference."""
    v = interpolation_variable(sde, "log_snr")(np.array(nodes))
    # A Lagrange basis integrates (v - v_0)^2 exactly, so that is how its moment can be had from the weights.
    moment = sum(w * (at - v[0]) ** 2 for w, at in zip(weights, v, strict=True))
    difference = [1 / np.prod(at - np.delete(v, i)) for i, at in enumerate(v)]
    return tuple(w - 0.5 * moment * c for w, c in zip(weights, difference, strict=True))


@register("dpm_solver_pp_3m", order=2, aliases=("DPM-Solver++(3M)", "dpmpp_3m"), source="Lu et al., 2022")
def dpm_solver_pp_3m(
    sde: LinearSDE,
    t: float,
    s: float,
    past: tuple[float, ...],
    place: Place,
    *,
    rule: str = "exact",
    lower_order_final: bool = False,
) -> list[Stage]:
    """DPM-Solver++(3M): the quadratic through the last three data predictions, in log-SNR (Lu et al., 2022).

    ``z_s = G z_t + sum_j B_j D_-j``. Between first and third step the order rises from 1; the second step is that of
    ``dpm_solver_pp_2m``. The error of the start, of order 2, is there however small: Order 2 in the end, and until then
    near 3. NFE 1, deterministic, any K.

    Args:
      rule: ``"exact"`` integrates the quadratic. ``"original"`` gives its second difference half of its weight,
        ``phi_3`` for ``2 phi_3``, as the authors' code and its descendants do.
      lower_order_final: take the last step but one of the run, denoising included, with order 2, and the last with 1.

    Raises:
      ValueError: for another rule, or a ``lower_order_final`` that is not a bool.
    """
    choice("rule", rule, RULES)
    usable = regular(sde, past)
    order = lowered(min(3, 1 + len(usable)), place, lower_order_final)
    if order < 3:
        return list(dpm_solver_pp_2m(sde, t, s, past[: order - 1]))
    nodes = (t, *usable[:2])
    e, weights = exponential_step(sde, make_prediction(sde, "data"), "log_snr", t, s, nodes)
    if rule == "original":
        weights = _published_third(sde, weights, nodes)
    return [evaluated(sde, Stage(e, weights), t, "data")]
