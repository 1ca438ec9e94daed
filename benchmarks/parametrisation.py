"""Compare networks of any parametrisation on held-out images: error of the predicted x_0 by time, and samples.

    python benchmarks/parametrisation.py DATA_DIRECTORY runs/a runs/b ...

For each model (anything ``psld_jax.load`` opens; append ``@STEP`` for an earlier checkpoint of a training run): the
root-mean-square error of ``E[x_0 | z_t]`` at several times, with the same images and noise, and the Frechet distance in
pixel space between samples and the test images, beside that of as many training images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import psld_jax as pj
from psld_jax import blocks, build
from psld_jax.checkpoints import directory as checkpoint
from psld_jax.data import open_dataset
from psld_jax.integrators.exponential import make_prediction

TIMES = (1e-3, 1e-2, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
NUM_IMAGES, NUM_SAMPLES = 512, 500
SAMPLERS = (("reduced_oba", 25), ("reduced_oba", 50), ("exponential_multistep", 15), ("exponential_multistep", 25))


def load(name: str) -> pj.Model:
    path, _, step = name.partition("@")
    if not step:
        return pj.load(path)
    config, params = checkpoint.read_training(Path(path) / "checkpoints" / step)
    return build.network_model(build.from_dict(config), params)


def x0_errors(model: pj.Model, images: np.ndarray) -> list[float]:
    prediction, keys = make_prediction(model.sde, "data"), jax.random.split(jax.random.key(0), model.sde.num_blocks)
    noise = model.sde.state(*(jax.random.normal(key, images.shape) for key in keys))

    @jax.jit
    def x0(eps_fn, u, v, z, t):
        return blocks.add(blocks.apply(u, z), blocks.apply(v, eps_fn(z, t)))[0]

    errors = []
    for t in TIMES:
        u, v = (np.asarray(m(np.float64(t)), np.float32) for m in (prediction.U, prediction.V))
        predicted = x0(model.eps_fn, u, v, model.sde.perturb(images, t, noise), np.float32(t))
        errors.append(float(np.sqrt(np.mean((np.asarray(predicted) - images) ** 2))))
    return errors


def main(data: str, names: list[str]) -> None:
    console = Console(width=150)
    models = {name: load(name) for name in names}
    first = next(iter(models.values())).config
    options = {"image_size": first.model.image_size, "fit": first.data.fit}
    test, train = (open_dataset(first.data.name, data, split, **options) for split in ("test", "train"))

    def images(dataset, n):
        return dataset.gather(np.arange(n))[0] / np.float32(127.5) - 1

    table = Table(title=f"RMS error of x_0 on {NUM_IMAGES} held-out images")
    for column in ("t", *names):
        table.add_column(column)
    errors = [x0_errors(model, images(test, NUM_IMAGES)) for model in models.values()]
    for t, *row in zip(TIMES, *errors, strict=True):
        table.add_row(f"{t:g}", *(f"{value:.4f}" for value in row))
    console.print(table)

    target = pj.metrics.statistics(images(test, len(test)))

    def distance(pictures):
        return float(pj.metrics.frechet_distance(*pj.metrics.statistics(pictures), *target))

    table = Table(title=f"Frechet distance to the test images in pixel space, {NUM_SAMPLES} samples")
    for column in ("sampler", "NFE", *names):
        table.add_column(column)
    table.add_row("training images", "", f"{distance(images(train, NUM_SAMPLES)):.2f}")
    for sampler, nfe in SAMPLERS:
        values = [distance(pj.generate(model, sampler, nfe=nfe, n=NUM_SAMPLES)) for model in models.values()]
        table.add_row(sampler, str(nfe), *(f"{value:.2f}" for value in values))
    console.print(table)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
