"""What each mode of the command line does: run, and leave pictures, tables and a report in the work directory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

from psld_jax import bench, build, checkpoint, evaluate, metrics, plots
from psld_jax.generate import generate_states, prepare, resolve
from psld_jax.journal import Journal, replace
from psld_jax.sampling import write_samples
from psld_jax.settings import Setting
from psld_jax.solve import SOLVERS, sample
from psld_jax.train import train
from psld_jax.tuning import Row, tune


def versions() -> dict[str, str]:
    """Versions of what a result depends on, for reports."""
    names = ("psld_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "diffrax", "numpy", "scipy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def _sampled(config: Any) -> build.Model:
    model = build.build_model(config)
    if not isinstance(model, build.Model):
        raise ValueError("a classifier cannot be sampled from; give a score network")
    return model


def run_sample(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Draw samples; leave samples.png and, in phase space, trajectories.png. Returns the report."""
    c, model = config.sampler, _sampled(config)
    setting = None if c.name in SOLVERS else _resolve(model, config, c.name)
    conditions, truth, seen = build.steer_options(config, model)
    if config.sampling.save:
        return _save_samples(model, config, conditions, workdir, console)
    start = time.perf_counter()
    state, nfe = generate_states(
        model,
        n=config.sampling.num_samples,
        batch_size=config.sampling.batch_size,
        progress=partial(track, description="sampling", console=console, transient=True),
        **build.sampler_options(config),
        **conditions,
    )
    seconds = time.perf_counter() - start
    report = {
        "model": json.loads(model.config.model.to_json()),
        "sde": json.loads(model.config.sde.to_json()),
        "sampler": c.name,
        "setting": None if setting is None else setting.to_json(),
        "nfe_mean": float(np.mean(nfe)),
        "num_samples": len(nfe),
        "seconds": seconds,
    }
    if truth is not None:
        plots.save_restored(workdir / "restored.png", {"seen": seen, "samples": state[0], "truth": truth})
        report["rmse_to_truth"] = float(np.sqrt(np.mean((np.clip(state[0], -1, 1) - truth) ** 2)))
    if model.data is not None and len(nfe) > 1 and not conditions:
        law = metrics.mixture_statistics(model.data, config.model.bandwidth)
        report["frechet"] = float(metrics.frechet_distance(*metrics.statistics(state[0]), *law))
    title = f"{setting.describe() if setting else c.name}, {report['nfe_mean']:.0f} evaluations"
    plots.save_samples(workdir / "samples.png", state, title)
    if model.data is not None and model.sde.num_blocks == 2 and c.name not in SOLVERS:
        _trajectories(model, config, workdir)
    console.print(f"{len(nfe)} samples by {title} in {seconds:.1f} s (compilation included)")
    return report


def _save_samples(
    model: build.Model, config: Any, conditions: dict[str, Any], workdir: Path, console: Console
) -> dict[str, Any]:
    """Write images to ``images/``, as many as are missing. Returns the report."""
    c, start = config.sampling, time.perf_counter()
    options = build.sampler_options(config)
    del options["seed"]
    sampler = prepare(model, **options, **conditions)
    drawn = write_samples(
        sampler,
        workdir / "images",
        c.num_samples,
        seed=config.seed,
        batch_size=c.batch_size,
        form=c.save,
        levels=c.levels,
        about={"model": build.tuned_for(model.config, model.sde), "checkpoint": config.model.checkpoint},
        progress=partial(track, description="sampling", console=console, transient=True),
    )
    seconds = time.perf_counter() - start
    console.print(f"{c.num_samples:,} images in {workdir / 'images'}, {drawn:,} of them new, in {seconds:.1f} s")
    return {"num_samples": c.num_samples, "drawn": drawn, "seconds": seconds, "sampler": sampler.about()}


def _resolve(model: build.Model, config: Any, name: str) -> Setting:
    c = config.sampler
    return resolve(model, name, c.nfe, grid=c.grid, rho=c.rho, **build.sampler_hyper(config, name))


def _trajectories(model: Any, config: Any, workdir: Path) -> None:
    """Trajectories of one pixel in phase space by a few samplers, from the same noise."""
    c, paths, times = config.sampler, {}, {}
    z_T = model.sde.prior_sample(jax.random.key(config.seed), (6, *model.image_shape))
    row, column = (size // 2 for size in model.image_shape[:2])
    settings = {s.integrator().name: s for s in (_resolve(model, config, n) for n in (c.name, "RVV", "ddim"))}
    for name, setting in settings.items():
        table = setting.table(model.sde, c.nfe, t_end=c.t_end, denoise=False)
        path = sample(model.eps_fn, table, z_T, jax.random.key(config.seed), return_trajectory=True)
        label = f"{name}, {table.nfe} NFE"
        paths[label] = [np.asarray(leaf)[:, :, row, column, 0] for leaf in path]
        times[label] = table.times
    plots.save_trajectories(workdir / "trajectories.png", paths, times, np.unique(model.data[:, row, column, 0]))


def run_bench(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Compare samplers; leave bench.csv, bench.json and error_vs_nfe.png. Returns the report."""
    model = _sampled(config)
    result = bench.bench(
        model, config, partial(track, description="comparing samplers", console=console, transient=True)
    )
    bench.write_tables(result["rows"], workdir)
    labels = {"frechet": "Frechet distance to the exact law", "rmse": "RMSE to the exact ODE solution"}
    plots.save_curves(workdir / "error_vs_nfe.png", result["rows"], labels, {"frechet": result["floor"]})
    for column, title in labels.items():
        console.print(bench.rich_table(result, column, title))
    return result


def run_tune(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Tune samplers; leave samplers.json, tuning.png and tuned_numbers.png. Returns the report."""
    c, model = config.tune, _sampled(config)
    target = _target(model, config)
    law = "samples of a fine solution" if target is None else f"{len(target):,} images"
    console.print(f"tuning {', '.join(c.samplers)} for {', '.join(map(str, c.nfe))} evaluations, compared to {law}")

    def report(row: Row) -> None:
        error = "" if row.score.rmse is None else f"error {row.score.rmse:.3g}, "
        scores = f"{error}distance {row.score.distance:.3g} (fine solution {row.score.floor:.3g})"
        console.print(f"{row.nfe} NFE: {scores}: {row.setting.describe()}")

    options = {name: c[name] for name in ("nfe", "samplers", "num_samples", "candidates", "gradient_steps")}
    sampler = {name: config.sampler[name] for name in ("t_end", "denoise")}
    log = workdir / "tuning.jsonl"
    features = metrics.features(c.features)
    tuning = tune(
        model, **options, **sampler, target=target, features=features, seed=config.seed, log=log, report=report
    )
    tuning.write(workdir / "samplers.json")
    plots.save_tuning(workdir, [row.to_json() for row in tuning.rows])
    if Path(config.model.checkpoint or workdir).absolute() != workdir.absolute():
        console.print(f"sampler.name=auto uses it with --config.sampler.tuned={workdir / 'samplers.json'}")
    return {"best": [dataclasses.asdict(row) for row in tuning.best]}


def _target(model: build.Model, config: Any) -> np.ndarray | None:
    """Images to compare samples with: of the exact law, or of the data if the configuration says where they are."""
    if model.data is not None:
        return _exact_images(model, config, config.tune.num_targets, config.seed)
    if not config.data.path:
        return None
    data = build.build_data(model.config, "train")
    return build.to_images(data, np.arange(min(config.tune.num_targets, len(data))))


def _exact_images(model: build.Model, config: Any, count: int, seed: int) -> np.ndarray:
    """Draws from the law whose score is exact."""
    assert model.data is not None
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, *model.image_shape))
    return model.data[rng.integers(len(model.data), size=count)] + config.model.bandwidth * noise


def run_evaluate(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Compare samplers by many samples; leave evaluation.csv, .json, .md and .png, and a picture of each cell."""
    c, model = config.evaluate, _sampled(config)
    features = metrics.features(c.features)
    features.check(model.image_shape)
    options = build.sampler_options(config)
    tuned = build.tuned_rows(model, c.tuned)
    jobs = list(evaluate.jobs(model, c.samplers, c.nfe, tuned, options))
    reference, real = _references(model, config, features)
    console.print(f"{len(jobs)} samplers and budgets, {len(c.seeds)} seeds of {c.num_samples:,} samples each")
    about = {"model": build.tuned_for(model.config, model.sde), "checkpoint": config.model.checkpoint}
    about |= {"features": features.name, "t_end": config.sampler.t_end, "denoise": config.sampler.denoise}
    pictures = workdir / "pictures"

    def report(cell: evaluate.Cell) -> None:
        console.print(f"{cell.sampler}, {cell.nfe:.0f} NFE, seed {cell.seed}: distance {cell.distance:.4g}")

    def picture(cell: evaluate.Cell, images: np.ndarray) -> None:
        pictures.mkdir(exist_ok=True)
        plots.save_samples(
            pictures / f"{cell.sampler}_{cell.budget}.png", (images,), f"{cell.sampler}, {cell.nfe:.0f} NFE"
        )

    cells = evaluate.evaluate(
        jobs,
        reference,
        features=features,
        seeds=c.seeds,
        num_samples=c.num_samples,
        batch_size=config.sampling.batch_size,
        journal=Journal(workdir / "evaluation.jsonl", about, "an evaluation"),
        report=report,
        picture=picture,
    )
    rows = evaluate.summary(cells)
    title = f"{features.name} features, {c.num_samples:,} samples a seed"
    evaluate.write(workdir, rows, real, title, c.published)
    labels = {"distance": f"Frechet distance, {features.name} features"}
    plots.save_curves(
        workdir / "evaluation.png", [{**row, "grid": ""} for row in rows], labels, {"distance": real[0]}, "real images"
    )
    console.print((workdir / "evaluation.md").read_text())
    return {"rows": rows, "real": real}


def _references(
    model: build.Model, config: Any, features: metrics.Features
) -> tuple[metrics.Gaussian, tuple[float, float]]:
    """The law of the features of the data, and mean and spread of the distance that so many other real images have."""
    c = config.evaluate
    if model.data is not None:
        count = c.num_reference or 50_000
        images = [_exact_images(model, config, count, 10**6)]
        others = [_exact_images(model, config, c.num_samples, seed) for seed in c.seeds]
    else:
        train, test = (build.build_data(model.config, split) for split in ("train", "test"))
        numbers = np.arange(c.num_reference or len(train))
        images = (build.to_images(train, part) for part in np.array_split(numbers, max(len(numbers) // 1000, 1)))
        choices = [np.random.default_rng(seed).permutation(len(test))[: c.num_samples] for seed in c.seeds]
        others = (build.to_images(test, chosen) for chosen in choices)
    reference = metrics.Moments()
    for part in images:
        reference.add(features(np.clip(part, -1, 1)))
    law, distances = reference.gaussian(), []
    for part in others:
        moments = metrics.Moments()
        moments.add(features(np.clip(part, -1, 1)))
        distances.append(moments.gaussian().distance(law))
    return law, (float(np.mean(distances)), float(np.std(distances)))


def run_export(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Write the latest weights of the training run in ``workdir`` to ``workdir/model``, a directory to pass on."""
    latest = checkpoint.latest_training(workdir)
    if latest is None:
        raise ValueError(f"{workdir} holds no checkpoint of a training run; train first, or choose its work directory")
    weights = checkpoint.choose_weights(latest, config.model.weights or None)
    stored, params = checkpoint.read_training(latest, weights)
    stored["data"]["path"] = ""  # a place on this machine
    output = workdir / "model"
    shapes = {path: {"shape": list(np.shape(array))} for path, array in checkpoint.flatten(params).items()}
    with checkpoint.new_directory(output, overwrite=True) as directory:
        checkpoint.write_parameters(directory, weights, params)
        index = {"source": {"training_steps": int(latest.name)}, "parameters": {weights: shapes}}
        checkpoint.write_description(directory, stored, index)
        if (workdir / "samplers.json").exists():
            shutil.copy(workdir / "samplers.json", directory)
    console.print(f"{weights} weights of step {latest.name} in {output}: psld_jax.load({str(output)!r}) opens them")
    return {"step": int(latest.name), "weights": weights}


#: Mode name -> ``run(config, workdir, console) -> report``.
MODES: dict[str, Callable[[Any, Path, Console], dict[str, Any]]] = {
    "sample": run_sample,
    "bench": run_bench,
    "train": train,
    "tune": run_tune,
    "evaluate": run_evaluate,
    "export": run_export,
}


def run(mode: str, config: Any, workdir: Path, console: Console) -> None:
    """Run ``mode`` and add its report, with command, configuration and versions, to ``workdir/report.json``.

    Raises:
      ValueError: for a configuration that makes no sense, before anything expensive starts.
    """
    start, used = time.perf_counter(), versions()
    made = [path for path in (workdir, *workdir.parents) if not path.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        result = MODES[mode](config, workdir, console)
    except BaseException:
        with contextlib.suppress(OSError):  # if they are still empty
            for path in made:
                path.rmdir()
        raise
    report = workdir / "report.json"
    content = json.loads(report.read_text()) if report.exists() else {}
    content[mode] = {
        **result,
        "total_seconds": time.perf_counter() - start,
        "command": sys.argv,
        "config": json.loads(config.to_json()),
        "versions": used,
    }
    replace(report, json.dumps(content, indent=1) + "\n")
    console.print(f"results in {workdir}")
