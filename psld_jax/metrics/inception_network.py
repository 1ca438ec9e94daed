"""The Inception-v3 that FID, KID and Inception Score are defined with, as a network; ``inception`` reads its weights.

The network of TensorFlow's ``inception-2015-12-05`` (Szegedy et al., 2016), as Heusel et al. (2017) used it. Its
weights were ported to PyTorch once, and pytorch-fid and torch-fidelity both take that file. It differs from
torchvision's Inception-v3: 1008 classes; average pools that do not count their padding; a maximum for the average pool
of the last block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psld_jax._runtime.errors import check_choice

Array = Any

RESIZES = ("tf1", "torch")

SIDE = 299
POOL3, CLASSES = 2048, 1008


class _Conv(NamedTuple):
    """A convolution without bias, batch norm and ReLU."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


def _mean_pool(x: Array) -> Array:
    """Take means of 3 x 3 pixels, at the border of fewer."""
    # Not count_include_pad=False: with jax_enable_x64 that gives float64.
    share = nnx.avg_pool(jnp.ones_like(x[:1, :, :, :1]), (3, 3), (1, 1), "SAME")
    return nnx.avg_pool(x, (3, 3), (1, 1), "SAME") / share


def _max_pool(x: Array) -> Array:
    return nnx.max_pool(x, (3, 3), (1, 1), "SAME")


def _halve(x: Array) -> Array:
    return nnx.max_pool(x, (3, 3), (2, 2), "VALID")


# A block joins the channels of its branches; a branch is a chain of convolutions and pools, and may end in a fork: two
# convolutions of the same input whose channels are joined.
_Step = _Conv | tuple[_Conv, _Conv] | Callable[[Array], Array]
_Branch = tuple[_Step, ...]


def _block_35(pool: int) -> tuple[_Branch, ...]:
    """Build a block for maps of 35 x 35."""
    return (
        (_Conv("branch1x1", 64),),
        (_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, (5, 5))),
        (
            _Conv("branch3x3dbl_1", 64),
            _Conv("branch3x3dbl_2", 96, (3, 3)),
            _Conv("branch3x3dbl_3", 96, (3, 3)),
        ),
        (_mean_pool, _Conv("branch_pool", pool)),
    )


def _block_17(width: int) -> tuple[_Branch, ...]:
    """Build a block for maps of 17 x 17."""
    return (
        (_Conv("branch1x1", 192),),
        (
            _Conv("branch7x7_1", width),
            _Conv("branch7x7_2", width, (1, 7)),
            _Conv("branch7x7_3", 192, (7, 1)),
        ),
        (
            _Conv("branch7x7dbl_1", width),
            _Conv("branch7x7dbl_2", width, (7, 1)),
            _Conv("branch7x7dbl_3", width, (1, 7)),
            _Conv("branch7x7dbl_4", width, (7, 1)),
            _Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        (_mean_pool, _Conv("branch_pool", 192)),
    )


def _block_8(pool: Callable[[Array], Array]) -> tuple[_Branch, ...]:
    """Build a block for maps of 8 x 8."""
    return (
        (_Conv("branch1x1", 320),),
        (
            _Conv("branch3x3_1", 384),
            (_Conv("branch3x3_2a", 384, (1, 3)), _Conv("branch3x3_2b", 384, (3, 1))),
        ),
        (
            _Conv("branch3x3dbl_1", 448),
            _Conv("branch3x3dbl_2", 384, (3, 3)),
            (_Conv("branch3x3dbl_3a", 384, (1, 3)), _Conv("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, _Conv("branch_pool", 192)),
    )


_STEM: tuple[_Branch, ...] = (
    (
        _Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
        _Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
        _Conv("Conv2d_2b_3x3", 64, (3, 3)),
        _halve,
        _Conv("Conv2d_3b_1x1", 80),
        _Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
        _halve,
    ),
)
_TO_17: tuple[_Branch, ...] = (
    (_Conv("branch3x3", 384, (3, 3), 2, "VALID"),),
    (
        _Conv("branch3x3dbl_1", 64),
        _Conv("branch3x3dbl_2", 96, (3, 3)),
        _Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
    ),
    (_halve,),
)
_TO_8: tuple[_Branch, ...] = (
    (_Conv("branch3x3_1", 192), _Conv("branch3x3_2", 320, (3, 3), 2, "VALID")),
    (
        _Conv("branch7x7x3_1", 192),
        _Conv("branch7x7x3_2", 192, (1, 7)),
        _Conv("branch7x7x3_3", 192, (7, 1)),
        _Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
    ),
    (_halve,),
)
_BLOCKS: tuple[tuple[str, tuple[_Branch, ...]], ...] = (
    ("", _STEM),
    ("Mixed_5b.", _block_35(32)),
    ("Mixed_5c.", _block_35(64)),
    ("Mixed_5d.", _block_35(64)),
    ("Mixed_6a.", _TO_17),
    ("Mixed_6b.", _block_17(128)),
    ("Mixed_6c.", _block_17(160)),
    ("Mixed_6d.", _block_17(160)),
    ("Mixed_6e.", _block_17(192)),
    ("Mixed_7a.", _TO_8),
    ("Mixed_7b.", _block_8(_mean_pool)),
    ("Mixed_7c.", _block_8(_max_pool)),
)


class InceptionV3(nnx.Module):
    """The network, with its batch norms folded into the convolutions; :func:`read_inception` makes it from a file.

    Convolutions go by the names of the PyTorch state dict, e.g. ``Mixed_5b.branch1x1``. They are computed in float32
    and no less: where an accelerator's default is TF32 or bfloat16, distances would depend on it.

    Args:
      rngs: stream ``params`` initialises.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.convs: Any = nnx.Dict({})
        width = 3
        for block, branches in _BLOCKS:
            width = sum(self._build(block, branch, width, rngs) for branch in branches)
        self.fc: Any = nnx.Linear(width, CLASSES, rngs=rngs)

    def _build(self, block: str, branch: _Branch, width: int, rngs: nnx.Rngs) -> int:
        """Make the convolutions of a branch of an input with ``width`` channels; returns its output's channels."""
        for step in branch:
            convs = (step,) if isinstance(step, _Conv) else step if isinstance(step, tuple) else ()
            for conv in convs:
                self.convs[block + conv.name] = nnx.Conv(
                    width,
                    conv.width,
                    conv.kernel,
                    conv.stride,
                    padding=conv.padding,
                    precision=jax.lax.Precision.HIGHEST,
                    rngs=rngs,
                )
            width = sum(conv.width for conv in convs) or width
        return width

    def _run(self, block: str, branch: _Branch, x: Array) -> Array:
        for step in branch:
            if isinstance(step, _Conv):
                x = nnx.relu(self.convs[block + step.name](x))
            elif isinstance(step, tuple):
                x = jnp.concatenate([self._run(block, (conv,), x) for conv in step], axis=-1)
            else:
                x = step(x)
        return x

    def __call__(self, images: Array) -> Array:
        """Return ``pool3``, means ``[n, 2048]`` of the last maps, of what :func:`resize` gave, ``[n, 299, 299, 3]``."""
        x = images
        for block, branches in _BLOCKS:
            x = jnp.concatenate([self._run(block, branch, x) for branch in branches], axis=-1)
        return x.mean(axis=(1, 2))

    def logits(self, pool3: Array, bias: bool = True) -> Array:
        """Return logits ``[n, 1008]`` of features ``[n, 2048]``. Torch-fidelity's Inception Score omits the bias."""
        logits = jnp.matmul(pool3, self.fc.kernel[...], precision=jax.lax.Precision.HIGHEST)
        return logits + self.fc.bias[...] if bias else logits


@functools.cache
def _interpolation(size: int, how: str) -> np.ndarray:
    """Return the weights ``[299, size]`` of bilinear interpolation along one axis.

    Output pixel ``i`` lies at ``s = i size / 299`` (``"tf1"``), or at ``s = (i + 1/2) size / 299 - 1/2``, but not
    before 0 (``"torch"``). It is ``(1 - f) x[l] + f x[min(l + 1, size - 1)]`` with ``l = floor(s)``, ``f = s - l``.
    """
    check_choice("resize", how, RESIZES)
    half = 0.5 if how == "torch" else 0.0
    at = np.maximum((np.arange(SIDE) + half) * (size / SIDE) - half, 0)
    low = np.floor(at).astype(int)
    weights = np.zeros((SIDE, size))
    rows, share = np.arange(SIDE), at - low
    np.add.at(weights, (rows, low), 1 - share)
    np.add.at(weights, (rows, np.minimum(low + 1, size - 1)), share)
    return weights.astype(np.float32)


def resize(levels: Array, how: str = "tf1") -> Array:
    """Resize levels ``[n, H, W, C]`` from 0 to 255 to the input of the network, float32 ``[n, 299, 299, 3]``.

    Bilinear without antialiasing; grey images are repeated. Two protocols, whose distances are not comparable:

    - ``"tf1"``: TensorFlow 1's (as in the original FID and torch-fidelity), without half-pixel centres. The result is
      ``(x - 128) / 128``.
    - ``"torch"``: pytorch-fid's, with half-pixel centres. The result is ``2 x / 255 - 1``.

    Raises:
      ValueError: for another protocol, or another shape.
    """
    shape = levels.shape
    if len(shape) != 4 or shape[-1] not in (1, 3) or not all(shape[1:3]):
        raise ValueError(f"Inception takes images [n, H, W, C] with 1 or 3 channels, last; got shape {tuple(shape)}")
    rows, columns = (jnp.asarray(_interpolation(size, how)) for size in shape[1:3])
    x = jnp.asarray(levels, jnp.float32)
    x = jnp.einsum("ih,nhwc,jw->nijc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)
    x = (x - 128) / 128 if how == "tf1" else 2 * (x / 255) - 1
    return jnp.broadcast_to(x, (*x.shape[:3], 3))
