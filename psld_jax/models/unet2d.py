"""The ``UNet2DModel`` of diffusers (von Platen et al., 2022), channels last: the U-Net of DDPM and of NCSN++ there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psld_jax._runtime.device import wide
from psld_jax._runtime.xla import materialise
from psld_jax.models import families, fir, layers
from psld_jax.models.unet2d_structure import UNet2DConfig, Unit, plan

Array = Any

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
}
_FIR = (1, 3, 3, 1)


def positional(t: Array, features: int, shift: float, flip: bool) -> Array:
    """``[sin, cos](w t)``, or ``[cos, sin]`` if ``flip``, ``w_i = 10000^(-i / (features // 2 - shift))``.

    ``[n] -> [n, features]``; the last feature of an odd number is 0.
    """
    half = features // 2
    frequencies = np.exp(-math.log(10000) * np.arange(half) / (half - shift))
    angle = t[:, None] * jnp.asarray(frequencies, t.dtype)
    parts = [jnp.sin(angle), jnp.cos(angle)]
    return jnp.pad(jnp.concatenate(parts[::-1] if flip else parts, axis=1), ((0, 0), (0, features % 2)))


class ResBlock(nnx.Module):
    """Residual block: norm, act, (resample), conv, time, norm, act, dropout, conv; plus the shortcut, over ``scale``.

    The time is added before the second norm, or scales and shifts what comes out of it. ``x [n, H, W, in]`` and
    ``temb [n or 1, features]`` to ``[n, H', W', out]``.
    """

    def __init__(self, unit: Unit, config: UNet2DConfig, rngs: nnx.Rngs):
        n_in, n_out, eps = unit.n_in, unit.n_out, config.norm_eps
        self.act, self.scale, self.kind = _ACTIVATIONS[config.act_fn], unit.scale, unit.resample
        self.scale_shift = config.resnet_time_scale_shift == "scale_shift"
        self.norm_1 = layers.GroupNorm(n_in, unit.groups[0], eps)
        self.conv_1 = layers.Conv3x3(n_in, n_out, rngs=rngs)
        self.dense = layers.Dense(config.temb_dim, (2 if self.scale_shift else 1) * n_out, rngs=rngs)
        self.norm_2 = layers.GroupNorm(n_out, unit.groups[1], eps)
        self.dropout = nnx.Dropout(config.dropout)
        self.conv_2 = layers.Conv3x3(n_out, n_out, rngs=rngs)
        self.shortcut = layers.Dense(n_in, n_out, rngs=rngs) if unit.shortcut else None

    def __call__(self, x: Array, temb: Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None) -> Array:
        h = self.act(self.norm_1(x))
        if self.kind:
            taps = _FIR if self.kind.startswith("fir_") else (1, 1)
            change = fir.upsample_2d if self.kind.endswith("up") else fir.downsample_2d
            h, x = change(h, taps), change(x, taps)
        h = self.conv_1(h)
        told = self.dense(self.act(temb))[:, None, None].astype(h.dtype)
        if self.scale_shift:
            factor, offset = jnp.split(told, 2, axis=-1)
            h = self.norm_2(h) * (1 + factor) + offset
        else:
            h = self.norm_2(h + told)
        h = self.conv_2(self.dropout(self.act(h), deterministic=deterministic, rngs=rngs))
        return materialise(((x if self.shortcut is None else self.shortcut(x)) + h) / self.scale)


class AdaptiveNorm(nnx.Module):
    """Group norm whose scale and shift are told by the time, ``x [n, H, W, C]`` and ``temb [n or 1, features]``."""

    def __init__(self, channels: int, count: int, config: UNet2DConfig, rngs: nnx.Rngs):
        self.count, self.eps = count, config.norm_eps
        self.dense = layers.Dense(config.temb_dim, 2 * channels, rngs=rngs)

    def __call__(self, x: Array, temb: Array) -> Array:
        n, height, width, channels = x.shape
        told = self.dense(temb)[:, None, None].astype(x.dtype)
        factor, offset = jnp.split(told, 2, axis=-1)
        y = x.reshape(n, height * width, channels).astype(wide(x.dtype))
        one = jnp.ones(channels, y.dtype)
        y = layers.group_norm(y, one, 0 * one, self.count, self.eps).reshape(x.shape).astype(x.dtype)
        return y * (1 + factor) + offset


class KBlock(nnx.Module):
    """Residual block of the K blocks: adaptive norm, act, conv, both twice; plus the shortcut.

    ``x [n, H, W, in]`` and ``temb [n or 1, features]`` to ``[n, H, W, out]``.
    """

    def __init__(self, unit: Unit, config: UNet2DConfig, rngs: nnx.Rngs):
        self.act = _ACTIVATIONS[config.act_fn]
        self.norm_1 = AdaptiveNorm(unit.n_in, unit.groups[0], config, rngs)
        self.conv_1 = layers.Conv3x3(unit.n_in, unit.n_out, rngs=rngs)
        self.norm_2 = AdaptiveNorm(unit.n_out, unit.groups[1], config, rngs)
        self.dropout = nnx.Dropout(config.dropout)
        self.conv_2 = layers.Conv3x3(unit.n_out, unit.n_out, rngs=rngs)
        project = layers.Dense(unit.n_in, unit.n_out, use_bias=False, rngs=rngs) if unit.shortcut else None
        self.shortcut = project

    def __call__(self, x: Array, temb: Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None) -> Array:
        h = self.conv_1(self.act(self.norm_1(x, temb)))
        h = self.act(self.norm_2(h, temb))
        h = self.conv_2(self.dropout(h, deterministic=deterministic, rngs=rngs))
        return materialise((x if self.shortcut is None else self.shortcut(x)) + h)


class Attention(nnx.Module):
    """Self-attention of all pixels, plus the input, over ``scale``; ``[n, H, W, C]`` to the same.

    ``C // head_dim`` heads of ``head_dim`` channels, or one head: what is left of C has no place in any head.
    """

    def __init__(self, unit: Unit, config: UNet2DConfig, rngs: nnx.Rngs):
        channels = unit.n_in
        self.scale, self.width = unit.scale, config.attention_head_dim or channels
        inner = channels // self.width * self.width
        self.norm = layers.GroupNorm(channels, unit.groups[0], config.norm_eps) if unit.groups[0] else None
        self.query, self.key, self.value = (layers.Dense(channels, inner, rngs=rngs) for _ in range(3))
        self.out = layers.Dense(inner, channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        h = (x if self.norm is None else self.norm(x)).reshape(n, height * width, channels)
        q, k, v = (dense(h).reshape(n, height * width, -1, self.width) for dense in (self.query, self.key, self.value))
        h = layers.attend(q, k, v).reshape(n, height, width, -1)
        return materialise((x + self.out(h)) / self.scale)


class Downsample(layers.Conv3x3):
    """3x3 convolution with stride 2, ``[n, H, W, C]`` to half of height and width."""

    def __init__(self, unit: Unit, config: UNet2DConfig, rngs: nnx.Rngs):
        super().__init__(unit.n_in, unit.n_out, rngs=rngs)
        self.padding = ((1, 1), (1, 1)) if config.downsample_padding else ((0, 1), (0, 1))

    def __call__(self, x: Array) -> Array:
        return materialise(
            fir.convolve(x, self.kernel[...], stride=2, padding=self.padding) + self.bias.astype(x.dtype)
        )


class Upsample(layers.Conv3x3):
    """Nearest neighbours, then a 3x3 convolution, ``[n, H, W, C]`` to twice the height and width."""

    def __init__(self, unit: Unit, config: UNet2DConfig, rngs: nnx.Rngs):
        super().__init__(unit.n_in, unit.n_out, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return super().__call__(fir.upsample_2d(x, (1, 1)))


def k_downsample(x: Array) -> Array:
    """Filter, and take every second pixel; mirrored at the border: ``[n, H, W, C]`` to ``[n, H/2, W/2, C]``."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    return fir.upfirdn2d(x, [tap / 8 for tap in _FIR], down=2)


def k_upsample(x: Array) -> Array:
    """Double the pixels by a filter; mirrored at the border: ``[n, H, W, C]`` to ``[n, 2H, 2W, C]``."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    return fir.upfirdn2d(x, [tap / 4 for tap in _FIR], up=2, pad=(0, -1))


def _build(unit: Unit, config: UNet2DConfig, rngs: nnx.Rngs) -> nnx.Module:
    match unit.kind:
        case "conv":
            return layers.Conv3x3(unit.n_in, unit.n_out, rngs=rngs)
        case "conv1" | "linear":
            return layers.Dense(unit.n_in, unit.n_out, rngs=rngs)
        case "fourier":
            return layers.Fourier(unit.n_in, 16.0, rngs)
        case "embedding":
            return nnx.Embed(unit.n_in, unit.n_out, rngs=rngs)
        case "norm":
            return layers.GroupNorm(unit.n_in, unit.groups[0], config.norm_eps)
        case "block":
            return ResBlock(unit, config, rngs)
        case "k_block":
            return KBlock(unit, config, rngs)
        case "attention":
            return Attention(unit, config, rngs)
    return {"down": Downsample, "up": Upsample}[unit.kind](unit, config, rngs)


@families.register("unet2d")
class UNet2D(nnx.Module):
    """``UNet2DModel``: every option and kind of block that runs there, by the same names.

    The network is :func:`psld_jax.models.unet2d_structure.plan` built in order; ``layers`` holds its modules by name.

    Args:
      config: the options.
      rngs: stream ``params`` initialises.
    """

    options = UNet2DConfig

    def __init__(self, config: UNet2DConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.layers: Any = nnx.Dict({unit.name: _build(unit, config, rngs) for unit in plan(config)})

    def __call__(
        self, x: Array, t: Array, labels: Array | None = None, *, deterministic: bool = True, rngs: Any = None
    ) -> Array:
        """Return what the network was trained to predict, float32 (the parameters' dtype) ``[n, H, W, out_channels]``.

        Args:
          x: images ``[n, H, W, in_channels]``.
          t: the time by the network's clock, a scalar or ``[n]``.
          labels: ``[n]`` integers or numbers, or vectors ``[n, temb_dim]``, as ``config.labels`` says.
          deterministic: no dropout.
          rngs: stream ``dropout``, unless deterministic.

        Raises:
          ValueError: for a wrong shape, dropout without ``rngs``, labels for a network that takes none, or none for one
            that does: it has no class for "any".
        """
        c, n = self.config, len(x)
        if x.ndim != 4 or x.shape[1:] != c.image_shape:
            raise ValueError(f"images have shape {x.shape}, expected [n, {', '.join(map(str, c.image_shape))}]")
        if jnp.shape(t) not in ((), (1,), (n,)):
            raise ValueError(f"t has shape {jnp.shape(t)}, expected a scalar or [{n}]")
        if not deterministic and rngs is None and c.dropout > 0:
            raise ValueError("deterministic=False draws dropout masks: pass rngs=nnx.Rngs(dropout=seed)")
        param_dtype = self.layers["conv_in"].kernel.dtype
        x = x.astype(jnp.bfloat16 if c.dtype == "bfloat16" else param_dtype)
        t = jnp.reshape(jnp.asarray(t, param_dtype), (-1,))
        x = 2 * x - 1 if c.center_input_sample else x
        temb, dropout = self._embed(t, labels, n), {"deterministic": deterministic, "rngs": rngs}
        h = self._middle(*self._down(x, temb, dropout), temb, dropout)
        out, image = self._up(*h, temb, dropout)
        out = self.layers["conv_out"](jax.nn.silu(self.layers["norm_out"](out.astype(param_dtype))))
        out = out if image is None else out + image
        return out / t[:, None, None, None] if c.time_embedding_type == "fourier" else out

    def _features(self, t: Array) -> Array:
        c = self.config
        if c.time_embedding_type == "fourier":
            return self.layers["time_proj"](jnp.log(t))
        if c.time_embedding_type == "positional":
            return positional(t, c.block_out_channels[0], c.freq_shift, c.flip_sin_to_cos)
        table = self.layers["time_proj"].embedding[...]
        low = jnp.clip(jnp.floor(t), 0, len(table) - 1)
        rest = (t - low)[:, None]
        low = low.astype(jnp.int32)
        return (1 - rest) * table[low] + rest * table[jnp.minimum(low + 1, len(table) - 1)]

    def _embed(self, t: Array, labels: Array | None, n: int) -> Array:
        """Return the embedding of the time and the labels, ``[n or 1, temb_dim]``."""
        c, kind = self.config, self.config.labels
        temb = self.layers["time_2"](jax.nn.silu(self.layers["time_1"](self._features(t))))
        if labels is not None and not kind:
            raise ValueError("the network takes no labels")
        if labels is None and kind:
            raise ValueError("the network takes labels and has none for 'any': give each sample its own")
        if labels is None:
            return temb
        if jnp.shape(labels) != ((n, c.temb_dim) if kind == "identity" else (n,)):
            raise ValueError(f"labels have shape {jnp.shape(labels)}; this network takes {kind!r} labels, one a sample")
        if kind == "index":
            return temb + self.layers["class"](labels)
        if kind == "identity":
            return temb + jnp.asarray(labels, temb.dtype)
        features = self._features(jnp.asarray(labels, t.dtype))
        return temb + self.layers["class_2"](jax.nn.silu(self.layers["class_1"](features)))

    def _down(self, x: Array, temb: Array, dropout: dict[str, Any]) -> tuple[Array, list[Array]]:
        """Run the way down; return the lowest resolution, and the activations that the way up will take."""
        c, pyramid = self.config, x
        h = self.layers["conv_in"](x)
        skips = [h]
        for level, kind in enumerate(c.down_block_types):
            name = f"down_{level}"
            for i in range(c.layers_per_block):
                h = self.layers[f"{name}_{i}"](h, temb, **dropout)
                h = self.layers[f"{name}_attn_{i}"](h) if f"{name}_attn_{i}" in self.layers else h
                skips.append(h)
            if level == len(c.down_block_types) - 1:
                break
            if kind == "KDownBlock2D":
                h = k_downsample(h)
                continue
            h = self._resample(name, h, temb, dropout)
            if f"{name}_skip" in self.layers:
                pyramid = fir.downsample_2d(pyramid, _FIR)
                h = h + self.layers[f"{name}_skip"](pyramid)
            skips.append(h)
        return h, skips

    def _middle(self, h: Array, skips: list[Array], temb: Array, dropout: dict[str, Any]) -> tuple[Array, list[Array]]:
        if "mid_0" in self.layers:
            h = self.layers["mid_0"](h, temb, **dropout)
            h = self.layers["mid_attn"](h) if "mid_attn" in self.layers else h
            h = self.layers["mid_1"](h, temb, **dropout)
        return h, skips

    def _up(self, h: Array, skips: list[Array], temb: Array, dropout: dict[str, Any]) -> tuple[Array, Array | None]:
        """Run the way up; return the full resolution and the sum of Skip blocks' images, in the parameters' dtype."""
        c, image = self.config, None
        for level, kind in enumerate(c.up_block_types):
            name, last, k = f"up_{level}", level == len(c.up_block_types) - 1, kind == "KUpBlock2D"
            for i in range(c.layers_per_block + (0 if k else 1)):
                skip = skips.pop()
                if not k or i == 0:  # the K block takes one, and leaves the others
                    h = jnp.concatenate([h, skip], axis=-1)
                h = self.layers[f"{name}_{i}"](h, temb, **dropout)
                h = self.layers[f"{name}_attn_{i}"](h) if f"{name}_attn_{i}" in self.layers else h
            h = self.layers[f"{name}_attn"](h) if f"{name}_attn" in self.layers else h
            image = None if image is None else fir.upsample_2d(image, _FIR)
            if last:
                break
            if f"{name}_skip" in self.layers:
                wide = h.astype(self.layers["conv_in"].kernel.dtype)
                new = self.layers[f"{name}_skip"](jax.nn.silu(self.layers[f"{name}_skip_norm"](wide)))
                image = new if image is None else image + new
            h = k_upsample(h) if k else self._resample(name, h, temb, dropout)
        return h, image

    def _resample(self, name: str, h: Array, temb: Array, dropout: dict[str, Any]) -> Array:
        layer = self.layers[f"{name}_out"]
        return layer(h, temb, **dropout) if isinstance(layer, ResBlock) else layer(h)
