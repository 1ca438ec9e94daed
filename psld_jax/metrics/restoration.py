"""Measures of how close restored images are to the true ones: PSNR and SSIM for each image, float64 on the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from psld_jax._runtime.checks import check_array, check_number
from psld_jax._runtime.errors import is_count

Array = Any

#: Of SSIM (Wang et al., 2004): the standard deviation of the window in pixels, and what keeps quotients from 0 / 0.
_STD, _K1, _K2 = 1.5, 0.01, 0.03
#: From black to white in uint8.
_LEVELS = 255


def psnr(images: Array, truth: Array, *, data_range: float = 2.0) -> np.ndarray:
    """Peak signal-to-noise ratio in decibels, ``10 log10(data_range^2 / mean((x - truth)^2))``, float64 ``[n]``.

    Infinite for equal images.

    Args:
      images, truth: ``[n, H, W, C]``; one true image serves all.
      data_range: from black to white, 2 for images in [-1, 1], 255 for uint8.

    Raises:
      ValueError: for other shapes, values that are not finite, or a range that is not > 0, or too small for uint8.
    """
    a, b, span = _pair(images, truth, data_range)
    squared = np.mean((a - b) ** 2, axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(span**2 / squared)


def ssim(images: Array, truth: Array, *, data_range: float = 2.0, window: int = 11) -> np.ndarray:
    """Structural similarity (Wang et al., 2004), float64 ``[n]``: 1 for equal images, about 0 for unrelated ones.

    ``(2 a b + c1) (2 cov + c2) / ((a^2 + b^2 + c1) (var_a + var_b + c2))``, with means, variances and covariance
    under a Gaussian window of 1.5 pixels, averaged over all places where the window lies inside, and over channels;
    ``c1 = (0.01 data_range)^2``, ``c2 = (0.03 data_range)^2``.

    Args:
      images, truth: ``[n, H, W, C]``; one true image serves all.
      data_range: from black to white, 2 for images in [-1, 1], 255 for uint8.
      window: its size in pixels, odd, at most that of the images; 11 is the paper's.

    Raises:
      ValueError: for other shapes, values that are not finite, a range that is not > 0, or a window that does not fit.
    """
    a, b, span = _pair(images, truth, data_range)
    height, width = a.shape[1:3]
    if not is_count(window) or window % 2 == 0 or window > min(height, width):
        most = (min(height, width) - 1) // 2 * 2 + 1
        raise ValueError(f"window={window!r} must be an odd number of pixels, at most {most} for {height} x {width}")
    window = int(window)  # 11.0 is a whole number too
    at = np.arange(window) - window // 2
    taps = np.exp(-0.5 * (at / _STD) ** 2)
    taps /= taps.sum()

    def mean(values: np.ndarray) -> np.ndarray:
        for axis in (1, 2):
            values = np.lib.stride_tricks.sliding_window_view(values, window, axis=axis) @ taps
        return values

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    cov = mean(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return (above / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean(axis=(1, 2, 3))


def _pair(images: Array, truth: Array, data_range: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return both as float64 of one shape, and the range."""
    span = check_number("data_range", data_range, 0, strict=True)
    if span < _LEVELS and any(getattr(values, "dtype", None) == np.uint8 for values in (images, truth)):
        raise ValueError(
            f"levels 0 to 255 have data_range=255, not {span:g}; psld_jax.normalise makes images in [-1, 1] of them"
        )
    try:
        a, b = np.asarray(images, np.float64), np.asarray(truth, np.float64)
    except (TypeError, ValueError):
        raise ValueError("images and truth must be arrays of numbers, [n, H, W, C]") from None
    if a.ndim != 4 or not a.size or b.shape not in (a.shape, (1, *a.shape[1:])):
        raise ValueError(f"images have shape {a.shape} and truth {b.shape}: both must be the same [n, H, W, C]")
    check_array("images", a)
    check_array("truth", b)
    return a, np.broadcast_to(b, a.shape), span
