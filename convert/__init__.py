"""Converting PyTorch checkpoints without PyTorch and without executing anything from the file."""

from psld_jax.checkpoints.directory import read_converted, read_index
from psld_jax.checkpoints.reader import Checkpoint, Tensor, read_checkpoint

from .conversion import convert
from .structure import Structure, infer

__all__ = ["Checkpoint", "Structure", "Tensor", "convert", "infer", "read_checkpoint", "read_converted", "read_index"]
