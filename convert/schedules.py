"""The noise levels of diffusers' schedulers from their configurations, in the float32 arithmetic of the original."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from psld_jax._runtime.errors import check_choice, is_count
from psld_jax.checkpoints.pickle_names import clip

#: Of most schedulers, when the file does not say: ``beta_start, beta_end``.
_DDPM = (1e-4, 0.02)
_LATENT = (0.00085, 0.012)
#: Schedulers that step over an index of noise levels, and their ends of the schedule.
DISCRETE = {
    **dict.fromkeys(
        (
            "DDIMInverseScheduler",
            "DDIMParallelScheduler",
            "DDIMScheduler",
            "DDPMParallelScheduler",
            "DDPMScheduler",
            "DEISMultistepScheduler",
            "DPMSolverMultistepInverseScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "EulerAncestralDiscreteScheduler",
            "EulerDiscreteScheduler",
            "LMSDiscreteScheduler",
            "PNDMScheduler",
            "RePaintScheduler",
            "SASolverScheduler",
            "UniPCMultistepScheduler",
        ),
        _DDPM,
    ),
    **dict.fromkeys(
        (
            "DPMSolverSDEScheduler",
            "HeunDiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "KDPM2DiscreteScheduler",
        ),
        _LATENT,
    ),
}
CONTINUOUS = ("ScoreSdeVeScheduler",)
PREDICTIONS = {"epsilon": "eps", "v_prediction": "velocity", "sample": "data"}
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")
_MAX_STEPS = 100_000
#: Of a last level without signal, in the schedulers that divide by it: float16's smallest number.
_ALMOST_ZERO = 2.0**-24
_DIVIDES = (
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)
_RESCALES = (
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    *_DIVIDES,
)


def diffusion(scheduler: Mapping[str, Any]) -> tuple[dict[str, Any], str, str]:
    """Return the diffusion of a ``scheduler_config.json``, what its network predicts, and the network's clock.

    Raises:
      ValueError: for another scheduler or prediction, or numbers that are no schedule.
    """
    name = scheduler.get("_class_name")
    if name in CONTINUOUS:
        low, high = (number(scheduler, key, default) for key, default in (("sigma_min", 0.01), ("sigma_max", 1348.0)))
        return {"name": "vesde", "sigma_min": low, "sigma_max": high}, "score", "sigma"
    if type(name) is not str or name not in DISCRETE:
        raise ValueError(
            f"the scheduler {clip(str(name))} is not supported; {', '.join([*sorted(DISCRETE), *CONTINUOUS])} are"
        )
    if scheduler.get("predict_epsilon") is False and "prediction_type" not in scheduler:
        raise ValueError("it says predict_epsilon=False, as diffusers did before prediction_type: write 'sample' there")
    prediction = scheduler.get("prediction_type", "epsilon")
    check_choice("prediction_type", prediction, PREDICTIONS)
    if (
        name == "EulerDiscreteScheduler"
        and scheduler.get("timestep_type") == "continuous"
        and prediction == "v_prediction"
    ):
        raise ValueError(
            "its timestep_type='continuous' tells the network log(sigma) / 4, not the number of a level, which no "
            "UNet2DModel here is told; psld_jax.from_function takes such a network with times='log sigma / 4'"
        )
    levels = alphas_cumprod(scheduler)
    described = {"name": "discrete", "num_steps": len(levels), "alphas_cumprod": tuple(map(float, levels))}
    return described, PREDICTIONS[prediction], "index"


def alphas_cumprod(scheduler: Mapping[str, Any]) -> np.ndarray:
    """Return the levels that the scheduler of this configuration holds, float32 ``[N]``.

    To the bit, but where they are rescaled to zero terminal SNR: PyTorch's square root rounds in a way of its own,
    which leaves differences of 1e-5.

    Raises:
      ValueError: for an unknown schedule, or numbers that are none.
    """
    betas = _betas(scheduler)
    rescaled = scheduler.get("rescale_betas_zero_snr") and not leaves_snr(scheduler)
    if rescaled:
        roots = np.sqrt(_products(1 - betas))
        first, last = roots[0], roots[-1]
        bars = ((roots - last) * (first / (first - last))) ** 2
        betas = 1 - np.concatenate([bars[:1], bars[1:] / bars[:-1]])
    levels = _products(1 - betas)
    # Where the level before is lower, the levels of the original rise at the end, and those here end at 0.
    if rescaled and scheduler["_class_name"] in _DIVIDES and levels[-2] > _ALMOST_ZERO:
        levels[-1] = _ALMOST_ZERO
    if not (np.isfinite(levels).all() and levels[0] < 1 and levels[-1] >= 0 and (np.diff(levels) < 0).all()):
        raise ValueError("its schedule has levels alphas_cumprod that do not fall from below 1 to 0 or above")
    return levels


def leaves_snr(scheduler: Mapping[str, Any]) -> bool:
    """Tell whether zero terminal SNR is asked of a scheduler that does not know it, and so has no effect there.

    A configuration that another scheduler wrote keeps its options.
    """
    return bool(scheduler.get("rescale_betas_zero_snr")) and scheduler.get("_class_name") not in _RESCALES


def _products(alphas: np.ndarray) -> np.ndarray:
    """Return running products, rounded to float32 one by one, as PyTorch takes them."""
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)


def _betas(scheduler: Mapping[str, Any]) -> np.ndarray:
    trained = scheduler.get("trained_betas")
    if trained is not None:
        if type(trained) is not list or not 2 <= len(trained) <= _MAX_STEPS or not all(map(_is_number, trained)):
            raise ValueError(f"trained_betas must be a list of 2 to {_MAX_STEPS} numbers")
        return np.array(trained, np.float32)
    name, steps = scheduler.get("beta_schedule", "linear"), scheduler.get("num_train_timesteps", 1000)
    check_choice("beta_schedule", name, SCHEDULES)
    if not is_count(steps, 2) or steps > _MAX_STEPS:
        raise ValueError(f"num_train_timesteps={clip(str(steps))} must be an integer from 2 to {_MAX_STEPS}")
    steps, ends = int(steps), DISCRETE[scheduler["_class_name"]]
    low, high = (number(scheduler, key, end) for key, end in zip(("beta_start", "beta_end"), ends, strict=True))
    if name == "linear":
        return _linspace(low, high, steps)
    if name == "scaled_linear":
        return _linspace(low**0.5, high**0.5, steps) ** 2
    if name == "sigmoid":
        x = _linspace(-6.0, 6.0, steps)
        return (1 / (1 + np.exp(-x))) * np.float32(high - low) + np.float32(low)
    bar = {"squaredcos_cap_v2": _cosine, "laplace": _laplace, "exp": lambda t: math.exp(-12 * t)}[name]
    ratios = [bar((i + 1) / steps) / bar(i / steps) for i in range(steps)]
    return np.array([min(1 - ratio, 0.999) for ratio in ratios], np.float32)


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6))
    return math.sqrt(snr / (1 + snr))


def _linspace(low: float, high: float, steps: int) -> np.ndarray:
    """Return ``torch.linspace`` in float32: from either end to the middle, each number rounded once."""
    first, last, i = np.float32(low), np.float32(high), np.arange(steps)
    step = np.float64((last - first) / np.float32(steps - 1))
    return np.where(i < steps // 2, first + step * i, last - step * (steps - 1 - i)).astype(np.float32)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def number(scheduler: Mapping[str, Any], key: str, default: float) -> float:
    """Return a number > 0 of the scheduler; ``default`` if it does not say.

    Raises:
      ValueError: for something else.
    """
    value = scheduler.get(key, default)
    if not _is_number(value) or not value > 0:
        raise ValueError(f"{key}={clip(str(value))} of the scheduler must be a finite number > 0")
    return float(value)
