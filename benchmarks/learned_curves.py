"""How much there is to learn: error of a learned solver against the numbers that are learned, and against the noises.

``python -m benchmarks.learned_curves digits --nfe 6 --output DIRECTORY`` learns one solver for each choice of
coefficients on the same noises, and one for each number of noises with the same coefficients, all from the tuned
setting, or from the defaults of a sampler (``--start ddim``). It prints the error on the noises that were learned on,
on others that chose the iteration, and on a third lot that nothing has seen: the distance between the first and the
last is over-fitting. A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import psld_jax as pj
from psld_jax.sampling.settings import choose
from psld_jax.tuning._evaluate import Evaluator

#: What is learned, from few numbers to many: coefficients, history, and whether constant predictions stay exact.
CHOICES: dict[str, dict[str, Any]] = {
    "times that the network is told": {"free": ("tau",), "history": 1},
    # About as many as PAS (Wang et al., 2024) corrects directions with; in phase space four times as many.
    "weights of 4, of two steps": {"free": ("B",), "history": 4, "steps": (2, 3)},
    "weights of 4": {"free": ("B",), "history": 4},
    "weights of 2, consistent": {"free": ("tau", "B"), "history": 2, "consistent": True},
    "weights of 4, consistent": {"free": ("tau", "B"), "history": 4, "consistent": True},
    "state, weights of 1": {"free": ("tau", "A", "B"), "history": 1},
    "state, weights of 2": {"free": ("tau", "A", "B"), "history": 2},
    "state, weights of 4": {"free": ("tau", "A", "B"), "history": 4},
    "state, weights of all": {"free": ("tau", "A", "B"), "history": 16},
}
NOISES = (64, 256, 1024)
#: Of the last report, the third lot.
_UNSEEN = 2048


def learned(
    model: pj.Model, start: pj.Setting, nfe: int, n: int, output: Path, **choice: Any
) -> tuple[int, float, float, float]:
    """Numbers learned, and the error on the noises learned on, on those of the selection, and on unseen ones."""
    steps = "".join(map(str, choice.get("steps", ())))
    chosen = (*choice["free"], f"steps{steps}", choice["history"], choice.get("consistent", False))
    name = "_".join(map(str, (start.sampler, nfe, n, *chosen)))
    options: dict[str, Any] = {"num_samples": n, "batch_size": min(n, 256), "jacobian_batches": 4, "iterations": 30}
    found = pj.learn(model, nfe, start, log=output / f"{name}.jsonl", report=print, **options, **choice)
    setting = pj.Setting.learned(found.solver)
    # With its seed of 0 pj.learn learns on noise of seed 1, and selects on that of seed 2; the third is used nowhere.
    evaluator = Evaluator(model, batch_size=256)
    errors = []
    for seed, count in ((1, n), (2, n), (1001, _UNSEEN)):
        error = evaluator.with_seed(seed)(setting, nfe, count).rmse
        errors.append(np.nan if error is None else error)
    return found.size, *errors


def main() -> None:
    """Learn, and print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--nfe", type=int, default=6)
    parser.add_argument("--start", help="name of a sampler; by default what was tuned")
    parser.add_argument("--samples", type=int, default=1024, help="noises of the first table (1024)")
    parser.add_argument("--output", type=Path, required=True, help="directory of the logs")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    model, nfe = pj.load(arguments.model), arguments.nfe
    tuned = choose(model, nfe, lambda solver: False)
    start = pj.Setting(arguments.start) if arguments.start else tuned
    rows = [
        (what, arguments.samples, *learned(model, start, nfe, arguments.samples, arguments.output, **choice))
        for what, choice in CHOICES.items()
    ]
    whole = CHOICES["state, weights of 4"]
    rows += [(f"noises: {n}", n, *learned(model, start, nfe, n, arguments.output, **whole)) for n in NOISES]
    print("| learned | noises | numbers | error on these | on the selection's | unseen |\n|---|---|---|---|---|---|")
    for what, n, size, *errors in rows:
        print(f"| {what} | {n} | {size} | " + " | ".join(f"{error:.3f}" for error in errors) + " |")


if __name__ == "__main__":
    main()
