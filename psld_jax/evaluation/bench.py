"""Comparing samplers by error to the exact ODE solution, Frechet distance to the exact law, and wall time."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from psld_jax import integrators, metrics
from psld_jax._runtime import random
from psld_jax._runtime.errors import check_choice
from psld_jax._runtime.journal import in_one_go, replace
from psld_jax.build import Model, last_step, sampler_hyper
from psld_jax.integrators import grids
from psld_jax.integrators.tableau import Tableau, denoising
from psld_jax.sampling.adaptive import sample_ode
from psld_jax.sampling.loop import sample
from psld_jax.sampling.settings import Setting

COLUMNS = ("sampler", "grid", "budget", "nfe", "rmse", "frechet", "seconds", "hyper", "t_start")


def select(names: Iterable[str]) -> tuple[str, ...]:
    """Return the canonical names of the samplers to compare; ``("all",)`` means every one.

    Raises:
      ValueError: for an unknown sampler.
    """
    names = tuple(names)
    if names == ("all",):
        return integrators.available()
    return tuple(integrators.get(name).name for name in names)


def bench(model: Model, config: Any, progress: Any = None) -> dict[str, Any]:
    """Run every combination of sampler, grid and budget in ``config.bench``.

    Root-mean-square error of ``x`` at ``t_end`` (before denoising) against the exact solution of the
    probability-flow ODE from the same noise, for deterministic samplers; Frechet distance in pixel space to
    the exact law of the data, after the denoising step if ``config.sampler.denoise``; seconds without
    compilation. Combinations whose budget is below one step are left out.

    Returns:
      ``{"rows": [...], "floor": distance of exact samples, "num_samples": n}``.

    Raises:
      ValueError: for a model whose exact law is not known, and for an unknown sampler or grid.
    """
    if model.data is None:
        raise ValueError("bench needs a model whose exact law is known, such as the digits")
    samplers, sde, n = select(config.bench.samplers), model.sde, config.bench.num_samples
    if sde.num_blocks == 1:
        samplers = tuple(name for name in samplers if integrators.get(name).applies_to(sde))
    for grid in config.bench.grids:
        check_choice("grid", grid, grids.available())
    t_end, denoise = config.sampler.t_end or sde.t_end, last_step(config)
    chosen = [integrators.get(name, **sampler_hyper(config, name)) for name in samplers]
    jobs = [
        (integrator, grid, budget)
        for budget in config.bench.nfe
        for grid in config.bench.grids
        for integrator in chosen
        if budget >= integrator.least_nfe(denoise)
    ]
    if not jobs:
        raise ValueError(
            f"config.bench.samplers={config.bench.samplers} with config.bench.nfe={config.bench.nfe} leaves nothing to "
            "compare: none works for this diffusion, or every budget is below one step"
        )
    law = metrics.mixture_statistics(model.data, config.model.bandwidth)
    keys = random.sample_keys(jax.random.key(config.seed), np.arange(n))
    z_T = sde.prior_sample(keys, (n, *model.image_shape))
    with jax.enable_x64(True):
        z_64 = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, np.float64), z_T)
        exact, _ = sample_ode(
            model.eps_fn,
            sde,
            z_64,
            t_end=t_end,
            solver="dopri8",
            rtol=1e-7,
            atol=1e-7,
            denoise=False,
            step_control="batch",
        )
        exact = np.asarray(exact[0])
    floor = _floor(model.data, config, law)
    rows, run = [], _Stopwatch(model.eps_fn, keys)
    for integrator, grid, budget in progress(jobs) if progress else jobs:
        name = integrator.name
        hyper = sampler_hyper(config, name)
        setting = Setting(name, grid, config.sampler.rho, hyper, t_start=config.sampler.t_start or 1.0)
        table = setting.table(sde, budget - bool(denoise), t_end=t_end, denoise=False)
        z, seconds = run(table, z_T)
        undenoised, nfe = np.asarray(z[0]), table.nfe
        if denoise:
            last = denoising(sde, t_end, integrator.stochastic and not integrator.ode, denoise)
            z, extra = run(last, z)
            seconds, nfe = seconds + extra, nfe + last.nfe
        images = np.asarray(z[0])
        finite = bool(np.isfinite(images).all())
        rmse = None
        if not integrator.stochastic:
            rmse = float(np.sqrt(np.mean((undenoised - exact) ** 2))) if finite else float("inf")
        distance = metrics.frechet_distance(*metrics.statistics(images), *law) if finite else float("inf")
        values = (name, grid, int(budget), nfe, rmse, float(distance), seconds, hyper, setting.t_start)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return {"rows": rows, "floor": floor, "num_samples": int(n)}


def _floor(data: np.ndarray, config: Any, law: Any) -> float:
    """Return the distance that as many exact samples have to their law, as the mean of eight draws."""
    rng, n = np.random.default_rng(config.seed), config.bench.num_samples
    distances = []
    for _ in range(8):
        chosen = data[rng.integers(len(data), size=n)]
        noisy = chosen + config.model.bandwidth * rng.standard_normal(chosen.shape)
        distances.append(metrics.frechet_distance(*metrics.statistics(noisy), *law))
    return float(np.mean(distances))


class _Stopwatch:
    """A stopwatch for tables. It leaves out the compilation of the one program that runs them all."""

    def __init__(self, eps_fn: Any, keys: Any):
        self.eps_fn, self.keys = eps_fn, keys
        self.compiled = False

    def __call__(self, table: Tableau, z: Any) -> tuple[Any, float]:
        """Return the samples and the seconds."""
        if not self.compiled:
            jax.block_until_ready(sample(self.eps_fn, table, z, self.keys))
            self.compiled = True
        start = time.perf_counter()
        z = jax.block_until_ready(sample(self.eps_fn, table, z, self.keys))
        return z, time.perf_counter() - start


def write_tables(rows: list[dict[str, Any]], directory: Path) -> None:
    """Write ``bench.csv`` and ``bench.json``."""
    with in_one_go(directory / "bench.csv") as temporary, temporary.open("w", newline="") as file:
        writer: csv.DictWriter[str] = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({**row, "hyper": json.dumps(row["hyper"])} for row in rows)
    replace(directory / "bench.json", json.dumps(rows, indent=1) + "\n")


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if np.isfinite(value) else "not finite"


def rich_table(result: dict[str, Any], column: str, title: str) -> Table:
    """Make a table of ``column``: budgets across, and the best sampler (by geometric mean) first."""
    rows = [row for row in result["rows"] if row[column] is not None]
    budgets, grids_used = sorted({row["budget"] for row in rows}), {row["grid"] for row in rows}
    floor = f"; exact samples {result['floor']:.3g}" if column == "frechet" else ""
    table = Table(title=f"{title}, {result['num_samples']} samples{floor}")
    table.add_column("sampler", no_wrap=True)
    for budget in budgets:
        table.add_column(f"NFE {budget}", justify="right", no_wrap=True)
    cells: dict[str, dict[int, float]] = {}
    for row in rows:
        name = row["sampler"] if len(grids_used) == 1 else f"{row['sampler']}, {row['grid']}"
        cells.setdefault(name, {})[row["budget"]] = row[column]
    for name in sorted(cells, key=lambda name: float(np.mean(np.log(list(cells[name].values()))))):
        table.add_row(name, *(_text(cells[name].get(b)) for b in budgets))
    return table
