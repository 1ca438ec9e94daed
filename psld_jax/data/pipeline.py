"""Batches of a data set, in an order that only the seed and the step determine."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import grain
import numpy as np

from psld_jax._runtime.errors import is_count
from psld_jax.data.dataset import Dataset

Batch = dict[str, np.ndarray]

# Decoding runs outside of Python's lock, so a few threads help with folders of files; arrays would need none.
_READ_AHEAD = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)


class Batches:
    """An endless sequence of batches; ``batches[k]`` is a function of the seed and ``k``, so the step is all its state.

    Each is ``{"image": float32 [batch, H, W, C] in [-1, 1], "label": int32 [batch]}``. Every epoch has an order of its
    own, and its last images, fewer than a batch, are left out.

    Args:
      dataset: from :func:`psld_jax.data.open_dataset`.
      batch_size: images per batch, over all hosts.
      seed: of the order and the flips, from 0 to 2**32 - 1.
      flip: mirror each image left to right with probability 1/2, drawn anew every epoch.
      shuffle: ``False`` keeps the order of the data set.
      shard: ``(index, count)`` of this host. It gets a contiguous part of every batch; the parts make up the batch.

    Raises:
      ValueError: if the batch is larger than the data set or not divisible by the number of hosts, or the seed or the
        shard is out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        *,
        flip: bool = False,
        shuffle: bool = True,
        shard: tuple[int, int] = (0, 1),
    ):
        if not is_count(batch_size):
            raise ValueError(f"batch_size={batch_size!r} must be a whole number of at least 1")
        if batch_size > len(dataset):
            raise ValueError(
                f"batch_size={batch_size} is more than there are images ({dataset.describe()}): choose a smaller one"
            )
        if not is_count(seed, 0) or seed >= 2**32:
            raise ValueError(f"seed={seed!r} must be a whole number from 0 to 2**32 - 1")
        index, count = shard
        if not is_count(count) or not is_count(index, 0) or index >= count:
            raise ValueError(f"shard={shard!r} must be (index, count) with 0 <= index < count")
        if batch_size % count:
            raise ValueError(f"batch_size={batch_size} is not divisible by the {count} hosts of shard={shard!r}")
        self._dataset, self._flip = dataset, flip
        part = int(batch_size) // int(count)
        self._mine = slice(int(index) * part, (int(index) + 1) * part)
        self.steps_per_epoch = len(dataset) // int(batch_size)
        # Numbers of images are shuffled and batched, and a batch is loaded at once: much faster than image by image.
        numbers = grain.MapDataset.range(len(dataset)).seed(int(seed))
        if shuffle:
            numbers = numbers.shuffle()
        numbers = numbers.batch(int(batch_size), drop_remainder=True).repeat()
        self._batches: Any = numbers.random_map(self._load)

    def __getitem__(self, k: int) -> Batch:
        return self._batches[_step(k)]

    def iterate(self, start: int = 0) -> Generator[Batch, None, None]:
        """Iterate over batches ``start``, ``start + 1``, ..., prepared ahead in threads that end with the iterator."""
        return self._iterate(_step(start))

    def _iterate(self, start: int) -> Generator[Batch, None, None]:
        iterator = iter(self._batches.to_iter_dataset(_READ_AHEAD))
        try:
            iterator.set_state({"next_index": start})
            yield from iterator
        finally:
            iterator.close()

    def _load(self, numbers: np.ndarray, rng: np.random.Generator) -> Batch:
        images, labels = self._dataset.gather(numbers[self._mine])
        if self._flip:
            # Drawn for the batches of all hosts, so that the number of hosts does not matter.
            flips = rng.random(len(numbers))[self._mine] < 0.5
            images = np.where(flips[:, None, None, None], images[:, :, ::-1], images)
        if images.dtype == np.uint8:
            images = images / np.float32(127.5) - np.float32(1)
        return {"image": images, "label": labels}


def _step(k: Any) -> int:
    if not is_count(k, 0):
        raise ValueError(f"batch {k!r} is asked for; batches are numbered 0, 1, 2, ...")
    return int(k)
