"""Reading PyTorch Lightning checkpoints of the authors of PSLD, and bare state dicts of NCSN++."""

from __future__ import annotations

from pathlib import Path

from psld_jax.checkpoints.reader import is_checkpoint, read_checkpoint

from . import naming, ncsnpp
from .origins import Asked, Converted

NAME = "lightning"
ACCEPTS = "a state dict of NCSN++ or its classifier, of PyTorch Lightning or torch.save"


def recognises(path: Path) -> bool:
    """Tell whether it is a file of ``torch.save`` with weights named ``all_modules.*``, in a state dict.

    Raises:
      ValueError: for a file of that kind that cannot be read.
    """
    if not is_checkpoint(path):
        return False
    with read_checkpoint(path) as source:
        ours = any(naming.split(name)[1].startswith("all_modules.") for name in source)
        return source.layout == "state_dict" and ours


def read(path: Path, asked: Asked) -> Converted:
    """Read network and diffusion of the configuration, checked with the file; see ``convert.ncsnpp.read``.

    Raises:
      ValueError: as that function does, or for a file that cannot be read.
    """
    with read_checkpoint(path) as source:
        return ncsnpp.read(NAME, source, asked)
