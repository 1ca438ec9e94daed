"""The layers of NCSN++ (Song et al., 2021), channels last.

Parameters are stored in float32. A layer computes in the dtype of its input and returns that dtype; only the
statistics of group norm and the softmax are never below float32. Initial weights are uniform, with variance
``scale / mean(fan_in, fan_out)``; biases are 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from psld_jax._runtime.device import wide
from psld_jax._runtime.xla import materialise
from psld_jax.models import fir
from psld_jax.models.structure import Entry, NCSNppConfig, groups

Array = Any

#: Name of the sums of two branches, for a gradient that keeps these and computes the rest again.
SUM = "sum of branches"
#: Initial scale of the original's "network in network" layers.
_NIN_SCALE = 0.1

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "swish": nnx.swish,
    "elu": nnx.elu,
    "relu": nnx.relu,
    "lrelu": lambda x: nnx.leaky_relu(x, 0.2),
}


class Frozen(nnx.Variable):
    """An array of the model that is not trained: filters for ``nnx.Param`` leave it out."""


def _initial(rngs: nnx.Rngs, shape: tuple[int, ...], scale: float) -> nnx.Param:
    init = jax.nn.initializers.variance_scaling(max(scale, 1e-10), "fan_avg", "uniform")
    return nnx.Param(init(rngs.params(), shape, jnp.float32))


def _zeros(size: int) -> nnx.Param:
    return nnx.Param(jnp.zeros(size, jnp.float32))


def merge(x: Array, y: Array, rescale: bool) -> Array:
    """Add two branches of equal shapes, and divide by ``sqrt(2)`` if ``rescale``, which keeps the variance."""
    return checkpoint_name(materialise((x + y) / math.sqrt(2) if rescale else x + y), SUM)


class Dense(nnx.Module):
    """``x W + b`` on the last axis, ``[..., in] -> [..., out]``: linear layers and 1x1 convolutions."""

    def __init__(self, n_in: int, n_out: int, *, scale: float = 1.0, use_bias: bool = True, rngs: nnx.Rngs):
        self.kernel = _initial(rngs, (n_in, n_out), scale)
        self.bias = _zeros(n_out) if use_bias else None

    def __call__(self, x: Array) -> Array:
        y = x @ self.kernel.astype(x.dtype)
        return y if self.bias is None else y + self.bias.astype(x.dtype)


class Conv3x3(nnx.Module):
    """3x3 convolution with zero padding, ``[n, H, W, in] -> [n, H, W, out]``."""

    def __init__(self, n_in: int, n_out: int, *, scale: float = 1.0, rngs: nnx.Rngs):
        self.kernel = _initial(rngs, (3, 3, n_in, n_out), scale)
        self.bias = _zeros(n_out)

    def __call__(self, x: Array) -> Array:
        return materialise(fir.convolve(x, self.kernel[...]) + self.bias.astype(x.dtype))


class Resample(nnx.Module):
    """x2 ``"up"`` or ``"down"`` with the filter ``taps``, without parameters, ``[n, H, W, C]``."""

    def __init__(self, direction: str, taps: tuple[float, ...]):
        self.direction, self.taps = direction, taps

    def __call__(self, x: Array) -> Array:
        return (fir.upsample_2d if self.direction == "up" else fir.downsample_2d)(x, self.taps)


class ResampleConv(Conv3x3):
    """x2 ``"up"`` or ``"down"`` together with a 3x3 convolution, FIR-filtered if ``config.fir``.

    Without FIR, the way down pads on the right and at the bottom only, as the original does.

    ``[n, H, W, C]`` to ``[n, 2H, 2W, D]`` or ``[n, H/2, W/2, D]``.
    """

    def __init__(self, entry: Entry, config: NCSNppConfig, rngs: nnx.Rngs):
        super().__init__(entry.in_ch, entry.out_ch, rngs=rngs)
        self.direction, self.fir, self.taps = entry.resample, config.fir, config.taps

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...]
        if self.direction == "up":
            y = fir.upsample_conv_2d(x, kernel, self.taps)
        elif self.fir:
            y = fir.conv_downsample_2d(x, kernel, self.taps)
        else:
            y = fir.convolve(x, kernel, stride=2, padding=((0, 1), (0, 1)))
        return materialise(y + self.bias.astype(x.dtype))


class GroupNorm(nnx.Module):
    """Group normalisation, ``[n, H, W, C]`` to the same.

    Args:
      channels: C.
      count: groups of channels, by default ``min(C // 4, 32)``.
      eps: added to the variance.

    Raises:
      ValueError: for channels that cannot be divided into so many groups.
    """

    def __init__(self, channels: int, count: int | None = None, eps: float = 1e-6):
        self.count, self.eps = groups(channels) if count is None else count, eps
        if self.count < 1 or channels % self.count:
            raise ValueError(f"group norm cannot divide {channels} channels into {self.count} groups")
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = _zeros(channels)

    def __call__(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        y = x.reshape(n, height * width, channels).astype(wide(x.dtype))
        y = group_norm(y, self.scale[...], self.bias[...], self.count, self.eps)
        return y.reshape(x.shape).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def group_norm(x: Array, scale: Array, bias: Array, count: int, eps: float) -> Array:
    """``scale u + bias``, where ``u = (x - mean) / std`` over pixels and the channels of a group.

    Its derivative is stated: ``du = (dx - mean(dx) - u mean(u dx)) / std``, whose transpose is itself, so that a
    gradient takes two sums over the pixels. What JAX derives from the formulas takes five.

    Args:
      x: ``[n, H W, C]``.
      scale, bias: ``[C]``.
      count: groups of channels.
      eps: added to the variance.
    """
    mean, rate = _statistics(x, count, eps)
    return (x - mean) * (rate * scale) + bias


@group_norm.defjvp
def _group_norm_jvp(
    count: int, eps: float, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    (x, scale, bias), (dx, dscale, dbias) = primals, tangents
    mean, rate = _statistics(x, count, eps)
    gain, unit = rate * scale, (x - mean) * rate
    # Per sample and channel before they meet the pixels: then the sums of the transpose are for these two alone.
    slope = dscale - gain * _group_mean(unit * dx, count)
    shift = dbias - gain * _group_mean(dx, count)
    return (x - mean) * gain + bias, gain * dx + unit * slope + shift


def _statistics(x: Array, count: int, eps: float) -> tuple[Array, Array]:
    """Return mean and 1 / standard deviation of the groups, ``[n, 1, C]``."""
    mean = _group_mean(x, count)
    return mean, jax.lax.rsqrt(_group_mean((x - mean) ** 2, count) + eps)


def _group_mean(x: Array, count: int) -> Array:
    """Take the mean over pixels, then over the group's channels, ``[n, 1, C]``: two reductions that vectorise well."""
    means = x.mean(axis=1).reshape(len(x), count, -1).mean(axis=2)
    return jnp.repeat(means, x.shape[-1] // count, axis=1)[:, None]


class Fourier(nnx.Module):
    """``[sin, cos](2 pi w x)`` for random frozen frequencies ``w``, ``[n] -> [n, 2 nf]`` (Tancik et al., 2020)."""

    def __init__(self, nf: int, scale: float, rngs: nnx.Rngs):
        self.frequencies = Frozen(scale * jax.random.normal(rngs.params(), (nf,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        # Thousands of radians: the original's order of products, since another one moves the sine by 1e-4.
        angle = x[:, None] * self.frequencies[...] * 2 * math.pi
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def positional(t: Array, features: int) -> Array:
    """``[sin, cos](w t)``, ``w`` from 1 down to 1e-4 geometrically, ``[n] -> [n, features]`` (Vaswani et al., 2017).

    The last feature of an odd number is 0.
    """
    half = features // 2
    angle = t[:, None] * jnp.exp(jnp.arange(half, dtype=t.dtype) * (-math.log(10000) / (half - 1)))
    return jnp.pad(jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1), ((0, 0), (0, features % 2)))


class ResBlock(nnx.Module):
    """Residual block: norm, act, (resample), conv, + time, norm, act, dropout, conv; plus the shortcut.

    ``x [n, H, W, in]`` and ``temb [n or 1, 4 nf]`` (or ``None``) to ``[n, H', W', out]``. The ``biggan`` block
    (Brock et al., 2019) resamples both branches; the ``ddpm`` block (Ho et al., 2020) never does.
    """

    def __init__(self, entry: Entry, config: NCSNppConfig, rngs: nnx.Rngs):
        n_in, n_out, biggan = entry.in_ch, entry.out_ch, entry.kind == "resblock_biggan"
        self.act, self.rescale = ACTIVATIONS[config.nonlinearity], config.skip_rescale
        self.norm_0 = GroupNorm(n_in)
        self.resample = Resample(entry.resample, config.taps) if entry.resample else None
        self.conv_0 = Conv3x3(n_in, n_out, rngs=rngs)
        self.dense_0 = Dense(4 * config.nf, n_out, rngs=rngs)
        self.norm_1 = GroupNorm(n_out)
        self.dropout = nnx.Dropout(config.dropout)
        self.conv_1 = Conv3x3(n_out, n_out, scale=entry.init_scale, rngs=rngs)
        project = n_in != n_out or self.resample is not None
        self.shortcut = Dense(n_in, n_out, scale=1.0 if biggan else _NIN_SCALE, rngs=rngs) if project else None

    def __call__(
        self, x: Array, temb: Array | None, *, deterministic: bool = True, rngs: nnx.Rngs | None = None
    ) -> Array:
        h = self.act(self.norm_0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv_0(h)
        if temb is not None:
            h = h + self.dense_0(self.act(temb))[:, None, None].astype(h.dtype)
        h = self.act(self.norm_1(h))
        h = self.dropout(h, deterministic=deterministic, rngs=rngs)
        h = self.conv_1(h)
        if self.shortcut is not None:
            x = self.shortcut(x)
        return merge(x, h, self.rescale)


class Attention(nnx.Module):
    """Single-head self-attention of all pixels, scale ``C^-1/2``, plus the input, ``[n, H, W, C]`` to the same."""

    def __init__(self, entry: Entry, config: NCSNppConfig, rngs: nnx.Rngs):
        ch = entry.in_ch
        self.rescale = config.skip_rescale
        self.norm = GroupNorm(ch)
        self.query, self.key, self.value = (Dense(ch, ch, scale=_NIN_SCALE, rngs=rngs) for _ in range(3))
        self.out = Dense(ch, ch, scale=entry.init_scale, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        n, height, width, ch = x.shape
        h = self.norm(x).reshape(n, height * width, 1, ch)
        h = attend(self.query(h), self.key(h), self.value(h))
        return merge(x, self.out(h.reshape(x.shape)), self.rescale)


def attend(query: Array, key: Array, value: Array) -> Array:
    """``softmax(q k^T / sqrt(D)) v`` of each head, all ``[n, T, heads, D]``; the softmax never below float32.

    Unlike ``jax.nn.dot_product_attention`` it stays float64 where the arrays are.
    """
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key, preferred_element_type=wide(query.dtype))
    weights = jax.nn.softmax(scores / math.sqrt(query.shape[-1]), axis=-1).astype(value.dtype)
    return jnp.einsum("nhqk,nkhd->nqhd", weights, value)


class Combine(nnx.Module):
    """Joins the input pyramid, through a 1x1 convolution, with ``h``: their ``sum`` or concatenation.

    Both are ``[n, H, W, C]``, the pyramid of any channels.
    """

    def __init__(self, entry: Entry, config: NCSNppConfig, rngs: nnx.Rngs):
        self.method = config.progressive_combine
        self.conv = Dense(entry.in_ch, entry.out_ch, rngs=rngs)

    def __call__(self, pyramid: Array, h: Array) -> Array:
        y = self.conv(pyramid)
        return jnp.concatenate([y, h], axis=-1) if self.method == "cat" else y + h


def build(entry: Entry, config: NCSNppConfig, rngs: nnx.Rngs) -> nnx.Module:
    """Make the module that an entry of the plan stands for, freshly initialised.

    Raises:
      ValueError: for an entry of an unknown kind.
    """
    scale = entry.init_scale
    match entry.kind:
        case "fourier":
            return Fourier(entry.in_ch, config.fourier_scale, rngs)
        case "linear":
            return Dense(entry.in_ch, entry.out_ch, scale=scale, use_bias=entry.name != "classifier", rngs=rngs)
        case "embedding":
            # Zero: a network that is trained further begins where it was without labels.
            return nnx.Embed(entry.in_ch, entry.out_ch, embedding_init=nnx.initializers.zeros, rngs=rngs)
        case "conv3x3":
            return Conv3x3(entry.in_ch, entry.out_ch, scale=scale, rngs=rngs)
        case "groupnorm":
            return GroupNorm(entry.in_ch)
        case "attention":
            return Attention(entry, config, rngs)
        case "combine":
            return Combine(entry, config, rngs)
        case "resample":
            return Resample(entry.resample, config.taps)
        case "resample_conv":
            return ResampleConv(entry, config, rngs)
        case "resblock_ddpm" | "resblock_biggan":
            return ResBlock(entry, config, rngs)
    raise ValueError(f"entry {entry.name} has the unknown kind {entry.kind!r}")
