"""Resampling by two with a separable FIR filter, in plain JAX.

``upfirdn2d`` is the general operation: put zeros between the samples, pad, filter, drop samples. It is computed by
phases, as sums of shifted slices: only the products with samples that are not zero, and no grouped convolution, which
XLA runs slowly on a CPU. Arrays are ``[n, H, W, C]``; the dtype of the input is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from psld_jax._runtime import winograd

Array = Any


def upfirdn2d(x: Array, taps: Sequence[float], up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Array:
    """Upsample by zeros, filter with ``outer(taps, taps)``, downsample.

    ``y[o] = sum_j taps[J-1-j] u[o down + j - pad[0]]`` along each axis, where ``u[i up] = x[i]`` and ``u`` is 0
    elsewhere: a convolution, so the taps are flipped (Karras et al., 2020, StyleGAN2).

    Args:
      x: ``[n, H, W, C]``.
      taps: the filter of one axis, used as given (not normalised).
      up, down: factors >= 1.
      pad: zeros before and after each axis of ``u``, whose length is ``H up``; negative numbers crop.

    Returns:
      ``[n, (H up + pad[0] + pad[1] - J) // down + 1, ...W alike..., C]``.
    """
    for axis in (1, 2):
        x = _upfirdn(x, taps, up, down, pad, axis)
    return x


def _upfirdn(x: Array, taps: Sequence[float], up: int, down: int, pad: tuple[int, int], axis: int) -> Array:
    length = x.shape[axis]
    out = (length * up + sum(pad) - len(taps)) // down + 1
    steps = -(-out // up)
    # Output o = up * m + r needs sample (o * down + j - pad[0]) / up = m * down + offset wherever that is an integer.
    phases = [
        [
            (tap, (r * down + j - pad[0]) // up)
            for j, tap in enumerate(reversed(taps))
            if (r * down + j - pad[0]) % up == 0
        ]
        for r in range(up)
    ]
    offsets = [offset for phase in phases for _, offset in phase]
    before = max(0, -min(offsets))
    after = max(0, (steps - 1) * down + max(offsets) + 1 - length)
    x = jnp.pad(x, [(before, after) if i == axis else (0, 0) for i in range(x.ndim)])

    def shifted(offset: int) -> Array:
        start = before + offset
        return lax.slice_in_dim(x, start, start + (steps - 1) * down + 1, down, axis)

    zero = jnp.zeros_like(shifted(offsets[0]))
    sums = [sum((tap * shifted(offset) for tap, offset in phase), start=zero) for phase in phases]
    if up == 1:
        return sums[0]
    y = jnp.stack(sums, axis + 1)  # phases beside the steps: interleaved once reshaped
    y = y.reshape(*x.shape[:axis], steps * up, *x.shape[axis + 1 :])
    return lax.slice_in_dim(y, 0, out, 1, axis)


def _normalised(taps: Sequence[float], total: float) -> tuple[float, ...]:
    return tuple(tap * total / sum(taps) for tap in taps)


def upsample_2d(x: Array, taps: Sequence[float]) -> Array:
    """``[n, H, W, C]`` to ``[n, 2H, 2W, C]``, filtered with unit gain. Taps ``(1, 1)`` give nearest neighbours."""
    p = len(taps) - 2
    return upfirdn2d(x, _normalised(taps, 2), up=2, pad=((p + 1) // 2 + 1, p // 2))


def downsample_2d(x: Array, taps: Sequence[float]) -> Array:
    """``[n, H, W, C]`` to ``[n, H//2, W//2, C]``, filtered with unit gain. Taps ``(1, 1)`` give means of 2x2."""
    p = len(taps) - 2
    return upfirdn2d(x, _normalised(taps, 1), down=2, pad=((p + 1) // 2, p // 2))


def conv_downsample_2d(x: Array, kernel: Array, taps: Sequence[float]) -> Array:
    """Filter, then convolve with stride 2: ``[n, H, W, C]`` to ``[n, H/2, W/2, D]``; ``kernel [k, k, C, D]``."""
    p = len(taps) - 2 + kernel.shape[0] - 1
    x = upfirdn2d(x, _normalised(taps, 1), pad=((p + 1) // 2, p // 2))
    return convolve(x, kernel, stride=2, padding="VALID")


def upsample_conv_2d(x: Array, kernel: Array, taps: Sequence[float]) -> Array:
    """Convolve between zeros, then filter: ``[n, H, W, C]`` to ``[n, 2H, 2W, D]``; ``kernel [k, k, C, D]``.

    The original's call raises; this is what it evidently means. It equals :func:`upsample_2d` and then a convolution,
    except at the border.
    """
    edge = kernel.shape[0] - 1
    p = len(taps) - 2 - edge
    x = convolve(x, kernel, up=2, padding=((edge, edge), (edge, edge)))
    return upfirdn2d(x, _normalised(taps, 2), pad=((p + 1) // 2 + 1, p // 2 + 1))


def convolve(x: Array, kernel: Array, *, stride: int = 1, up: int = 1, padding: Any = "SAME") -> Array:
    """Convolution of ``x [n, H, W, C]`` with ``kernel [k, k, C, D]``, in the dtype of ``x``.

    ``up - 1`` zeros go between the pixels before, and every ``stride``-th result is kept.
    """
    kernel = kernel.astype(x.dtype)
    if (stride, up, padding) == (1, 1, "SAME") and winograd.suits(x, kernel):
        return winograd.convolve(x, kernel)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        lhs_dilation=(up, up),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
