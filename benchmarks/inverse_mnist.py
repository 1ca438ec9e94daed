"""Inverse problems on MNIST with the network that ships: PSNR, SSIM, distance, agreement, by method and evaluations.

    python -m benchmarks.inverse_mnist --path DIR_OF_THE_IDX_FILES --output DIR --images 200

What DIR holds already is not run again. It ends with inverse.md, a table, and a picture of each problem.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import psld_jax as pj
from psld_jax import build, metrics
from psld_jax._runtime.journal import Journal, replace
from psld_jax.data import open_dataset
from psld_jax.evaluation import plots
from psld_jax.sampling.generate import prepare

BUDGETS = (5, 10, 20, 50)
_MULTISTEP = {"sampler": "exponential_multistep", "variable": "log_snr", "grid": "quadratic"}
_CONJUGATE = {**_MULTISTEP, "order": 1, "posterior": "conjugate"}
#: Rows of the table: what :func:`psld_jax.generate` is given besides the measurement.
METHODS: dict[str, dict[str, Any]] = {
    "PiGDM, tuned sampler": {"sampler": "auto"},
    "auto, conjugate": {"posterior": "conjugate"},
    "conjugate": _CONJUGATE,
    "conjugate, null 1, momentum -0.3": {**_CONJUGATE, "null_weight": 1.0, "momentum": -0.3},
    "conjugate, weight 6, null 1.5, momentum -0.5": {
        **_CONJUGATE,
        "weight": 6.0,
        "null_weight": 1.5,
        "momentum": -0.5,
    },
}
MEASURES = ("psnr", "ssim", "distance", "agreement", "misfit")
_BATCH = 50
#: The picture shows what so many evaluations give.
_SHOWN = 10


def problems(image_shape: tuple[int, ...]) -> dict[str, tuple[Any, float]]:
    """Name, operator and noise of each problem."""
    return {
        "half": (pj.operators.mask(pj.operators.half_mask("top", image_shape)), 0.05),
        "super-resolution": (pj.operators.downsample(4), 0.05),
        "blur": (pj.operators.blur(2.0), 0.05),
        "denoising": (pj.operators.mask(np.ones(image_shape[:2])), 0.5),
    }


def judged(images: np.ndarray, labels: np.ndarray) -> float:
    """Part of the images that the classifier of clean images takes for what they are."""
    judge = metrics.judge("mnist")
    parts = [np.asarray(judge(images[i : i + _BATCH])).argmax(-1) for i in range(0, len(images), _BATCH)]
    return float(np.mean(np.concatenate(parts) == labels))


def moments(images: np.ndarray) -> metrics.Gaussian:
    found = metrics.Moments()
    found.add(metrics.features("mnist")(images))
    return found.gaussian()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="directory of MNIST's IDX files")
    parser.add_argument("--output", required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--nfe", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--only", default="", help="problems whose names hold this")
    args = parser.parse_args()
    output, n = Path(args.output), args.images
    output.mkdir(parents=True, exist_ok=True)
    data = open_dataset("mnist", args.path, "test", image_size=32, fit="pad", labels=True)
    truth, labels = build.to_images(data, np.arange(n)), data.gather(np.arange(n))[1]
    model, law = pj.load("mnist"), moments(truth)
    journal = Journal(output / "inverse.jsonl", {"images": n}, "a run")
    lines = ["| problem | method | NFE | " + " | ".join(MEASURES) + " | backward |", "|---" * (4 + len(MEASURES)) + "|"]
    for problem, (operator, noise_std) in problems(model.image_shape).items():
        if args.only not in problem:
            continue
        clean = np.asarray(operator(jnp.asarray(truth)))
        noise = np.random.default_rng(0).standard_normal(clean.shape)
        measured = (clean + noise_std * noise).astype(np.float32)
        condition = {"operator": operator, "measurement": measured, "noise_std": noise_std}
        for method, options in METHODS.items():
            for nfe in args.nfe:
                options_ = {**options, **condition, "nfe": nfe}

                def run(options: dict[str, Any] = options_, name: str = f"{problem}, {method}") -> dict[str, float]:
                    x = pj.generate(model, n=n, batch_size=_BATCH, check=False, **options)
                    if options["nfe"] == _SHOWN:
                        file = output / f"{name.replace(', ', '_').replace(' ', '_')}.png"
                        plots.save_restored(file, {"restored": x, "truth": truth}, 36)
                    seen = np.asarray(options["operator"](jnp.asarray(x)))
                    return {
                        "psnr": float(metrics.psnr(x, truth).mean()),
                        "ssim": float(metrics.ssim(x, truth).mean()),
                        "distance": float(moments(x).distance(law)),
                        "agreement": judged(x, labels),
                        "misfit": float(np.sqrt(np.mean((seen - options["measurement"]) ** 2))),
                        "backward": prepare(model, **options).evaluations.backward,
                    }

                found = journal.get([problem, method, nfe], run)
                lines.append(_row([problem, method, nfe], found))
                print(lines[-1], flush=True)
    replace(output / "inverse.md", "\n".join(lines) + "\n")


def _row(key: list[Any], found: dict[str, Any]) -> str:
    values = [f"{found[name]:.3f}" for name in MEASURES] + [str(found["backward"])]
    return "| " + " | ".join([*map(str, key), *values]) + " |"


if __name__ == "__main__":
    main()
