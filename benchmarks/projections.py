"""Which of a network's two outputs to believe: error of x_0 by time and projection, and samples.

    python benchmarks/projections.py DATA_DIRECTORY MODEL

For a plain (not preconditioned) PSLD network, anything ``psld_jax.load`` opens. The fitted weights come from 256
training images; errors are on 512 held-out images; samples are compared to the test images by their Frechet distance.
"""

from __future__ import annotations

import sys

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import psld_jax as pj
from psld_jax import blocks
from psld_jax.data import open_dataset
from psld_jax.integrators.exponential import make_prediction, projection

TIMES = (1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99)
NUM_SAMPLES, BUDGETS = 256, (10, 20)


def x0_error(model: pj.Model, images: np.ndarray, t: float, kind) -> float:
    p = make_prediction(model.sde, "data", kind)
    noise = model.sde.state(*(jax.random.normal(key, images.shape) for key in jax.random.split(jax.random.key(1))))
    z = model.sde.perturb(images, t, noise)
    u, v = (np.asarray(matrix(np.float64(t)), np.float32) for matrix in (p.U, p.V))
    eps = _eps(model.eps_fn, z, np.float32(t))
    x0 = blocks.add(blocks.apply(u, z), blocks.apply(v, eps))[0]
    return float(np.sqrt(np.mean((np.asarray(x0) - images) ** 2)))


_eps = jax.jit(lambda eps_fn, z, t: eps_fn(z, t))


def main(data: str, name: str) -> None:
    console, model = Console(width=150), pj.load(name)
    options = {"image_size": model.config.model.image_size, "fit": model.config.data.fit}
    test, train = (open_dataset(model.config.data.name, data, split, **options) for split in ("test", "train"))

    def images(dataset, n):
        return dataset.gather(np.arange(n))[0] / np.float32(127.5) - 1

    fitted = pj.fit_projection(model, images(train, 256))
    kinds = {"least_squares": "least_squares", "position": "position", "momentum": "momentum", "fitted": fitted}
    table = Table(title="RMS error of x_0 on 512 held-out images")
    for column in ("t", *kinds, "weights: least squares", "fitted"):
        table.add_column(column)
    held_out = images(test, 512)
    for t in TIMES:
        errors = [x0_error(model, held_out, t, kind) for kind in kinds.values()]
        weights = [
            (projection(model.sde, np.float64(t), kind) * model.sde.mean(t))[:, 0] for kind in ("least_squares", fitted)
        ]
        table.add_row(f"{t:g}", *(f"{error:.5f}" for error in errors), *(f"{a:.3f}, {b:.3f}" for a, b in weights))
    console.print(table)

    target = pj.metrics.FrechetTarget.of(images(test, len(test)))
    table = Table(title=f"Frechet distance in pixel space, {NUM_SAMPLES} samples, default sampler")
    for column in ("NFE", *kinds):
        table.add_column(column)
    for nfe in BUDGETS:
        row = []
        for kind in kinds.values():
            drawn = pj.generate(model, "predictor_corrector", nfe=nfe, n=NUM_SAMPLES, projection=kind)
            row.append(float(target.distance(drawn)))
        table.add_row(str(nfe), *(f"{value:.2f}" for value in row))
    console.print(table)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
