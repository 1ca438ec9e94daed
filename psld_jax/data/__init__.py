"""Image data: sets of images on disk, and endless batches of them that depend only on the seed and the step."""

from psld_jax.data.dataset import Dataset, open_dataset
from psld_jax.data.pipeline import Batches
from psld_jax.data.source import Source, available, register

__all__ = ["Batches", "Dataset", "Source", "available", "open_dataset", "register"]
