"""The samplers of Karras et al. (2022) and of k-diffusion, which step in ``sigma``: Heun, Euler, DPM-2.

They are published for ``x_0 + sigma eps``, with the slope ``d = (x - D(x; sigma)) / sigma``, which is ``eps``. Here
they run in the noise frame of any diffusion of K blocks, see ``_noise_frame``: the same samples under VP, VE and EDM.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from psld_jax._runtime.checks import check_number
from psld_jax.integrators._noise_frame import (
    Churn,
    data_step,
    evaluated,
    first_order,
    gone,
    half_way,
    noise_step,
    time_between,
)
from psld_jax.integrators.base import Place, Stage, choice, register
from psld_jax.integrators.baselines import euler_stage
from psld_jax.sde import LinearSDE

CLOCKS = ("sigma", "t")


def _euler(sde: LinearSDE, t: float, s: float, clock: str) -> Stage:
    """Make Euler's step of the probability-flow ODE in that variable, with its evaluation at ``t``."""
    if clock == "t":
        return euler_stage(sde, t, t - s)
    return first_order(sde, t, s)


def _churned(sde: LinearSDE, t: float, place: Place, hyper: dict[str, Any]) -> tuple[float, list[Stage]]:
    """Return the noise that churn adds before the denoising step."""
    return Churn(*(hyper[name] for name in Churn._fields)).check()(sde, t, place)


@register("euler_edm", order=1, ode=True, source="Karras et al., 2022", before_last=_churned)
def euler_edm(
    sde: LinearSDE,
    t: float,
    s: float,
    place: Place,
    *,
    clock: str = "sigma",
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = np.inf,
    S_noise: float = 1.0,
) -> list[Stage]:
    """Euler's method in ``sigma`` (k-diffusion's ``sample_euler``; DDIM is the same step), with optional churn.

    ``x <- x + (sigma_s - sigma_t) d``. Order 1, NFE 1, deterministic unless ``S_churn > 0`` (then of weak order 1, with
    fresh noise), any K; arguments as for ``edm_heun``.

    Raises:
      ValueError: for another clock, or churn that is negative or NaN.
    """
    choice("clock", clock, CLOCKS)
    start, noise = Churn(S_churn, S_min, S_max, S_noise).check()(sde, t, place)
    return [*noise, _euler(sde, start, s, clock)]


@register("edm_heun", order=2, ode=True, source="Karras et al., 2022", before_last=_churned)
def edm_heun(
    sde: LinearSDE,
    t: float,
    s: float,
    place: Place,
    *,
    alpha: float = 1.0,
    clock: str = "sigma",
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = np.inf,
    S_noise: float = 1.0,
) -> list[Stage]:
    """Heun's method in ``sigma``, with optional churn (Karras et al., 2022, algorithms 1 and 2; 3 with ``alpha``).

    ``x' = x + alpha h d``, ``x <- x + h [(1 - 1/(2 alpha)) d + 1/(2 alpha) d']`` with ``h = sigma_s - sigma_t``; before
    that, with ``S_churn > 0``, ``x <- x + sqrt(sigma^2 - sigma_t^2) S_noise xi`` up to ``sigma = (1 + gamma) sigma_t``.
    The last step, to ``sigma = 0``, is the denoising step, with churn before it. Order 2, NFE 2, deterministic unless
    ``S_churn > 0`` (then of weak order 2, with fresh noise in each step), any K.

    Args:
      alpha: in (0, 1], where ``d'`` is taken: 1 at the end (Heun), 1/2 in the middle.
      clock: ``"sigma"``, or ``"t"`` for the diffusion's own time and scaling (the original's ``ablation_sampler``).
      S_churn: ``gamma = min(S_churn / N, sqrt(2) - 1)`` in ``N`` steps, the denoising step included; the noise ends at
        ``t = 1`` at the latest.
      S_min, S_max: ``sigma`` between which there is churn.
      S_noise: factor of its noise.

    Raises:
      ValueError: for ``alpha`` outside (0, 1], another clock, or churn that is negative or NaN.
    """
    choice("clock", clock, CLOCKS)
    alpha = check_number("alpha", alpha, 0.0)
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha={alpha} must lie in (0, 1]")
    start, noise = Churn(S_churn, S_min, S_max, S_noise).check()(sde, t, place)
    infinite = clock == "sigma" and gone(sde, start)
    if alpha == 1:
        middle = s
    elif clock == "t" or infinite:
        middle = start - alpha * (start - s)
    else:
        levels = float(sde.sigma(np.float64(start))), float(sde.sigma(np.float64(s)))
        middle = time_between(sde, (1 - alpha) * levels[0] + alpha * levels[1], start, s)
    predictor = _euler(sde, start, middle, clock)
    # z_t is recovered from the predicted state: z_t = E'^-1 (z' - B' q).
    back, late = np.linalg.inv(predictor.A), 1 / (2 * alpha)
    if clock == "t":
        whole, slope = euler_stage(sde, start, start - s), euler_stage(sde, middle, start - s)
        one = np.eye(sde.num_blocks)
        keep = (one + (1 - late) * (whole.A - one)) @ back
        early = (1 - late) * whole.B[0] - keep @ predictor.B[0]
        corrector = Stage(keep + late * (slope.A - one), (late * slope.B[0], early)).at(middle)
    else:
        # From an infinite sigma the same rule in data prediction.
        e, b = data_step(sde, start, s) if infinite else noise_step(sde, start, s)
        corrector = Stage(e @ back, (late * b, (1 - late) * b - e @ back @ predictor.B[0]))
        corrector = evaluated(sde, corrector, middle, "data" if infinite else "eps_r")
    return [*noise, predictor, corrector]


@register("dpm2", order=2, ode=True, source="Karras et al., 2022", before_last=_churned)
def dpm2(
    sde: LinearSDE,
    t: float,
    s: float,
    place: Place,
    *,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = np.inf,
    S_noise: float = 1.0,
) -> list[Stage]:
    """The midpoint rule in ``sigma``, its middle half way in ``log sigma`` (k-diffusion's ``sample_dpm_2``).

    ``x' = x + (sigma_m - sigma_t) d``, ``x <- x + (sigma_s - sigma_t) d'`` with ``sigma_m = sqrt(sigma_t sigma_s)``, as
    DPM-Solver-2 chooses it (Lu et al., 2022). Order 2, NFE 2, deterministic unless ``S_churn > 0`` (then of weak order
    2, with fresh noise), any K; churn as for ``edm_heun``.

    Raises:
      ValueError: for churn that is negative or NaN.
    """
    start, noise = Churn(S_churn, S_min, S_max, S_noise).check()(sde, t, place)
    middle, infinite = half_way(sde, start, s), gone(sde, start)
    predictor = first_order(sde, start, middle)
    e, b = data_step(sde, start, s) if infinite else noise_step(sde, start, s)
    back = e @ np.linalg.inv(predictor.A)
    corrector = Stage(back, (b, -back @ predictor.B[0]))
    return [*noise, predictor, evaluated(sde, corrector, middle, "data" if infinite else "eps_r")]
