"""Group ``pipeline``: images per second of the input pipeline, on an array and on folders of PNG files."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import measure
from psld_jax.data import Batches, open_dataset


def pipeline(options: measure.Options) -> Iterator[dict[str, Any]]:
    """Images per second of ``Batches``, flips included: what training must not wait for."""
    count, batch, steps = (32, 8, 4) if options.small else (1024, 64, 32)
    with tempfile.TemporaryDirectory() as directory:
        programs = {}
        for case, batches in _cases(Path(directory), count, batch):
            programs[case] = lambda batches=batches: _take(batches, steps)
        for (source, size, fit), times in measure.by_turns(programs, options.rounds).items():
            case = {"source": source, "pixels": size, "fit": fit, "batch": batch}
            yield {"case": case, "images_per_second": measure.spread(batch * steps / times)}


def _cases(directory: Path, count: int, batch: int) -> Iterator[tuple[tuple[str, str, str], Batches]]:
    """Source, pixels of its images, fitting; and batches of 64 x 64."""
    images = _images(count, 64, 64)
    np.save(directory / "images.npy", images)
    array = open_dataset("arrays", directory / "images.npy")
    yield ("array", "64x64", "exact"), Batches(array, batch, seed=0, flip=True)
    for height, width, fit in ((64, 64, "exact"), (218, 178, "crop")):  # the latter are the sizes of CelebA
        folder = directory / f"{height}x{width}"
        folder.mkdir()
        for i, image in enumerate(_images(count, height, width)):
            Image.fromarray(image).save(folder / f"{i:05}.png")
        dataset = open_dataset("folder", folder, image_size=64, fit=fit)
        yield ("PNG files", f"{height}x{width}", fit), Batches(dataset, batch, seed=0, flip=True)


def _images(count: int, height: int, width: int) -> np.ndarray:
    """Smooth colours with a little noise, which PNG compresses about as well as photographs."""
    rng = np.random.default_rng(0)
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    slopes, noise = rng.uniform(-90, 90, (2, count, 1, 1, 3)), rng.normal(0, 3, (height, width, 3))
    return np.clip(128 + slopes[0] * x + slopes[1] * y + noise, 0, 255).astype(np.uint8)


def _take(batches: Batches, steps: int) -> None:
    """The first so many batches, from threads that begin with them: nothing is prepared before the clock starts."""
    with contextlib.closing(batches.iterate()) as iterator:
        for _ in range(steps):
            next(iterator)
