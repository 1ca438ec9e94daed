"""UniPC as published (Zhao et al., 2023): predictor and corrector in data prediction, in log-SNR. Any K."""

from __future__ import annotations

import numpy as np

from psld_jax.integrators._noise_frame import data_rate, data_step, evaluated, gone, lowered
from psld_jax.integrators.base import Place, Stage, choice, register
from psld_jax.integrators.exponential import exponential_step, make_prediction
from psld_jax.sde import LinearSDE

VARIANTS = ("bh1", "bh2")


def _half_rule(
    sde: LinearSDE, t: float, s: float, other: float, variant: str
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """``G``, and the weights of ``D_t`` and of ``D`` at the time ``other``.

    ``z_s = G z_t + P D_t + B(h) / 2 (D_t - D_other) / r``. ``r`` is how far ``other`` lies before ``t``, in steps, in
    log-SNR; at the end of the step it is -1. ``B(h)`` is ``P`` (bh2), or what it is for small steps, ``alpha_s h`` for
    K = 1 (bh1).
    """
    gain, pull = data_step(sde, t, s)
    at_t, at_s, at_other = (float(sde.log_snr(np.float64(u))) for u in (t, s, other))
    # From where no signal is left h is infinite, and only bh2 has a limit.
    share = pull if variant == "bh2" or gone(sde, t) else 0.5 * (at_s - at_t) * data_rate(sde, s)
    slope = -0.5 * share if other == s else 0.5 * share * (at_s - at_t) / (at_t - at_other)
    return gain, (pull + slope, -slope)


def _step(
    sde: LinearSDE, t: float, s: float, nodes: tuple[float, ...], variant: str
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The step whose predictions are at ``nodes``; two of them get the published half, others exact integrals."""
    if len(nodes) == 1:
        gain, pull = data_step(sde, t, s)
        return gain, (pull,)
    if len(nodes) == 2:
        other = nodes[1] if nodes[0] == t else nodes[0]
        gain, (at_t, at_other) = _half_rule(sde, t, s, other, variant)
        return gain, (at_t, at_other) if nodes[0] == t else (at_other, at_t)
    return exponential_step(sde, make_prediction(sde, "data"), "log_snr", t, s, nodes)


@register("unipc", order=lambda hyper: min(hyper["order"] + 1, 3), aliases=("UniPC",), source="Zhao et al., 2023")
def unipc(
    sde: LinearSDE,
    t: float,
    s: float,
    past: tuple[float, ...],
    place: Place,
    *,
    order: int = 3,
    variant: str = "bh2",
    lower_order_final: bool = False,
) -> list[Stage]:
    """UniPC: a multistep predictor, and a corrector with the evaluation at its end (Zhao et al., NeurIPS 2023).

    ``z_s = G z_t + P D_t + sum_m a_m B(h) (D_m - D_t) / r_m`` with ``a`` so that polynomials are integrated exactly;
    ``B(h)`` cancels but where two predictions are used and the authors put ``a = 1/2``: in the predictor of order 2 and
    the corrector of order 1. There ``B(h) = e^h - 1`` (``"bh2"``, better conditioned at few evaluations) or ``h``
    (``"bh1"``). The step to ``t`` is corrected by the evaluation at ``t`` that the next one needs; the last step is not
    corrected. ``predictor_corrector`` with ``prediction="data", variable="log_snr"`` has exact integrals there, too.
    Order 3 by default and for ``order=2``, 2 for ``order=1``; NFE 1, deterministic, any K.

    Args:
      order: 1 to 3, predictions of a predictor.
      variant: ``"bh1"`` or ``"bh2"``.
      lower_order_final: predict the last step but one of the run, denoising included, with order 2 at most, and the
        last with 1. The authors' code and diffusers do so unless they are told otherwise.

    Raises:
      ValueError: for an order other than 1, 2 or 3, or another variant; for a ``lower_order_final`` that is not a
        bool.
    """
    choice("order", order, (1, 2, 3))
    choice("variant", variant, VARIANTS)
    e, b = _step(sde, t, s, (t, *past)[: lowered(order, place, lower_order_final)], variant)
    if not past:
        return [evaluated(sde, Stage(e, b), t, "data")]
    # What the predictor of the step that is corrected had.
    used = past[: lowered(order, place, lower_order_final, ago=1)]
    old = _step(sde, past[0], t, used, variant)[1]
    new = _step(sde, past[0], t, (t, *used), variant)[1]
    correction = (new[0], *(after - before for after, before in zip(new[1:], old, strict=True)))
    return [evaluated(sde, Stage(np.eye(sde.num_blocks), correction), t, "data"), Stage(e, b)]
