"""Learned solvers beside the settings that they started from, on noise that neither has seen.

``python benchmarks/learned.py digits`` (or ``mnist``, or a directory with a ``samplers.json``) prints for every budget
the error to the fine solution and the Frechet distance, mean and spread over three seeds: of the tuned setting, of the
grid that dynamic programming chooses (GITS), and of the learned solver. ``python benchmarks/learned.py digits
PICTURE.png`` draws the same sixteen samples by all of them. ``--images DIR`` compares to MNIST's training images there.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

import psld_jax as pj
from psld_jax import build
from psld_jax.data import open_dataset
from psld_jax.evaluation.plots import image_grid
from psld_jax.sampling.settings import Setting, choose
from psld_jax.tuning._evaluate import Evaluator, Score

SEEDS = (1001, 1002, 1003)


def settings(model: pj.Model, nfe: int) -> dict[str, Setting]:
    """The settings that are compared: tuned, with times by dynamic programming, and learned, if there is a solver."""
    tuned = choose(model, nfe, lambda solver: False)
    times = tuple(map(float, pj.gits_grid(model, nfe - 1, n=32)))
    found = {"tuned": tuned, "GITS": Setting("ipndm", times, hyper={"order": 3})}
    learned = choose(model, nfe)
    return found | ({"learned": learned} if learned.solver is not None else {})


def scores(evaluator: Evaluator, setting: Setting, nfe: int, n: int) -> list[Score]:
    """The scores of ``n`` samples of each seed."""
    return [evaluator.with_seed(seed)(setting, nfe, n) for seed in SEEDS]


def told(values: list[float]) -> str:
    """Mean and spread."""
    return f"{np.mean(values):.3g} ± {np.std(values):.1g}"


def draw(model: pj.Model, budgets: list[int], path: str) -> None:
    """The same sixteen samples at every budget: tuned above, learned below."""
    figure, axes = plt.subplots(2, len(budgets), figsize=(2 * len(budgets), 4.2), squeeze=False)
    for column, nfe in enumerate(budgets):
        found = settings(model, nfe)
        for row, name in enumerate(("tuned", "learned")):
            axis = axes[row, column]
            axis.set_axis_off()
            if name in found:
                table = found[name].table(model.sde, nfe)
                images = pj.sample(model.eps_fn, table, _noise(model))[0]
                axis.imshow(image_grid(np.asarray(images)).squeeze(), cmap="gray")
                axis.set_title(f"{name}, {nfe} NFE", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _noise(model: pj.Model) -> Any:
    keys = pj.sample_keys(jax.random.key(7), np.arange(16))
    return model.sde.prior_sample(keys, (16, *model.image_shape))


def main() -> None:
    """Print the table, or draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("picture", nargs="?")
    parser.add_argument("--nfe", type=int, nargs="+", default=(4, 5, 6, 7, 8, 10, 20))
    parser.add_argument("--num_samples", type=int, default=2048)
    parser.add_argument("--images")
    arguments = parser.parse_args()
    model = pj.load(arguments.model)
    if arguments.picture:
        draw(model, list(arguments.nfe), arguments.picture)
        return
    target, features = None, None
    if arguments.images:
        data = open_dataset("mnist", arguments.images, image_size=model.image_shape[0], fit="pad")
        target = build.to_images(data, np.arange(10_000))
        features = pj.metrics.features("mnist")
    elif model.data is not None:
        rng = np.random.default_rng(0)
        chosen = model.data[rng.integers(len(model.data), size=10_000)]
        target = np.clip(chosen + model.config.model.bandwidth * rng.standard_normal(chosen.shape), -1, 1)
    batch = 256 if model.data is not None else 64
    evaluator = Evaluator(model, target=target, features=features, batch_size=batch)
    n = arguments.num_samples
    floor = [evaluator.with_seed(seed).floor(n) for seed in SEEDS]
    print(f"{n} samples of each of {len(SEEDS)} seeds; distance of the fine solution {told(floor)}")
    print("| NFE | setting | error | distance |\n|---|---|---|---|")
    for nfe in arguments.nfe:
        for name, setting in settings(model, nfe).items():
            found = scores(evaluator, setting, nfe, n)
            error = told([s.rmse for s in found if s.rmse is not None])
            print(f"| {nfe} | {name} | {error} | {told([s.distance for s in found])} |", flush=True)


if __name__ == "__main__":
    main()
