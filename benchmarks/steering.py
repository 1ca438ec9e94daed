"""Guidance and inpainting with the MNIST network, judged by another classifier:

    python benchmarks/steering.py guidance|inpainting DATA OUTPUT [SAMPLES]

OUTPUT is a directory; what it holds already is not run again.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import psld_jax as pj
from psld_jax import build, metrics
from psld_jax._runtime.journal import Journal
from psld_jax.data import open_dataset
from psld_jax.evaluation import plots

NFE, SCALES, SAMPLERS = 50, (1.0, 2.0, 4.0, 8.0, 16.0), ("ancestral",)
JUDGE = metrics.judge("mnist")


def accuracy(images: np.ndarray, labels: np.ndarray) -> float:
    parts = [np.asarray(JUDGE(images[i : i + 100])).argmax(-1) for i in range(0, len(images), 100)]
    return float(np.mean(np.concatenate(parts) == labels))


def reference(path: str) -> metrics.Gaussian:
    data, features, moments = open_mnist(path, "train"), metrics.features("mnist"), metrics.Moments()
    for part in np.array_split(np.arange(10_000), 10):
        moments.add(features(build.to_images(data, part)))
    return moments.gaussian()


def open_mnist(path: str, split: str) -> Any:
    return open_dataset("mnist", path, split, image_size=32, fit="pad", labels=True)


def guidance(
    path: str, output: Path, n: int, samplers: tuple[str, ...] = SAMPLERS, scales: tuple[float, ...] = SCALES
) -> None:
    model, classifier, law = pj.load("mnist"), pj.load("mnist_clf"), reference(path)
    journal, features, labels = (
        Journal(output / "guidance.jsonl", {"n": n}, "a run"),
        metrics.features("mnist"),
        np.arange(n) % 10,
    )
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in samplers}
    for sampler in samplers:
        hyper = {"order": 2} if sampler == "ancestral" else {}
        for scale in scales:

            def run(sampler: str = sampler, scale: float = scale, hyper: dict[str, Any] = hyper) -> dict[str, Any]:
                conditions = {"label": labels, "classifier": classifier, "guidance": scale}
                x = pj.generate(model, sampler, nfe=NFE, n=n, batch_size=50, **conditions, **hyper)
                plots.save_samples(
                    output / f"guided_{sampler}_{scale:g}.png", (x[:100],), f"{sampler}, scale {scale:g}"
                )
                moments = metrics.Moments()
                moments.add(features(x))
                return {"accuracy": accuracy(x, labels), "distance": moments.gaussian().distance(law)}

            rows[sampler].append({"scale": scale, **journal.get([sampler, scale], run)})
            print(sampler, rows[sampler][-1], flush=True)
    save_guidance(output / "guidance.png", rows)


def save_guidance(path: Path, rows: dict[str, list[dict[str, float]]]) -> None:
    """Agreement of the judge and Frechet distance against the scale; rows of every sampler in order of the scale."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    titles = {"accuracy": "judged to be the class asked for (%)", "distance": "Frechet distance, MNIST features"}
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        for sampler, line in rows.items():
            values = [row[column] * (100 if column == "accuracy" else 1) for row in line]
            axis.plot([row["scale"] for row in line], values, "o-", label=sampler)
        scales = sorted({row["scale"] for line in rows.values() for row in line})
        axis.set_xscale("log", base=2)
        axis.set_xticks(scales, [f"{scale:g}" for scale in scales])
        axis.set_xlabel("scale of the guidance")
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_ylim(bottom=0)
        axis.grid(True, alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
        if len(rows) > 1:
            axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def inpainting(path: str, output: Path, n: int) -> None:
    model, data = pj.load("mnist"), open_mnist(path, "test")
    truth, labels = build.to_images(data, np.arange(n)), data.gather(np.arange(n))[1]
    journal = Journal(output / "inpainting.jsonl", {"n": n}, "a run")
    print("truth", accuracy(truth, labels))

    def run(mask_name: str, name: str, mask: np.ndarray, sampler: str, conditions: dict[str, Any]) -> dict[str, Any]:
        x = pj.generate(model, sampler, nfe=NFE, n=n, batch_size=50, **conditions)
        file = output / f"inpainted_{mask_name}_{name.replace(', ', '_').replace(' ', '_')}.png"
        plots.save_restored(file, {"seen": np.where(mask == 1, truth, 0), name: x, "truth": truth})
        known = float(np.abs(x - truth)[np.broadcast_to(mask == 1, x.shape)].max())
        return {"accuracy": accuracy(x, labels), "error of known pixels": known}

    for mask_name in ("top", "left"):
        mask = pj.operators.half_mask(mask_name, model.image_shape)
        kept = np.asarray(mask, np.float32)
        half: dict[str, Any] = {"known": truth, "mask": mask}
        measured = {"operator": lambda x, kept=kept: x * kept, "measurement": truth * kept}
        methods: dict[str, tuple[str, dict[str, Any]]] = {
            "replaced": ("auto", half),
            "replaced, one noise": ("auto", half | {"fresh": False}),
            "replaced, ancestral": ("ancestral", half | {"order": 2}),
            "resampled 5 times": ("ancestral", half | {"order": 2, "resample": 5, "jump": 5}),
            "pigdm": ("auto", measured),
            "pigdm, replaced": ("auto", half | measured),
        }
        for name, (sampler, conditions) in methods.items():
            job = (mask_name, name, mask, sampler, conditions)
            print(mask_name, name, journal.get([mask_name, name], functools.partial(run, *job)), flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5) or sys.argv[1] not in ("guidance", "inpainting"):
        sys.exit(__doc__)
    Path(sys.argv[3]).mkdir(parents=True, exist_ok=True)
    task = guidance if sys.argv[1] == "guidance" else inpainting
    task(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) == 5 else 1000)
