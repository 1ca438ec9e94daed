"""Inverse problems on the digits against the exact posterior: energy distance by method and evaluations.

python -m benchmarks.inverse --measurements 16 --samples 32
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

import psld_jax as pj
from benchmarks import measure
from psld_jax.evaluation.posterior import MixturePosterior, energy_distance

BUDGETS = (5, 10, 20, 50)
_MULTISTEP = {"sampler": "exponential_multistep", "order": 2, "variable": "log_snr", "grid": "quadratic"}
#: Rows of the table: what :func:`psld_jax.generate` is given besides the measurement.
METHODS: dict[str, dict[str, Any]] = {
    **{f"PiGDM, DDIM, weight {w}": {"sampler": "ddim", "weight": float(w)} for w in (1, 2, 4)},
    **{f"PiGDM, order 2, weight {w}": {**_MULTISTEP, "weight": float(w)} for w in (1, 2, 4)},
    "DPS, order 2": {**_MULTISTEP, "posterior": "dps"},
    **{
        f"conjugate, order {order}, weight {w}, from {start}": {
            **_MULTISTEP,
            "order": order,
            "posterior": "conjugate",
            "weight": float(w),
            "t_start": start,
        }
        for w, start in ((1, 1.0), (4, 1.0), (4, 0.4))
        for order in (1, 2, 3)
    },
    **{
        f"conjugate, order {order}, weight 4, null {null}, from {start}": {
            **_MULTISTEP,
            "order": order,
            "posterior": "conjugate",
            "weight": 4.0,
            "null_weight": float(null),
            "t_start": start,
        }
        for order, null, start in ((1, 1, 1.0), (2, 1, 1.0), (1, 1, 0.4), (2, 1, 0.4), (2, 2, 0.4))
    },
}
# What sampler="auto" takes, on two grids, and on that of the diffusion.
METHODS |= {f"auto, conjugate, {grid} grid": {"posterior": "conjugate", "grid": grid} for grid in ("vp", "quadratic")}
_OWN_GRID = "auto, conjugate, the diffusion's grid"
REPLACEMENT = "replacement, order 2"
PARTICLES = "particles"


def cases(image_shape: tuple[int, ...]) -> dict[str, tuple[Any, float]]:
    """Name, operator and noise of each problem."""
    half = pj.operators.mask(pj.operators.half_mask("top", image_shape))
    return {
        "half, noise 0.05": (half, 0.05),
        "half, noise 0.5": (half, 0.5),
        "2x means, noise 0.05": (pj.operators.downsample(2), 0.05),
        "blur of 1 pixel, noise 0.5": (pj.operators.blur(1.0), 0.5),
    }


def main() -> None:
    parser = measure.Parser("python -m benchmarks.inverse", description=__doc__)
    parser.add_argument("--measurements", type=int, default=16)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="problems whose names hold this")
    parser.add_argument("--sde", default="psld", help="name of a diffusion")
    parser.add_argument("--methods", default="", help="methods whose names hold this")
    args = parser.parse_args()
    model = pj.load("digits", {"sde.name": args.sde})
    rng = np.random.default_rng(args.seed)
    print("| problem | method |" + "".join(f" {nfe} |" for nfe in BUDGETS))
    print("|---|---|" + "---|" * len(BUDGETS))
    for problem, (operator, noise_std) in cases(model.image_shape).items():
        # Also where nothing is run: a problem has the same measurements whichever others are chosen.
        exactly = _draw(model, operator, noise_std, args.measurements, args.samples, rng)
        if args.only in problem:
            _run(model, problem, operator, noise_std, exactly, args.methods)


def _draw(model: Any, operator: Any, noise_std: float, count: int, samples: int, rng: Any) -> tuple[Any, Any, Any]:
    """Measurements ``[count, ...]``, and twice ``samples`` exact samples of the posterior of each."""
    posterior = MixturePosterior(model.data, model.config.model.bandwidth, operator, noise_std)
    truth = model.data[rng.choice(len(model.data), count, replace=False)]
    clean = np.asarray(operator(jnp.asarray(truth)))
    measured = (clean + noise_std * rng.standard_normal(clean.shape)).astype(np.float32)
    exact, again = ([posterior.sample(y, samples, rng) for y in measured] for _ in range(2))
    return measured, exact, again


def _run(model: Any, problem: str, operator: Any, noise_std: float, exactly: tuple[Any, Any, Any], only: str) -> None:
    measured, exact, again = exactly
    count, samples = len(measured), len(exact[0])
    n = count * samples
    condition = {"operator": operator, "measurement": np.repeat(measured, samples, axis=0), "noise_std": noise_std}

    def distance(images: np.ndarray) -> float:
        by_measurement = images.reshape(count, samples, -1)
        return float(np.mean([energy_distance(a, b) for a, b in zip(by_measurement, exact, strict=True)]))

    floor = np.mean([energy_distance(a, b) for a, b in zip(again, exact, strict=True)])
    print(f"| {problem} | exact | " + " | ".join([f"{floor:.3f}"] * len(BUDGETS)) + " |", flush=True)
    methods = METHODS | {_OWN_GRID: {"posterior": "conjugate", "grid": model.sde.grid}}
    if isinstance(operator, pj.operators.Mask):
        methods[REPLACEMENT] = _MULTISTEP

    def drawn(name: str, options: dict[str, Any], nfe: int) -> np.ndarray:
        if name == PARTICLES:  # as many as samples are wanted
            given = {"noise_std": noise_std, "particles": samples, "nfe": nfe}
            return pj.sample_posterior(model, operator, measured, **given).images
        what = condition
        if name == REPLACEMENT:
            what = {"known": np.clip(condition["measurement"], -1, 1), "mask": np.asarray(operator.known)}
        return pj.generate(model, nfe=nfe, n=n, batch_size=n, check=False, **options, **what)

    for name, options in {**methods, PARTICLES: {}}.items():
        if only not in name:
            continue
        found = [distance(drawn(name, options, nfe)) for nfe in BUDGETS]
        print(f"| {problem} | {name} | " + " | ".join(f"{d:.3f}" for d in found) + " |", flush=True)


if __name__ == "__main__":
    main()
