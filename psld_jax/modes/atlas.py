"""``--mode atlas``: the same seeds by several samplers and budgets, step by step, on one page."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from psld_jax import blocks, build, integrators
from psld_jax._runtime import random, xla
from psld_jax._runtime.errors import check_choice
from psld_jax._runtime.progress import track
from psld_jax.evaluation import evaluate
from psld_jax.modes._common import sampled_model
from psld_jax.report.atlas import ATLAS, Way, check_room, to_levels, write_atlas
from psld_jax.sampling.adaptive import SOLVERS
from psld_jax.sampling.generate import generate_states
from psld_jax.sampling.loop import sample
from psld_jax.sampling.sampler import Sampler

#: Noise fills the range of grey up to so many of its standard deviations.
_DEVIATIONS = {"position": 1.6, "momentum": 3.0}


def run_atlas(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Draw the same samples by every sampler and budget of ``config.atlas``; leave atlas.html. Returns the report.

    Raises:
      ValueError: for an unknown sampler, one that has no steps to show, or more than a page has room for.
    """
    c, model = config.atlas, sampled_model(config)
    check_choice("config.atlas.solver", c.solver, SOLVERS)
    jobs = _jobs(model, config, console)
    views = 3 if model.sde.num_blocks > 1 else 2
    check_room(len(jobs), views, c.num_samples, model.image_shape)
    options = build.sampler_options(config)
    ends = {name: options[name] for name in ("t_end", "denoise", "max_steps")}
    tolerance = {"rtol": c.tolerance, "atol": c.tolerance}
    state, evaluations = generate_states(model, c.solver, n=c.num_samples, seed=config.seed, **tolerance, **ends)
    fine = np.clip(state[0], -1, 1)
    keys = random.sample_keys(jax.random.key(config.seed), np.arange(c.num_samples))
    z_T = model.sde.prior_sample(keys, (c.num_samples, *model.image_shape))
    ways, rows = [], []
    for name, budget, sampler in track(jobs, "drawing trajectories", console):
        way, not_finite = _way(model, name, budget, sampler, z_T, keys, fine, c.frames)
        ways.append(way)
        row = {"sampler": name, "budget": budget, "nfe": way.nfe, "steps": int(way.steps[-1]), "error": way.error}
        rows.append(row | {"not_finite": not_finite, "setting": way.note})
        if not_finite:
            console.print(f"{name}, {budget} evaluations: {not_finite} of {c.num_samples} samples are not finite")
    frames = write_atlas(workdir, ways, to_levels(fine))
    if frames < max(len(way.steps) for way in ways):
        console.print(f"the page has room for {frames} frames of every trajectory; fewer samples leave more")
    console.print(
        f"{len(ways)} samplers and budgets from the same noise in {workdir / ATLAS}, beside a fine solution "
        f"({c.solver}, {np.mean(evaluations):.0f} evaluations)"
    )
    return {
        "num_samples": c.num_samples,
        "frames": frames,
        "fine_evaluations": float(np.mean(evaluations)),
        "rows": rows,
    }


def _jobs(model: build.Model, config: Any, console: Console) -> list[tuple[str, int, Sampler]]:
    """Return name, budget and sampler of every trajectory, and tell which samplers and budgets are left out."""
    c, names = config.atlas, []
    for name in dict.fromkeys(c.samplers):
        if name in SOLVERS:
            raise ValueError(f"config.atlas.samplers: {name!r} is adaptive and has no steps to show; name a sampler")
        if name != "auto" and not integrators.get(name).applies_to(model.sde):
            console.print(f"{name} is left out: it needs a diffusion with a momentum")
            continue
        names.append(name)
    options = build.sampler_options(config)
    jobs = list(evaluate.jobs(model, names, dict.fromkeys(c.nfe), build.tuned_rows(model, ""), options))
    drawn = {(name, budget) for name, budget, _ in jobs}
    for name, budget in ((name, budget) for name in names for budget in c.nfe):
        if (name, budget) not in drawn:
            console.print(f"{name} is left out for {budget} evaluations: they are too few for one step")
    if not jobs:
        raise ValueError(f"config.atlas.samplers={c.samplers} with config.atlas.nfe={c.nfe} leaves no sampler to show")
    return jobs


def _way(
    model: build.Model, name: str, budget: int, sampler: Sampler, z_T: Any, keys: Any, fine: np.ndarray, frames: int
) -> tuple[Way, int]:
    """Return the trajectories of one sampler, and how many of its samples are not finite."""
    table, setting = sampler.table, sampler.setting
    assert table is not None and setting is not None
    path = sample(model.eps_fn, table, z_T, keys, return_trajectory=True)
    steps = np.unique(np.round(np.linspace(0, table.num_steps, min(frames, table.num_steps + 1))).astype(int))
    states = [model.sde.state(*(leaf[step] for leaf in path)) for step in steps]
    predicted = [_predicted(model, z, float(table.times[step])) for z, step in zip(states, steps, strict=True)]
    found = {"position": [np.asarray(z[0]) for z in states], "predicted": predicted}
    if model.sde.num_blocks > 1:
        found["momentum"] = [np.asarray(z[1]) for z in states]
    last = found["position"][-1]
    not_finite = int((~np.isfinite(last).all(axis=(1, 2, 3))).sum())
    error = None if not_finite else float(np.sqrt(np.mean((np.clip(last, -1, 1) - fine) ** 2)))
    pictures = {
        view: np.stack([to_levels(image, _limit(view, image, final=i == len(steps) - 1)) for i, image in enumerate(f)])
        for view, f in found.items()
    }
    times = np.asarray(table.times)[steps]
    note = setting.describe().removeprefix(f"{name}, ")
    return Way(name, budget, table.nfe, note, table.num_draws > 0, steps, times, error, pictures), not_finite


def _limit(view: str, image: np.ndarray, *, final: bool) -> float:
    """Return the value that is drawn white: 1 for images, and some deviations for states with noise."""
    if view == "predicted" or (view == "position" and final):
        return 1.0
    deviation = float(np.std(image[np.isfinite(image)])) if np.isfinite(image).any() else 0.0
    return max(1.0 if view == "position" else 1e-6, _DEVIATIONS[view] * deviation)


def _predicted(model: build.Model, z: Any, t: float) -> np.ndarray:
    """Return ``E[x_0 | z_t = z]``, ``[n, H, W, C]``, or the position itself at t = 0."""
    if t <= 0:
        return np.asarray(z[0])
    dtype = z[0].dtype
    matrices = model.sde.denoiser_at(t, dtype)
    return np.asarray(_denoise(blocks.as_pytree(model.eps_fn), matrices, z, jnp.asarray(t, dtype)))


@functools.partial(xla.jit, what="the prediction of the data")
def _denoise(eps_fn: Any, matrices: Any, z: Any, t: Any) -> Any:
    return blocks.apply(matrices, (*z, *eps_fn(z, t)))[0]
