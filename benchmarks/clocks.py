"""In which time a sampler should step: python -m benchmarks.clocks [DIRECTORY ...]

Prints a table for each path of the digits with their exact score, or for each directory of a trained network: the
error to a fine solution from the same noise, and the Frechet distance in pixels, of ``predictor_corrector`` with steps
and polynomials in several times, and of published samplers on EDM's grid. Nothing is tuned, and every grid starts at
``t = 1``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import psld_jax as pj
from psld_jax.tuning._evaluate import Evaluator

#: Grid, variable and order: the last one is that of models that were not tuned.
CLOCKS = (("quadratic", "t", 3), ("edm", "log_snr", 2), ("vp", "vp_time", 3))
PUBLISHED = ("unipc", "dpm_solver_pp_3m", "ipndm", "edm_heun")
_NAMES = ("psld", "cld", "third_order_langevin", "vpsde", "subvp", "edm", "vesde", "flow", "cosine", "discrete")
#: By name: what differs from the digits' own path.
PATHS = {name: {"sde.name": name} for name in _NAMES}
BUDGETS = (5, 6, 8, 10, 20)
SAMPLES = 512


def main(directories: Sequence[str] = (), budgets: Sequence[int] = BUDGETS, samples: int = SAMPLES) -> None:
    """Print the tables."""
    for name in directories or PATHS:
        model = pj.load(name) if directories else pj.load("digits", PATHS[name])
        evaluator = Evaluator(model, batch_size=min(samples, 512), seed=3)
        print(f"\n`{name}`: a fine solution has {evaluator.floor(samples):.3g}\n")
        print("| error, distance | " + " | ".join(f"{nfe} NFE" for nfe in budgets) + " |")
        print("|---" * (1 + len(budgets)) + "|")
        rows = {f"`{name}`, `edm`": pj.Setting(name, "edm") for name in PUBLISHED}
        for grid, variable, order in CLOCKS:
            hyper = {"order": order, "variable": variable}
            rows[f"`{grid}`, `{variable}`, order {order}"] = pj.Setting("predictor_corrector", grid, hyper=hyper)
        for title, setting in rows.items():
            scores = [evaluator(setting, nfe, samples) for nfe in budgets]
            cells = " | ".join(f"{score.rmse:.3g}, {score.distance:.3g}" for score in scores)
            print(f"| {title} | {cells} |", flush=True)


if __name__ == "__main__":
    if any(word.startswith("-") for word in sys.argv[1:]):
        sys.exit(__doc__)
    main(sys.argv[1:])
