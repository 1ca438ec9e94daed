"""``--mode bench | tune | evaluate``: samplers compared by error, by search, and by many samples."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from psld_jax import bench, build, evaluate, metrics, plots
from psld_jax.journal import Journal
from psld_jax.modes.common import exact_images, sampled_model
from psld_jax.tuning import Row, tune


def run_bench(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Compare samplers; leave bench.csv, bench.json and error_vs_nfe.png. Returns the report."""
    model = sampled_model(config)
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
    c, model = config.tune, sampled_model(config)
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
        return exact_images(model, config, config.tune.num_targets, config.seed)
    if not config.data.path:
        return None
    data = build.build_data(model.config, "train")
    return build.to_images(data, np.arange(min(config.tune.num_targets, len(data))))


def run_evaluate(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Compare samplers by many samples; leave evaluation.csv, .json, .md and .png, and a picture of each cell."""
    c, model = config.evaluate, sampled_model(config)
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
        images = [exact_images(model, config, count, 10**6)]
        others = [exact_images(model, config, c.num_samples, seed) for seed in c.seeds]
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
