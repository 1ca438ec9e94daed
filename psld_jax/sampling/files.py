"""Writing many samples to files: every image is a function of (seed, number), and a killed run can go on."""

from __future__ import annotations

import io
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from psld_jax._runtime import distributed
from psld_jax._runtime.errors import check_choice, check_counts
from psld_jax._runtime.journal import check_same, make_directory, read_json, replace
from psld_jax._runtime.levels import LEVELS, to_levels
from psld_jax.sampling.sampler import Sampler, batch_shape

Array = Any

FORMS = ("png", "npz")

# What a PNG begins and ends with.
_PNG_HEAD, _PNG_TAIL = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"

#: Images in a .npz. Batches begin anew with each of these parts, so that a resumed run has the same ones.
PART = 1000


def write_samples(
    sampler: Sampler,
    directory: Path,
    n: int,
    *,
    seed: int = 0,
    batch_size: int = 256,
    form: str = "png",
    levels: str = "truncate",
    about: dict[str, Any] | None = None,
    progress: Callable[[Iterable[range]], Iterable[range]] = iter,
) -> int:
    """Write samples 0 to ``n - 1`` to ``directory``. Those that are there already are not drawn again.

    Where several processes run together, each writes its share; all must see the directory.

    A file is there as a whole or not at all; one that was emptied or cut off since is drawn again. ``000123.png`` is
    image 123; ``000002.npz`` holds images 2000 to 2999 as ``images``, uint8 ``[1000, H, W, C]`` (the last file fewer).
    Memory holds one batch, and for .npz one file.

    Args:
      sampler: from :func:`psld_jax.sampling.generate.prepare`.
      directory: made if it does not exist.
      n, seed, batch_size: of the samples.
      form: ``"png"`` or ``"npz"``.
      levels: ``"truncate"`` or ``"round"``, see :func:`psld_jax._runtime.levels.image_levels`.
      about: what the images depend on besides seed and sampler (which model); kept in ``about.json``.
      progress: wraps the batches that are to be drawn.

    Returns:
      How many images this process has drawn.

    Raises:
      ValueError: for options out of range, or a directory with images of something else.
    """
    check_counts(n=n, batch_size=batch_size)
    check_choice("form of images", form, FORMS)
    check_choice("way to levels", levels, LEVELS)
    if sampler.steering is not None:
        sampler.steering.check(n)
    about = {"seed": seed, "form": form, "levels": levels, "sampler": sampler.about(), **(about or {})}
    distributed.first_does(lambda: _begin(directory, about))
    there = {file.name for file in directory.iterdir() if _whole(file, n)}
    mine = distributed.share(n, PART if form == "npz" else min(batch_size, PART))
    missing = [batch for batch in _batches(mine, batch_size) if not _files(batch, form) <= there]
    gathered: list[np.ndarray] = []
    for batch in progress(missing):
        images = to_levels(sampler.draw(seed, batch, batch_shape(n, min(batch_size, PART))), levels)
        if form == "png":
            for number, image in zip(batch, images, strict=True):
                replace(directory / f"{number:06}.png", _png(image))
            continue
        gathered.append(images)
        if batch.stop % PART == 0 or batch.stop == n:
            content = io.BytesIO()
            np.savez(content, images=np.concatenate(gathered))
            replace(directory / f"{batch.start // PART:06}.npz", content.getvalue())
            gathered = []
    return sum(len(batch) for batch in missing)


def _batches(numbers: range, batch_size: int) -> list[range]:
    """Return the numbers of the images in batches, none of which reaches over the border of a part."""
    borders = [numbers.start, *(i for i in numbers[1:] if i % PART == 0), numbers.stop]
    parts = (range(start, stop) for start, stop in itertools.pairwise(borders))
    return [part[i : i + batch_size] for part in parts for i in range(0, len(part), batch_size)]


def _files(batch: range, form: str) -> set[str]:
    """Return the files that a batch leaves, or is part of."""
    return {f"{number:06}.png" for number in batch} if form == "png" else {f"{batch.start // PART:06}.npz"}


def _whole(file: Path, n: int) -> bool:
    """Tell whether a file is what a run for ``n`` images leaves: a full disk, or a crash, may have emptied it."""
    if not file.is_file():
        return False
    if file.suffix == ".npz":
        try:
            with zipfile.ZipFile(file) as archive, archive.open("images.npy") as images:
                np.lib.format.read_magic(images)
                count = np.lib.format.read_array_header_1_0(images)[0][0]
        except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile):
            return False
        # The last part of a run for fewer is not full.
        return not file.stem.isdigit() or count >= min(PART, n - PART * int(file.stem))
    with file.open("rb") as content:
        head = content.read(len(_PNG_HEAD))
        content.seek(-min(len(_PNG_TAIL), file.stat().st_size), os.SEEK_END)
        return (head, content.read()) == (_PNG_HEAD, _PNG_TAIL)


def _begin(directory: Path, about: dict[str, Any]) -> None:
    """Make the directory, or check that its images belong to the same run, and clear away unfinished files."""
    make_directory(directory, "the directory of images")
    for temporary in directory.glob(".*.part"):
        temporary.unlink()
    path = directory / "about.json"
    about = json.loads(json.dumps(about))
    if path.exists():
        check_same(f"{directory} holds images", read_json(path), about)
    else:
        replace(path, json.dumps(about, indent=1) + "\n")


def _png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(content, "png")
    return content.getvalue()
