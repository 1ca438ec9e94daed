"""Image data: sets of images on disk, and endless batches from them that depend on the seed and the step alone."""

from psld_jax.data.dataset import DATASETS, Dataset, open_dataset
from psld_jax.data.pipeline import Batches

__all__ = ["DATASETS", "Batches", "Dataset", "open_dataset"]
