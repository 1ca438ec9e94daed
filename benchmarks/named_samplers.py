"""Frechet distance of the published samplers on the digits with their exact score, at few evaluations.

``python benchmarks/named_samplers.py edm`` (or ``psld``, or another diffusion) prints a table: for every budget the
distance on the grid of Karras et al. (2022) and on the one that dynamic programming chooses. Names after it are
samplers to take.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import psld_jax as pj
from psld_jax.sampling.settings import Setting
from psld_jax.tuning._evaluate import Evaluator
from psld_jax.tuning.gits import candidates, cheapest, step_errors

BUDGETS = (5, 6, 8, 10, 20)
NUM_SAMPLES, NUM_TARGET, FINE_STEPS = 512, 10_000, 60
SAMPLERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("euler_edm", {}),
    ("ddim", {}),
    ("edm_heun", {}),
    ("dpm2", {}),
    ("lms", {}),
    ("deis", {}),
    ("ipndm", {"order": 3}),
    ("ipndm", {"order": 4}),
    ("dpm_solver_pp_2m", {}),
    ("dpm_solver_pp_3m", {}),
    ("dpm_solver_pp_2s", {}),
    ("unipc", {}),
    ("predictor_corrector", {"order": 3}),
    ("euler_ancestral", {}),
    ("dpm_solver_pp_2m_sde", {}),
    ("sa_solver", {}),
    ("restart", {"base": "dpm_solver_pp_2m"}),
)


def main(diffusion: str, names: list[str]) -> None:
    """Print the table for one diffusion; ``names`` may be empty for all samplers."""
    model = pj.load("digits", {"sde.name": diffusion})
    rng = np.random.default_rng(0)
    target = model.data[rng.integers(len(model.data), size=NUM_TARGET)]
    target = target + model.config.model.bandwidth * rng.standard_normal(target.shape)
    evaluator = Evaluator(model, target=target, batch_size=256)
    fine = candidates(model.sde, FINE_STEPS)
    costs = step_errors(model, fine, 256)
    print(f"{model.sde}: distance of a fine solution {evaluator.floor(NUM_SAMPLES):.3g}")
    for name, hyper in SAMPLERS:
        if names and name not in names:
            continue
        integrator = pj.integrators.get(name, **hyper)
        cells = []
        for nfe in BUDGETS:
            steps = (nfe - 1) // integrator.nfe_per_step
            grids = ("edm", tuple(map(float, fine[cheapest(costs, steps)])))
            settings = (Setting(name, grid, 7.0, hyper) for grid in grids)
            scores = (evaluator(s, nfe, NUM_SAMPLES, paired=not integrator.stochastic) for s in settings)
            cells.append(" / ".join(f"{score.distance:.3g}" for score in scores))
        print(f"| `{name}` {hyper or ''} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2 or any(word.startswith("-") for word in sys.argv[1:]):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
