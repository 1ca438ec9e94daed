"""What an analytic start is worth on the digits with their exact score, under several paths, without tuning.

``python benchmarks/analytic_start.py`` prints a table for each path: the setting for models that were not tuned, from
``t = 1`` and from noise levels ``sigma`` below it (``psld_jax.Setting.t_start``). Each cell has the root mean square
error to a fine solution from the same noise, and the Frechet distance in pixels, of 1,024 samples.
``python benchmarks/analytic_start.py PICTURE.png`` draws the same sixteen samples of MNIST with and without it.
"""

from __future__ import annotations

import dataclasses
import sys

import matplotlib.pyplot as plt
import numpy as np

import psld_jax as pj
from psld_jax.evaluation.plots import image_grid
from psld_jax.sampling.settings import rule
from psld_jax.tuning._evaluate import Evaluator, Score

#: By name: what differs from the digits' own path.
PATHS = {
    "psld": {},
    "edm": {"sde.name": "edm"},
    "vpsde": {"sde.name": "vpsde", "sde.beta_min": 0.1, "sde.beta_max": 20.0},
    "flow": {"sde.name": "flow"},
}
LEVELS = (16.0, 8.0, 4.0)
BUDGETS = (4, 5, 6, 8, 10, 13, 20)
SAMPLES, TARGETS = 1024, 10_000
#: Of the picture.
DRAWN, SEED = (4, 5, 6, 8, 10), 7


def scores(nfe: int, evaluator: Evaluator, samples: int) -> list[Score]:
    """The scores from ``t = 1``, and from every level."""
    model = evaluator.model
    starts = (1.0, *(float(model.sde.time(np.float64(level))) for level in LEVELS))
    setting = rule(model, nfe)
    return [evaluator(dataclasses.replace(setting, t_start=start), nfe, samples) for start in starts]


def main(budgets: tuple[int, ...] = BUDGETS, samples: int = SAMPLES) -> None:
    """Print the tables."""
    rng = np.random.default_rng(0)
    for path, changed in PATHS.items():
        model = pj.load("digits", changed)
        chosen = model.data[rng.integers(len(model.data), size=TARGETS)]
        noise = model.config.model.bandwidth * rng.standard_normal(chosen.shape)
        target = np.clip(chosen + noise, -1, 1).astype(np.float32)
        evaluator = Evaluator(model, target=target, batch_size=min(samples, 512), seed=3)
        print(f"\n`{path}`: a fine solution has {evaluator.floor(samples):.3g}\n")
        print("| NFE | from t = 1 | " + " | ".join(f"sigma {level:g}" for level in LEVELS) + " |")
        print("|---" * (2 + len(LEVELS)) + "|")
        for nfe in budgets:
            found = scores(nfe, evaluator, samples)
            print(f"| {nfe} | " + " | ".join(f"{s.rmse:.3g}, {s.distance:.3g}" for s in found) + " |", flush=True)


def draw(path: str, name: str = "mnist", budgets: tuple[int, ...] = DRAWN) -> None:
    """The same sixteen samples at every budget, from ``t = 1`` above, from the level of the rule below."""
    model = dataclasses.replace(pj.load(name), tuned=())
    start = float(model.sde.time(np.sqrt(np.prod(model.image_shape))))
    figure, axes = plt.subplots(2, len(budgets), figsize=(2 * len(budgets), 4.2), squeeze=False)
    for row, (title, t_start) in enumerate((("from t = 1", 1.0), (f"from t = {start:.2g}", start))):
        for column, nfe in enumerate(budgets):
            x = pj.generate(model, nfe=nfe, n=16, seed=SEED, batch_size=16, t_start=t_start)
            axes[row, column].imshow(image_grid(x).squeeze(), cmap="gray")
            axes[row, column].set_title(f"{title}, {nfe} NFE", fontsize=9)
            axes[row, column].set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if any(word.startswith("-") for word in sys.argv[1:]):
        sys.exit(__doc__)
    draw(sys.argv[1]) if len(sys.argv) == 2 else main()
