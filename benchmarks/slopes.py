"""Measured orders of convergence of deterministic samplers on the digits with their exact score, under every path.

``python benchmarks/slopes.py`` prints a table: a row for every sampler, a column for every diffusion. Names after it
are samplers to take.

The error is that of the position (root mean square over pixels and samples) against a fine solution of the same ODE,
from noise level 2 to 0.2 in equal ratios; the slope is that of its logarithm between 80 and 160 steps. Twenty digits,
smoothed with 0.2, in float64: from higher noise some trajectories end at another digit, which has no order.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import jax
import numpy as np

import psld_jax as pj

DIFFUSIONS = ("vesde", "edm", "vpsde", "subvp", "cosine", "flow", "discrete", "cld", "psld")
LEVELS, STEPS, FINE_STEPS = (2.0, 0.2), (80, 160), 1000
SAMPLES = 4


def samplers() -> tuple[str, ...]:
    """The deterministic ones."""
    return tuple(name for name in pj.integrators.available() if not pj.integrators.get(name).stochastic)


def end(model: pj.Model, integrator: pj.integrators.Integrator, n_steps: int) -> np.ndarray:
    """Positions at the last level, ``[SAMPLES, 8, 8, 1]``, of an ODE that starts at noised digits."""
    sde = model.sde
    t = sde.time(np.geomspace(*LEVELS, n_steps + 1))
    rng = np.random.default_rng(0)
    x0 = np.asarray(model.data[:SAMPLES], np.float64)
    noise = tuple(rng.standard_normal(x0.shape) for _ in range(sde.num_blocks))
    start = sde.perturb(x0, float(t[0]), noise)
    return np.asarray(pj.sample(model.eps_fn, pj.tabulate(integrator, sde, t, denoise=False), start)[0])


def slopes(
    diffusion: str, names: Sequence[str], steps: tuple[int, int] = STEPS, fine_steps: int = FINE_STEPS
) -> dict[str, float]:
    """By name, the slope between two numbers of steps, of those that apply to the diffusion."""
    model = pj.load("digits", {"sde.name": diffusion, "data.num_points": 20, "model.bandwidth": 0.2})
    exact = end(model, pj.integrators.get("predictor_corrector", order=3, variable="log_snr"), fine_steps)
    found = {}
    for name in names:
        integrator = pj.integrators.get(name)
        if integrator.applies_to(model.sde):
            few, many = (np.sqrt(np.mean((end(model, integrator, n) - exact) ** 2)) for n in steps)
            found[name] = float(np.log(few / many) / np.log(steps[1] / steps[0]))
    return found


def main(names: Sequence[str]) -> None:
    """Print the table."""
    jax.config.update("jax_enable_x64", True)
    names = names or samplers()
    columns = [slopes(diffusion, names) for diffusion in DIFFUSIONS]
    print("| sampler | order | " + " | ".join(f"`{diffusion}`" for diffusion in DIFFUSIONS) + " |")
    print("|---" * (2 + len(DIFFUSIONS)) + "|")
    for name in names:
        cells = [f"{column[name]:.2f}" if name in column else "" for column in columns]
        print(f"| `{name}` | {pj.integrators.get(name).order} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if any(word.startswith("-") for word in sys.argv[1:]):
        sys.exit(__doc__)
    main(sys.argv[1:])
