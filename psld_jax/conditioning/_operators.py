"""Checks of operators and measurements: what is tried on images of noise before anything is sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax._runtime.errors import check_callable, shown
from psld_jax.conditioning._modes import transpose_of

Array = Any

#: What to do with an operator that is not linear.
LINEAR = "posterior='dps' takes any with a derivative"
#: A measurement so many times as large as what an operator gives for images is of other images.
_FAR = 100.0


def check_operator(
    operator: Callable[[Array], Array],
    measurement: np.ndarray,
    image_shape: tuple[int, ...],
    noise_std: float,
    *,
    linear: str = "",
    derivative: bool = True,
) -> None:
    """Check an operator on noise ``[2, H, W, C]``: shapes, and that it is linear, or at least has a derivative.

    Args:
      operator: a function of images.
      measurement: what it gave, ``[n, ...]``.
      image_shape: ``(H, W, C)``.
      noise_std: of the measurement.
      linear: empty if it need not be linear, else what to do with one that is not.
      derivative: whether the gradient of a linear one is taken.

    Raises:
      ValueError: for one that is not, that fails or mixes images, or whose measurement has another shape, or is far
        from what it gives for images.
    """
    noise = _noise(image_shape)
    out = measured_shape(operator, noise.shape)
    if not isinstance(out, jax.ShapeDtypeStruct) or (2, *out.shape[1:]) != (*out.shape[:1], *measurement.shape[1:]):
        shape = getattr(out, "shape", shown(out))
        raise ValueError(f"operator gives {shape} for two images, the measurement has shape {measurement.shape}")
    if not jnp.issubdtype(out.dtype, jnp.floating):
        hint = ", such as real and imaginary parts" if jnp.issubdtype(out.dtype, jnp.complexfloating) else ""
        raise ValueError(
            f"operator gives numbers of dtype {out.dtype}, which have no derivative: it must be floating{hint}"
        )
    if linear:
        alone = _alone(operator, noise)
        parts, whole = alone[:1] + 2 * alone[1:], np.asarray(operator(noise[:1] + 2 * noise[1:]))
        if not np.allclose(parts, whole, rtol=1e-3, atol=1e-3 * np.abs(whole).max()):
            raise ValueError(f"operator must be linear: A(a + 2 b) is not A(a) + 2 A(b); {linear}")
        _check_each(operator, noise, alone)
        check_reach(operator, measurement, image_shape, noise_std)
        if derivative:
            transpose_of(operator, jnp.asarray(noise[:1]))
        return
    # Inside of the range of images: a function such as a logarithm need not know other numbers.
    images = 0.5 * np.tanh(noise)
    x = jnp.asarray(images[:1])
    seen, pull_back = transpose_of(operator, x)
    gradient = pull_back(jnp.ones_like(seen))
    if not (np.isfinite(seen).all() and np.isfinite(gradient).all()):
        raise ValueError("operator, or its derivative, is not finite for an image in [-1, 1]")
    if not np.any(np.asarray(gradient)) and not np.any(np.asarray(pull_back(seen))):
        raise ValueError("operator has the derivative 0 (as rounding has): no measurement can be felt through it")
    _check_each(operator, images, _alone(operator, images))
    check_reach(operator, measurement, image_shape, noise_std)


def check_reach(
    operator: Callable[[Array], Array], measurement: np.ndarray, image_shape: tuple[int, ...], noise_std: float
) -> None:
    """Check that a measurement ``[n, ...]`` is not far from all that an operator gives for images in [-1, 1].

    Raises:
      ValueError: for one of levels 0 to 255, for example.
    """
    sizes = [1.0]
    for image in (np.ones((1, *image_shape), np.float32), *_noise(image_shape)[:, None]):
        sizes.append(float(np.abs(np.asarray(operator(jnp.asarray(image)), np.float64)).max()))
    size = max(value for value in sizes if np.isfinite(value))
    low, high = (float(value) for value in (measurement.min(), measurement.max()))
    if max(-low, high) > _FAR * (size + noise_std):
        raise ValueError(
            f"measurement lies in {low:.4g} to {high:.4g}, far from what operator gives for images in [-1, 1], which "
            f"is of size {size:.3g}: measure such images (psld_jax.normalise), or give the noise_std that it has"
        )


def _noise(image_shape: tuple[int, ...]) -> np.ndarray:
    """Return two images of noise, float32 ``[2, H, W, C]``, always the same."""
    return np.random.default_rng(0).standard_normal((2, *image_shape)).astype(np.float32)


def measured_shape(operator: Callable[[Array], Array], shape: tuple[int, ...]) -> Any:
    """Return shape and dtype of what an operator gives for float32 images of ``shape [n, H, W, C]``; nothing is run.

    Raises:
      ValueError: for what is no function, or cannot be traced for such images.
    """
    check_callable("operator", operator, "a function of images, such as one of psld_jax.operators")
    try:
        return jax.eval_shape(operator, jax.ShapeDtypeStruct(shape, np.float32))
    except Exception as error:  # whatever a user's function raises
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"operator fails for images {shape} of jax.numpy: {reason}") from None


def _alone(operator: Callable[[Array], Array], images: np.ndarray) -> np.ndarray:
    """Return what an operator gives for each of the images ``[n, H, W, C]`` by itself, ``[n, ...]``."""
    return np.concatenate([np.asarray(operator(jnp.asarray(images[i : i + 1]))) for i in range(len(images))])


def _check_each(operator: Callable[[Array], Array], images: np.ndarray, alone: np.ndarray) -> None:
    """Raise a ``ValueError`` unless images ``[n, H, W, C]`` are measured together as each by itself, ``alone``."""
    together = np.asarray(operator(jnp.asarray(images)))
    if not np.allclose(together, alone, rtol=1e-3, atol=1e-3 * np.abs(alone).max()):
        raise ValueError("operator mixes images: what it gives for two of them is not what it gives for each by itself")
