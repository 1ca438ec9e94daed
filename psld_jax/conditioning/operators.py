"""Linear operators of images ``[n, H, W, C]``, for inverse problems: ``measurement = operator(images)``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax._runtime.errors import check_choice, check_counts

Array = Any
Operator = Callable[[Array], Array]

OPERATORS = ("downsample", "blur")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Downsample:
    """Means over squares of ``factor`` x ``factor`` pixels; make it with :func:`downsample`."""

    factor: int = dataclasses.field(metadata={"static": True})

    def __call__(self, images: Array) -> Array:
        """Images ``[n, H, W, C]`` to ``[n, H / factor, W / factor, C]``; ``ValueError`` if it does not divide them."""
        (n, h, w, c), factor = images.shape, self.factor
        if h % factor or w % factor:
            raise ValueError(f"downsample factor={factor} does not divide images of {h} x {w} pixels")
        return images.reshape(n, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blur:
    """Convolution with the outer product of ``kernel`` with itself; make it with :func:`blur`.

    The kernel is data, so that blurs of the same reach run in one program.
    """

    kernel: Array

    def __call__(self, images: Array) -> Array:
        """Images ``[n, H, W, C]`` to images of the same shape; beyond the edge is zero."""
        channels = images.shape[-1]
        for shape in ((-1, 1), (1, -1)):
            taps = jnp.tile(jnp.reshape(self.kernel, (*shape, 1, 1)), (1, 1, 1, channels)).astype(images.dtype)
            images = jax.lax.conv_general_dilated(
                images, taps, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=channels
            )
        return images


def downsample(factor: int) -> Downsample:
    """Means over squares of ``factor`` x ``factor`` pixels: super-resolution is to undo it.

    Raises:
      ValueError: for a factor below 1; when applied, for images that it does not divide.
    """
    check_counts(factor=factor)
    return Downsample(factor)


def blur(std: float) -> Blur:
    """Convolution with a Gaussian of ``std`` pixels, cut off at three of them; beyond the edge is zero.

    Raises:
      ValueError: for a ``std`` that is not > 0.
    """
    if not (np.isfinite(std) and std > 0):
        raise ValueError(f"blur std={std} must be a finite number of pixels > 0")
    reach = int(np.ceil(3 * std))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / std) ** 2)
    return Blur(kernel / kernel.sum())


def by_name(name: str, *, factor: int = 4, std: float = 2.0) -> Operator:
    """An operator by its name, for the command line; ``ValueError`` for an unknown one."""
    check_choice("operator", name, OPERATORS)
    return downsample(factor) if name == "downsample" else blur(std)


def half_mask(name: str, image_shape: tuple[int, ...]) -> np.ndarray:
    """The mask ``[1, H, W, 1]`` of images of which that half, or the frame around the ``"center"``, is known (1).

    Raises:
      ValueError: for another name than ``left``, ``right``, ``top``, ``bottom``, ``center``.
    """
    h, w = image_shape[:2]
    mask = np.zeros((1, h, w, 1), int)
    halves = {
        "left": np.s_[:, :, : w // 2],
        "right": np.s_[:, :, w // 2 :],
        "top": np.s_[:, : h // 2],
        "bottom": np.s_[:, h // 2 :],
        "center": np.s_[:, h // 4 : h - h // 4, w // 4 : w - w // 4],
    }
    check_choice("mask", name, halves)
    mask[halves[name]] = 1
    return 1 - mask if name == "center" else mask
