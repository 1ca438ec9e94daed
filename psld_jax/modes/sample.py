"""``--mode sample``: draw samples, with conditions if asked for, and write images to files."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from psld_jax import build, metrics
from psld_jax._runtime import distributed
from psld_jax._runtime.progress import track
from psld_jax.evaluation import plots
from psld_jax.modes._common import identity, prepared, sampled_model
from psld_jax.sampling.adaptive import SOLVERS
from psld_jax.sampling.files import write_samples
from psld_jax.sampling.generate import resolve
from psld_jax.sampling.loop import sample
from psld_jax.sampling.sampler import Sampler


def run_sample(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Draw samples; leave samples.png and, in phase space, trajectories.png. Returns the report."""
    c, model = config.sampler, sampled_model(config)
    conditions, truth, seen = build.steer_options(config, model)
    sampler = prepared(model, config, **conditions)
    setting = sampler.setting  # a measurement may choose another
    if config.sampling.save:
        return _save_samples(model, config, sampler, workdir, console)
    start = time.perf_counter()
    state, nfe = sampler.states(
        config.sampling.num_samples,
        seed=config.seed,
        batch_size=config.sampling.batch_size,
        progress=partial(track, description="sampling", console=console),
    )
    seconds = time.perf_counter() - start
    report = {
        "model": json.loads(model.config.model.to_json()),
        "sde": json.loads(model.config.sde.to_json()),
        "sampler": c.name,
        "setting": None if setting is None else setting.to_json(),
        "nfe_mean": float(np.mean(nfe)),
        "evaluations": None if sampler.table is None else sampler.evaluations._asdict(),
        "num_samples": len(nfe),
        "seconds": seconds,
    }
    if not distributed.is_first():
        return report
    if truth is not None:
        plots.save_restored(workdir / "restored.png", {"seen": seen, "samples": state[0], "truth": truth})
        report["rmse_to_truth"] = float(np.sqrt(np.mean((np.clip(state[0], -1, 1) - truth) ** 2)))
    if model.data is not None and len(nfe) > 1 and not conditions:
        law = metrics.mixture_statistics(model.data, config.model.bandwidth)
        report["frechet"] = float(metrics.frechet_distance(*metrics.statistics(state[0]), *law))
    title = f"{setting.describe() if setting else c.name}, {report['nfe_mean']:.0f} evaluations"
    plots.save_samples(workdir / "samples.png", state, title)
    if model.data is not None and model.sde.num_blocks == 2 and c.name not in SOLVERS:
        _trajectories(model, config, workdir, sampler)
    console.print(f"{len(nfe)} samples by {title} in {seconds:.1f} s (compilation included)")
    return report


def _save_samples(model: build.Model, config: Any, sampler: Sampler, workdir: Path, console: Console) -> dict[str, Any]:
    """Write images to ``images/``, as many as are missing. Returns the report."""
    c, start = config.sampling, time.perf_counter()
    drawn = write_samples(
        sampler,
        workdir / "images",
        c.num_samples,
        seed=config.seed,
        batch_size=c.batch_size,
        form=c.save,
        levels=c.levels,
        about=identity(model, config),
        progress=partial(track, description="sampling", console=console),
    )
    seconds = time.perf_counter() - start
    drawn = sum(int(theirs["drawn"]) for theirs in distributed.gather_arrays({"drawn": np.array(drawn)}))
    console.print(f"{c.num_samples:,} images in {workdir / 'images'}, {drawn:,} of them new, in {seconds:.1f} s")
    return {"num_samples": c.num_samples, "drawn": drawn, "seconds": seconds, "sampler": sampler.about()}


def _trajectories(model: Any, config: Any, workdir: Path, sampler: Sampler) -> None:
    """Draw trajectories of one pixel in phase space from the same noise, by the sampler of this run and two others."""
    c, paths, times, own = config.sampler, {}, {}, sampler.setting
    assert own is not None and sampler.table is not None
    z_T = model.sde.prior_sample(jax.random.key(config.seed), (3, *model.image_shape))
    row, column = (size // 2 for size in model.image_shape[:2])
    options = {"grid": c.grid, "rho": c.rho, "t_start": c.t_start or None}
    others = (resolve(model, n, c.nfe, **options, **build.sampler_hyper(config, n)) for n in ("RVV", "ddim"))
    nfe, t_end = c.nfe, c.t_end or None
    if c.sigmas or c.timesteps:
        nfe, t_end = sampler.table.nfe - c.denoise, float(sampler.table.times[-1 - c.denoise])
    for name, one in {own.name: own, **{s.name: s for s in others if s.name != own.name}}.items():
        if one.solver is None and nfe < one.integrator().nfe_per_step:
            continue  # too few evaluations for one of its steps
        denoise = False if one.solver is None else one.solver.about["denoise"]
        table = one.table(model.sde, nfe, t_end=t_end, denoise=denoise)
        path = sample(model.eps_fn, table, z_T, jax.random.key(config.seed), return_trajectory=True)
        label = f"{name}, {table.nfe} NFE"
        paths[label] = [np.asarray(leaf)[:, :, row, column, 0] for leaf in path]
        times[label] = table.times
    plots.save_trajectories(workdir / "trajectories.png", paths, times, np.unique(model.data[:, row, column, 0]))
