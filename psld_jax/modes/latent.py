"""``--mode likelihood | interpolate``: run the probability-flow ODE from images to noise."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from psld_jax import build
from psld_jax._runtime.journal import in_one_go
from psld_jax._runtime.progress import Bar, track
from psld_jax.evaluation import plots
from psld_jax.latent import codes as latent
from psld_jax.latent.likelihood import Likelihood, dequantize, log_likelihood
from psld_jax.modes._common import sampled_model


def run_likelihood(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Compute ``log p`` of test images; leave likelihood.npz. Returns the report."""
    c, model, start = config.likelihood, sampled_model(config), time.perf_counter()
    if model.data is not None:
        images, quantized = model.data[: c.num_images], False
    else:
        data = build.build_data(model.config, "test")
        levels = data.gather(np.arange(min(c.num_images, len(data))))[0]
        quantized = levels.dtype == np.uint8
        images = dequantize(levels, config.seed) if quantized else levels
    options = {name: c[name] for name in ("draws", "divergence", "t_end", "rtol", "atol", "solver")}
    size = min(c.batch_size, len(images))
    starts = range(0, len(images), size)
    with Bar(console, "likelihood, draws of every batch", c.draws * len(starts)) as bar:
        parts = [
            # The last batch is filled up from the front: another size would be compiled anew.
            log_likelihood(
                model,
                images[np.arange(at, at + size) % len(images)],
                seed=config.seed,
                first=at,
                progress=bar.each,
                **options,
            )
            for at in starts
        ]
    fields = ("nats", "standard_error", "nfe")
    nats, error, nfe = (np.concatenate([getattr(part, name) for part in parts])[: len(images)] for name in fields)
    found = Likelihood(nats, error, nfe, parts[0].dims)
    with in_one_go(workdir / "likelihood.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, nats=nats, standard_error=error)
    report = {
        "num_images": len(nats),
        "nats_per_dim": float(nats.mean() / found.dims),
        "standard_error_of_images": float(nats.std() / np.sqrt(len(nats)) / found.dims),
        "nfe_per_draw": float(nfe.mean()),
        "seconds": time.perf_counter() - start,
    }
    text = f"{report['nats_per_dim']:.4f} nats per dimension"
    if quantized:
        report["bits_per_dim"] = float(found.bits_per_dim().mean())
        text += f", {report['bits_per_dim']:.3f} bits"
    spread = f"{report['standard_error_of_images']:.2g} from images"
    if c.draws > 1:  # one draw does not tell
        report["standard_error_of_draws"] = float(np.sqrt(np.mean(error**2) / len(nats)) / found.dims)
        spread = f"{report['standard_error_of_draws']:.2g} from the draws, {spread}"
    console.print(
        f"log p of {len(nats)} images: {text} (standard error {spread}); {report['nfe_per_draw']:.0f} NFE a draw"
    )
    return report


def run_interpolate(config: Any, workdir: Path, console: Console) -> dict[str, Any]:
    """Draw paths between pairs of test images; leave interpolation.png. Returns the report."""
    c, model = config.interpolate, sampled_model(config)
    images = build.test_images(model, 2 * c.num_paths)
    options = {"rtol": c.rtol, "atol": c.atol, "t_end": config.sampler.t_end or None}
    code = latent.encode(model, images, seed=config.seed, **options)
    back = np.asarray(latent.decode(model, code, **options))
    error = float(np.sqrt(np.mean((back - images) ** 2)))
    rows = []
    for path in track(range(c.num_paths), "interpolating", console):
        first, last = (jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], code) for i in (2 * path, 2 * path + 1))
        between = latent.interpolate(model.sde, first, last, list(np.linspace(0, 1, c.num_steps)))
        rows.append(np.asarray(latent.decode(model, between, **options)))
    plots.save_rows(workdir / "interpolation.png", rows)
    console.print(f"{c.num_paths} paths; encoded and decoded again, images differ by {error:.2g} (root mean square)")
    return {"reconstruction_rmse": error}
