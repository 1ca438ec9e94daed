"""Reading checkpoints of score_sde_pytorch (Song et al., 2021): a model, and its averages in a list."""

from __future__ import annotations

from pathlib import Path

from psld_jax.checkpoints.reader import is_checkpoint, read_checkpoint

from . import ncsnpp
from .origins import Asked, Converted

NAME = "score_sde"
ACCEPTS = "a checkpoint of score_sde_pytorch: optimizer, model with its table sigmas, ema, step"


def recognises(path: Path) -> bool:
    """Tell whether it is a file of ``torch.save`` with a model that has noise levels, and averages in a list.

    Raises:
      ValueError: for a file of that kind that cannot be read.
    """
    if not is_checkpoint(path):
        return False
    with read_checkpoint(path) as source:
        return source.layout == "score_sde" and any(name.endswith("sigmas") for name in source.left_out)


def read(path: Path, asked: Asked) -> Converted:
    """Read the network, which is told ``999 t``, and its VP diffusion; see ``convert.ncsnpp.read``.

    Raises:
      ValueError: as that function does, for a file that cannot be read, or a VE network.
    """
    with read_checkpoint(path) as source:
        return ncsnpp.read(NAME, source, asked, sde="vpsde", time_scale=999.0)
