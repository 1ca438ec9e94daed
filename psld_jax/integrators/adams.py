"""Linear multistep methods in noise prediction: DEIS, k-diffusion's LMS, and iPNDM. Any K, see ``_noise_frame``."""

from __future__ import annotations

from psld_jax.integrators._noise_frame import evaluated, first_order, gone, lowered, noise_step, regular
from psld_jax.integrators.base import Place, Stage, choice, register
from psld_jax.integrators.exponential import VARIABLES, exponential_step, make_prediction
from psld_jax.sde import LinearSDE

#: Weights of Adams and Bashforth for equal steps, the newest value first; exact for polynomials.
_WEIGHTS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def _interpolated(sde: LinearSDE, t: float, s: float, past: tuple[float, ...], order: int, variable: str) -> Stage:
    """Make the step that is exact for ``eps_R`` a polynomial in that variable through ``order`` evaluations."""
    nodes = (t, *regular(sde, past)[: order - 1])
    if len(nodes) == 1:
        return first_order(sde, t, s)
    e, weights = exponential_step(sde, make_prediction(sde, "eps_r"), variable, t, s, nodes)
    return evaluated(sde, Stage(e, weights), t)


@register("deis", order=lambda hyper: min(hyper["order"], 2), aliases=("DEIS",), source="Zhang & Chen, 2023")
def deis(
    sde: LinearSDE,
    t: float,
    s: float,
    past: tuple[float, ...],
    place: Place,
    *,
    order: int = 3,
    variable: str = "sigma",
    lower_order_final: bool = False,
) -> list[Stage]:
    """DEIS: ``eps`` extrapolated by a polynomial through the last evaluations (Zhang & Chen, ICLR 2023, eq. 14).

    ``x_s / alpha_s = x_t / alpha_t + sum_j eps_j int l_j d(sigma / alpha)``, the integrals exact:
    ``exponential_multistep`` with ``prediction="eps_r"``. In ``sigma`` it is rho-AB-DEIS, in ``t`` tAB-DEIS, in
    ``log_snr`` what diffusers calls ``logrho``. The first step has order 1, the second 2, and so on up to ``order``, 1
    to 4. What the first one leaves is of Order 2 in the end, however small; until it shows, the error falls with
    ``order``. NFE 1, deterministic, any K.

    Args:
      order: evaluations in use, 1 to 4.
      variable: in which the polynomial is, see ``exponential_multistep``.
      lower_order_final: take the last step but one of the run, denoising included, with order 2 at most, and the last
        with 1. ``DEISMultistepScheduler`` of diffusers does so in runs of fewer than 15 steps.

    Raises:
      ValueError: for another order or variable, or a ``lower_order_final`` that is not a bool.
    """
    choice("order", order, (1, 2, 3, 4))
    choice("variable", variable, VARIABLES)
    return [_interpolated(sde, t, s, past, lowered(order, place, lower_order_final), variable)]


@register("lms", order=lambda hyper: min(hyper["order"], 2), aliases=("LMS",), source="Katherine Crowson, 2022")
def lms(sde: LinearSDE, t: float, s: float, past: tuple[float, ...], *, order: int = 4) -> list[Stage]:
    """Linear multistep in ``sigma`` (k-diffusion, 2022, ``sample_lms``): ``deis`` in ``sigma``, by its other name.

    ``x_s = x_t + sum_j d_j int l_j d sigma``. ``order``, 1 to 4, is reached after as many steps; since the
    first ones have lower order, the whole has order 2, as with ``deis``: Order 2, NFE 1, deterministic, any K.

    Raises:
      ValueError: for another order.
    """
    choice("order", order, (1, 2, 3, 4))
    return [_interpolated(sde, t, s, past, order, "sigma")]


@register("ipndm", order=lambda hyper: min(hyper["order"], 2), aliases=("iPNDM",), source="Zhang & Chen, 2023")
def ipndm(sde: LinearSDE, t: float, s: float, past: tuple[float, ...], *, order: int = 4) -> list[Stage]:
    """iPNDM: the weights of Adams and Bashforth for equal steps, whatever the steps are (Liu et al., 2022, improved).

    ``x_s = x_t + (sigma_s - sigma_t) sum_j a_j d_j`` with ``a`` = (1), (3, -1)/2, (23, -16, 5)/12 or (55, -59, 37,
    -9)/24, the newest first; without the Runge-Kutta start of PNDM. ``order`` is the number of evaluations in use, 1 to
    4. On a grid that is smooth in its index the error falls with order 2, Order 2 also for the default ``order=4``:
    only where steps are equal in ``sigma`` it is more. NFE 1, deterministic, any K.

    Raises:
      ValueError: for another order.
    """
    choice("order", order, (1, 2, 3, 4))
    if gone(sde, t):
        return [first_order(sde, t, s)]
    e, b = noise_step(sde, t, s)
    weights = _WEIGHTS[1 + len(regular(sde, past)[: order - 1])]
    return [evaluated(sde, Stage(e, tuple(weight * b for weight in weights)), t)]
