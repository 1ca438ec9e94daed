"""``--mode bench | tune | evaluate``: samplers compared by error, by search, and by many samples."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from psld_jax import build, metrics
from psld_jax._runtime import distributed
from psld_jax._runtime.checks import NotFinite
from psld_jax._runtime.journal import Journal, fingerprint
from psld_jax._runtime.progress import Bar, track
from psld_jax.data import open_dataset
from psld_jax.evaluation import bench, evaluate, plots
from psld_jax.metrics import inception
from psld_jax.modes._common import exact_images, identity, sampled_model
from psld_jax.tuning import Row, tune


def run_bench(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Compare samplers; leave bench.csv, bench.json and error_vs_nfe.png. Returns the report."""
    model = sampled_model(config)
    result = bench.bench(model, config, partial(track, description="comparing samplers", console=console))
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

    options = {name: c[name] for name in ("nfe", "samplers", "num_samples", "candidates", "gradient_steps", "learn")}
    options["learning"] = c.learning.to_dict()
    sampler = {"t_end": config.sampler.t_end or None, "denoise": build.last_step(config)}
    log = workdir / "tuning.jsonl"
    features = metrics.features(c.features)
    with Bar(console, "tuning") as bar:
        tuning = tune(
            model,
            **options,
            **sampler,
            target=target,
            features=features,
            seed=config.seed,
            log=log,
            report=report,
            progress=bar.advance,
        )
    tuning.write(workdir / "samplers.json")
    plots.save_tuning(workdir, [row.to_json() for row in tuning.rows])
    if Path(config.model.checkpoint or workdir).absolute() != workdir.absolute():
        console.print(f"sampler.name=auto uses it with --config.sampler.tuned={workdir / 'samplers.json'}")
    return {"best": tuning.described}


def _target(model: build.Model, config: Any) -> np.ndarray | None:
    """Return images to compare samples with: of the exact law, or of the data if the configuration names them."""
    if model.data is not None:
        return exact_images(model, config, config.tune.num_targets, config.seed)
    if not config.data.path:
        return None
    data = build.build_data(model.config, "train")
    return build.to_images(data, np.arange(min(config.tune.num_targets, len(data))))


def run_evaluate(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Compare samplers by many samples; leave evaluation.csv, .json, .md and .png, and a picture of each cell.

    Raises:
      ValueError: for options that make no sense, and a folder of images of another size.
    """
    c, model = config.evaluate, sampled_model(config)
    tuned = build.tuned_rows(model, c.tuned)
    jobs: list[tuple[str, int, evaluate.Images]] = list(
        evaluate.jobs(model, c.samplers, c.nfe, tuned, build.sampler_options(config))
    )
    if c.folder:
        data = open_dataset("folder", c.folder)
        if data.image_shape != tuple(model.image_shape):
            h, w, channels = model.image_shape
            raise ValueError(f"{data.describe()}, but the model has {h} x {w} pixels of {channels} channels")
        jobs.insert(0, ("folder", 0, evaluate.FolderImages(data)))
    if not jobs:
        raise ValueError(
            f"config.evaluate.samplers={c.samplers} with config.evaluate.nfe={c.nfe} leaves nothing to compare: every "
            "budget is below one step"
        )
    features, network = _features(config, console)
    features.check(model.image_shape)
    reference = _Reference(model, config, features, console)
    metrics.check_count(c.num_samples, len(reference.law.mean))
    seeds = ", ".join(map(str, c.seeds))
    console.print(f"samplers and budgets: {len(jobs)}; samples of each: {c.num_samples:,}; seeds: {seeds}")
    about = identity(model, config) | {
        "features": features.name,
        "t_end": config.sampler.t_end or model.sde.t_end,
        "denoise": build.last_step(config),
    }
    about |= {"reference": c.reference or f"{c.num_reference or 'all'} training images", "num_kept": c.num_kept}
    about |= {"reference_images": reference.fingerprint}
    pictures = workdir / "pictures"

    def tell(cell: evaluate.Cell) -> None:
        console.print(cell.describe())

    def picture(cell: evaluate.Cell, images: np.ndarray) -> None:
        pictures.mkdir(exist_ok=True)
        file = pictures / f"{cell.sampler}_{cell.budget}.png"
        plots.save_samples(file, (images,), f"{cell.sampler}, {cell.nfe:.0f} NFE")

    def others(values: np.ndarray) -> dict[str, float]:
        found = {}
        if reference.kept is not None:
            found["kid"] = metrics.kid(reference.kept, values, min(1000, len(values), len(reference.kept)))[0]
            found["precision"], found["recall"] = metrics.precision_recall(reference.kept, values)
        if network is not None:
            logits = np.asarray(network.logits(jnp.asarray(values), bias=False))
            found["inception_score"] = metrics.inception_score(logits)[0]
        return found

    cells = evaluate.evaluate(
        jobs,
        reference.law,
        features=features,
        seeds=c.seeds,
        num_samples=c.num_samples,
        batch_size=config.sampling.batch_size,
        num_kept=c.num_kept,
        others=others,
        journal=Journal(workdir / "evaluation.jsonl", about, "an evaluation"),
        report=tell,
        picture=picture,
    )
    rows, real = evaluate.summary(cells), reference.real
    if cells and all(row["distance"] is None for row in rows):
        raise NotFinite(f"no cell has finite samples; the first: {cells[0].describe()}. Look at the weights and t_end")
    title = f"{features.name} features, {c.num_samples:,} samples a seed"
    report = {"rows": rows, "real": real, "features": features.name}
    if not distributed.is_first():
        return report
    evaluate.write(workdir, rows, real, title, c.published)
    labels = {"distance": f"Frechet distance, {features.name} features"}
    floors = {} if real is None else {"distance": real[0]}
    curves = [{**row, "grid": ""} for row in rows if row["distance"] is not None]
    plots.save_curves(workdir / "evaluation.png", curves, labels, floors, "real images")
    console.print((workdir / "evaluation.md").read_text(encoding="utf-8"))
    return report


def _features(config: Any, console: Console) -> tuple[metrics.Features, metrics.InceptionV3 | None]:
    """Return the features of ``config.evaluate``, and the network behind them if it is Inception."""
    c = config.evaluate
    if c.features != "inception":
        return metrics.features(c.features), None
    if not c.inception:
        raise ValueError("config.evaluate.features='inception' needs config.evaluate.inception, where its weights are")
    distributed.first_does(lambda: _fetch(c.inception, console))
    network = metrics.read_inception(c.inception)
    return metrics.inception_features(network, c.resize, levels=config.sampling.levels), network


def _fetch(path: str, console: Console) -> None:
    if not Path(path).exists():
        console.print(f"fetching the weights of Inception to {path}")
        inception.download(path)


def _moments(parts: Iterable[np.ndarray], features: metrics.Features, num_kept: int = 0) -> metrics.Moments:
    """Compute the moments of the features of images, which come in parts."""
    moments = metrics.Moments(num_kept)
    for part in parts:
        moments.add(features(np.clip(part, -1, 1)))
    return moments


class _Reference:
    """The features, statistics and images that samples are compared to.

    Attributes:
      law: mean and covariance of the features of the training images, of the exact law, or in a file.
      fingerprint: tells the first of the images, or the mean in a file, from others.
      kept: the first ``num_kept`` features of it; ``None`` for a file, or if none are wanted.
      real: mean and spread of the distance that as many other real images have; ``None`` if there are no images.
    """

    def __init__(self, model: build.Model, config: Any, features: metrics.Features, console: Console):
        c = config.evaluate
        self.kept, self.real = None, None
        if model.data is not None:
            images = [exact_images(model, config, c.num_reference or 50_000, 10**6)]
            self.fingerprint = fingerprint([images[0][:100]])
            others, count = [exact_images(model, config, c.num_samples, seed) for seed in c.seeds], 1
        elif config.data.path or (config.data.name == "digits" and model.image_shape == (8, 8, 1)):  # embedded
            train, test = (build.build_data(model.config, split) for split in ("train", "test"))
            console.print(f"compared with {train.describe()}")
            numbers = np.arange(c.num_reference or len(train))
            self.fingerprint = fingerprint([build.to_images(train, numbers[:100])])
            count = -(-len(numbers) // 1000)
            images = (build.to_images(train, part) for part in np.array_split(numbers, count))
            seeds = c.seeds if len(test) >= c.num_samples else ()
            if not seeds:
                console.print(f"{test.describe()}: too few to tell the distance of {c.num_samples} real images")
            choices = [np.random.default_rng(seed).permutation(len(test))[: c.num_samples] for seed in seeds]
            others = (build.to_images(test, chosen) for chosen in choices)
        elif c.reference:
            images, others, count = [], [], 0
        else:
            raise ValueError(
                "--mode evaluate needs images to compare with: set config.data.name and config.data.path to the "
                "data set, or config.evaluate.reference to a file of statistics"
            )
        if c.reference:
            dims = int(np.prod(features(np.zeros((2, *model.image_shape), np.float32)).shape[1:]))
            self.law = metrics.read_statistics(c.reference, dims)
            self.fingerprint = fingerprint([self.law.mean])
        else:
            moments = _moments(track(images, "features of the reference", console, count), features, c.num_kept)
            self.law, self.kept = moments.gaussian(), moments.kept() if c.num_kept else None
        distances = [_moments([part], features).gaussian().distance(self.law) for part in others]
        if distances:
            self.real = (float(np.mean(distances)), float(np.std(distances)))
