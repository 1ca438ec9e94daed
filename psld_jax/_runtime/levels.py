"""Grey or colour levels of images: from floats in [-1, 1] to 0, 1, ..., 255."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from psld_jax._runtime.errors import check_choice

Array = Any

LEVELS = ("truncate", "round")


def image_levels(images: Array, how: str = "truncate") -> Array:
    """Turn float images in [-1, 1] into levels 0 to 255, float32: ``127.5 x + 127.5``, clipped, truncated or rounded.

    The original PSLD truncates, EDM rounds. Images of uint8 are levels already. NaN stays NaN. Any shape, kept.

    Not for use inside jitted functions: a fused multiply-add rounds otherwise, and would truncate a quarter of the
    levels of real images, ``x = level / 127.5 - 1``, to the level below.

    Raises:
      ValueError: for another way, or images of other integers.
    """
    check_choice("way to levels", how, LEVELS)
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are of {images.dtype}; give levels as uint8, or floats in [-1, 1]")
    levels = jnp.clip(images.astype(jnp.float32) * jnp.float32(127.5) + jnp.float32(127.5), 0, 255)
    return jnp.rint(levels) if how == "round" else jnp.floor(levels)


def to_levels(images: Array, how: str = "truncate") -> np.ndarray:
    """Return :func:`image_levels` as uint8, for files; same shape.

    Frechet distances differ between the two ways: reports say which.

    Raises:
      ValueError: as :func:`image_levels`.
    """
    return np.asarray(image_levels(images, how)).astype(np.uint8)
