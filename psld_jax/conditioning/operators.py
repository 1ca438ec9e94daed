"""Linear operators of images ``[n, H, W, C]``, for inverse problems: ``measurement = operator(images)``.

Each has a pseudo-inverse ``H^+`` and the projection ``H^+ H`` on what it sees, which ``posterior="conjugate"`` needs.
An operator of your own that has the methods ``pinv(measurement)`` and ``projection(images)`` serves there as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax._runtime.checks import check_number
from psld_jax._runtime.errors import check_choice, check_counts, is_count, shown
from psld_jax.conditioning._modes import Separable, convolution_matrix

Array = Any
Operator = Callable[[Array], Array]

OPERATORS = ("downsample", "blur", "grayscale", "mask")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Downsample:
    """Means over squares of ``factor`` x ``factor`` pixels; make it with :func:`downsample`."""

    factor: int = dataclasses.field(metadata={"static": True})

    def __call__(self, images: Array) -> Array:
        """Map images ``[n, H, W, C]`` to ``[n, H / factor, W / factor, C]``; ``ValueError`` if it does not divide."""
        (n, h, w, c), factor = images.shape, self.factor
        if h % factor or w % factor:
            raise ValueError(f"downsample factor={factor} does not divide images of {h} x {w} pixels")
        return images.reshape(n, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))

    def pinv(self, measurement: Array) -> Array:
        """Return ``H^+ y``: every mean in all pixels it was taken of, ``[n, h, w, C]`` to ``[n, h factor, ...]``."""
        return jnp.repeat(jnp.repeat(measurement, self.factor, axis=1), self.factor, axis=2)

    def projection(self, images: Array) -> Array:
        """Return ``H^+ H x``, images ``[n, H, W, C]`` of constant squares; ``ValueError`` if it does not divide."""
        return self.pinv(self(images))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash, and jax.jit asks for one
class Blur:
    """Convolution with ``kernel`` along the height and with ``across`` along the width; :func:`blur` makes it.

    Each is ``[2 reach + 1]``; without ``across`` both are the same. Kernels are data, so that blurs of the same reach
    run in one program. Kernels of your own, such as those of a motion, need not be symmetric: pixel ``i`` becomes
    ``sum_j kernel_j x_(i + j - reach)``.
    """

    kernel: Array
    across: Array | None = None
    cutoff: float = dataclasses.field(default=1e-3, metadata={"static": True})

    def __call__(self, images: Array) -> Array:
        """Map images ``[n, H, W, C]`` to images of the same shape; beyond the edge is zero.

        Raises:
          ValueError: for a kernel without a middle.
        """
        channels = images.shape[-1]
        for kernel, shape in zip(self._kernels(), ((-1, 1), (1, -1)), strict=True):
            taps = jnp.tile(jnp.reshape(kernel, (*shape, 1, 1)), (1, 1, 1, channels)).astype(images.dtype)
            images = jax.lax.conv_general_dilated(
                images, taps, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=channels
            )
        return images

    def modes(self, image_shape: tuple[int, ...]) -> Separable:
        """Return singular vectors and values for images ``[H, W, ...]``: the outer product of those of two matrices.

        Raises:
          ValueError: for a kernel without a middle.
        """
        down, right = map(convolution_matrix, self._kernels(), image_shape[:2])
        return Separable.of(down, right, self.cutoff)

    def _kernels(self) -> tuple[Array, Array]:
        """Return the kernels along the height and along the width; ``ValueError`` unless each has a middle."""
        kernels = self.kernel, self.kernel if self.across is None else self.across
        for kernel in kernels:
            if np.ndim(kernel) != 1 or len(kernel) % 2 == 0:
                raise ValueError(
                    f"blur kernel of shape {np.shape(kernel)} must be [2 reach + 1], an odd number of taps"
                )
        return kernels

    def pinv(self, measurement: Array) -> Array:
        """Return ``H^+ y`` for ``[n, H, W, C]``. Singular values up to ``cutoff`` times the largest count as 0."""
        return self.modes(measurement.shape[1:]).pinv(measurement)

    def projection(self, images: Array) -> Array:
        """Return ``H^+ H x`` for images ``[n, H, W, C]``, with the ``cutoff`` of :meth:`pinv`."""
        return self.modes(images.shape[1:]).projection(images)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash, and jax.jit asks for one
class Mask:
    """Pixels as they are where ``known`` is 1, and 0 elsewhere; make it with :func:`mask`. The mask is data."""

    known: Array

    def __call__(self, images: Array) -> Array:
        """Map images ``[n, H, W, C]`` to images of the same shape."""
        images = jnp.asarray(images)  # numpy's float64 would be asked of the mask where JAX has float32 alone
        return images * jnp.asarray(self.known, images.dtype)

    def pinv(self, measurement: Array) -> Array:
        """Return ``H^+ y``, ``[n, H, W, C]``: the same product."""
        return self(measurement)

    def projection(self, images: Array) -> Array:
        """Return ``H^+ H x``, ``[n, H, W, C]``: the same product."""
        return self(images)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Grayscale:
    """The mean of ``channels`` colours; make it with :func:`grayscale`."""

    channels: int = dataclasses.field(default=3, metadata={"static": True})

    def __call__(self, images: Array) -> Array:
        """Map images ``[n, H, W, channels]`` to ``[n, H, W, 1]``; ``ValueError`` for another number of channels."""
        if images.shape[-1] != self.channels:
            raise ValueError(f"grayscale channels={self.channels} does not fit images with {images.shape[-1]} channels")
        return images.mean(axis=-1, keepdims=True)

    def pinv(self, measurement: Array) -> Array:
        """Return ``H^+ y``: the mean in every channel, ``[n, H, W, 1]`` to ``[n, H, W, channels]``."""
        return jnp.repeat(measurement, self.channels, axis=-1)

    def projection(self, images: Array) -> Array:
        """Return ``H^+ H x``, images ``[n, H, W, channels]`` of equal channels; ``ValueError`` for other channels."""
        return self.pinv(self(images))


def downsample(factor: int) -> Downsample:
    """Make the operator of means over squares of ``factor`` x ``factor`` pixels, which super-resolution inverts.

    Raises:
      ValueError: for a factor below 1; when applied, for images that it does not divide.
    """
    check_counts(factor=factor)
    return Downsample(factor)


def blur(std: float | Sequence[float], cutoff: float = 1e-3) -> Blur:
    """Make the convolution with a Gaussian of ``std`` pixels, cut off at three of them; beyond the edge is zero.

    Args:
      std: one standard deviation, or those along the height and the width.
      cutoff: singular values below this part of the largest count as 0 in the pseudo-inverse, which would make
        rounding larger by more than its inverse.

    Raises:
      ValueError: for a ``std`` that is not > 0, or a ``cutoff`` outside of 0 to 1.
    """
    cutoff = check_number("blur cutoff", cutoff, 0, strict=True)
    if cutoff >= 1:
        raise ValueError(f"blur cutoff={cutoff} must lie between 0 and 1, e.g. 1e-3")
    try:
        both = np.atleast_1d(np.asarray(std, np.float64))
    except (TypeError, ValueError, OverflowError):
        both = np.array([np.nan])
    if both.shape not in ((1,), (2,)) or not np.all(np.isfinite(both) & (both > 0)):
        raise ValueError(f"blur std={shown(std)} must be a finite number of pixels > 0, or two: (height, width)")
    kernels = []
    for value in both:
        reach = int(np.ceil(3 * value))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / value) ** 2)
        kernels.append(kernel / kernel.sum())
    return Blur(*kernels, cutoff=cutoff)


def mask(known: Array) -> Mask:
    """Make the operator that keeps pixels where ``known`` is 1; inpainting finds the others.

    Args:
      known: 1 (measured) and 0, ``[H, W]``, or ``[1, H, W, C]`` with C also 1: one mask for all images.

    Raises:
      ValueError: for another shape or other values.
    """
    try:
        values = np.asarray(known)
    except ValueError:
        values = np.zeros(0)
    if not (values.ndim == 2 or (values.ndim == 4 and len(values) == 1)) or values.dtype.kind not in "biuf":
        raise ValueError(f"mask={shown(known)} must be an array [H, W] or [1, H, W, C] of 0 and 1")
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"the mask must hold 1 (known) and 0 only, got values from {values.min()} to {values.max()}")
    return Mask((values if values.ndim == 4 else values[None, ..., None]).astype(np.float32))


def grayscale(channels: int = 3) -> Grayscale:
    """Make the operator of the mean of the colours, which colouring inverts.

    Raises:
      ValueError: for fewer than 1 channel; when applied, for images with another number of them.
    """
    check_counts(channels=channels)
    return Grayscale(channels)


def by_name(name: str, *, factor: int = 4, std: float = 2.0, known: Array | None = None, channels: int = 3) -> Operator:
    """Make an operator by its name, for the command line; ``known [H, W]`` or ``[1, H, W, C]`` is for ``"mask"``.

    Raises:
      ValueError: for an unknown name, or ``"mask"`` without a mask.
    """
    check_choice("operator", name, OPERATORS)
    if name == "mask":
        if known is None:
            raise ValueError("operator 'mask' needs a mask: which pixels are measured, e.g. config.steer.mask='top'")
        return mask(known)
    makers = {"downsample": lambda: downsample(factor), "blur": lambda: blur(std)}
    return makers.get(name, lambda: grayscale(channels))()


def half_mask(name: str, image_shape: tuple[int, ...]) -> np.ndarray:
    """Make the mask ``[1, H, W, 1]`` of images of which that half, or the frame around ``"center"``, is known (1).

    Raises:
      ValueError: for another name than ``left``, ``right``, ``top``, ``bottom``, ``center``, or a shape that is none.
    """
    known = isinstance(image_shape, (tuple, list)) and len(image_shape) >= 2
    if not known or not all(is_count(size) for size in image_shape):
        raise ValueError(f"image_shape={shown(image_shape)} must be whole numbers (height, width, channels)")
    h, w = (int(size) for size in image_shape[:2])
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
