"""NCSN++ in PyTorch, channels first: the same layers as :mod:`psld_jax.models`, for what the published networks use."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import Tensor, nn

from psld_jax.models import Entry, NCSNppConfig, plan
from psld_jax.models.structure import groups

#: What is written here of each option; the published networks ask for nothing else.
_SUPPORTED = {
    "nonlinearity": ("swish",),
    "resblock_type": ("biggan",),
    "progressive": ("none",),
    "progressive_input": ("none", "residual"),
    "noise_cond": (True,),
    "dtype": ("float32",),
    "num_labels": (0,),
    "time_scale": (1.0,),
}


def check(config: NCSNppConfig) -> None:
    """``ValueError`` for an option that no published network uses, and this one does not know."""
    for name, allowed in _SUPPORTED.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"the network in PyTorch has {name} in {allowed}, not {getattr(config, name)!r}")
    if len(config.fir_kernel) % 2 or (config.progressive_input == "residual" and not config.fir):
        raise ValueError("the network in PyTorch takes an even number of taps, and an input pyramid with FIR only")


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups(channels), channels, eps=1e-6)


def merge(x: Tensor, y: Tensor, rescale: bool) -> Tensor:
    """Sum of two branches, divided by ``sqrt(2)`` if ``rescale``."""
    return (x + y) / math.sqrt(2) if rescale else x + y


class Resample(nn.Module):
    """x2 ``"up"`` or ``"down"`` without parameters: a depthwise FIR filter, or nearest neighbours and means."""

    def __init__(self, direction: str, config: NCSNppConfig):
        super().__init__()
        self.up, self.fir, self.edge = direction == "up", config.fir, len(config.fir_kernel) // 2 - 1
        taps = torch.tensor(config.fir_kernel, dtype=torch.float32)
        taps = taps / taps.sum() * (2 if self.up else 1)
        # conv2d correlates, so the taps are flipped for it; conv_transpose2d convolves.
        taps = taps if self.up else taps.flip(0)
        self.register_buffer("filter", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.fir:
            return F.interpolate(x, scale_factor=2, mode="nearest") if self.up else F.avg_pool2d(x, 2)
        channels = x.shape[1]
        weight, options = self.filter.expand(channels, 1, -1, -1), {"stride": 2, "padding": self.edge}
        return (F.conv_transpose2d if self.up else F.conv2d)(x, weight, **options, groups=channels)


class DownConv(nn.Module):
    """FIR filter, then a 3x3 convolution with stride 2: a step of the input pyramid."""

    def __init__(self, entry: Entry, config: NCSNppConfig):
        super().__init__()
        self.conv = nn.Conv2d(entry.in_ch, entry.out_ch, 3, stride=2)
        taps = torch.tensor(config.fir_kernel, dtype=torch.float32).flip(0)
        taps, self.edge = taps / taps.sum(), len(config.fir_kernel) // 2
        self.register_buffer("filter", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        filtered = F.conv2d(x, self.filter.expand(channels, 1, -1, -1), padding=self.edge, groups=channels)
        return self.conv(filtered)


class Fourier(nn.Module):
    """``[sin, cos](2 pi w x)`` with frequencies that are not trained."""

    def __init__(self, nf: int):
        super().__init__()
        self.register_buffer("frequencies", torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        angle = x[:, None] * self.frequencies * 2 * math.pi
        return torch.cat([angle.sin(), angle.cos()], dim=1)


def positional(t: Tensor, features: int) -> Tensor:
    """``[sin, cos](w t)``, ``w`` from 1 down to 1e-4."""
    half = features // 2
    angle = t[:, None] * torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / (half - 1)))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class ResBlock(nn.Module):
    """Residual block: norm, swish, (resample), conv, + time, norm, swish, dropout, conv; plus the shortcut."""

    def __init__(self, entry: Entry, config: NCSNppConfig):
        super().__init__()
        n_in, n_out = entry.in_ch, entry.out_ch
        self.rescale = config.skip_rescale
        self.norm_0, self.norm_1 = group_norm(n_in), group_norm(n_out)
        self.resample = Resample(entry.resample, config) if entry.resample else None
        self.conv_0 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.dense_0 = nn.Linear(4 * config.nf, n_out)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_1 = nn.Conv2d(n_out, n_out, 3, padding=1)
        project = n_in != n_out or self.resample is not None
        self.shortcut = nn.Conv2d(n_in, n_out, 1) if project else None

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = F.silu(self.norm_0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv_0(h) + self.dense_0(F.silu(temb))[:, :, None, None]
        h = self.conv_1(self.dropout(F.silu(self.norm_1(h))))
        return merge(x if self.shortcut is None else self.shortcut(x), h, self.rescale)


class Attention(nn.Module):
    """Single-head self-attention of all pixels, plus the input."""

    def __init__(self, entry: Entry, config: NCSNppConfig):
        super().__init__()
        channels = entry.in_ch
        self.rescale, self.norm = config.skip_rescale, group_norm(channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)[:, None]  # [n, 1 head, H W, C]
        h = self.out(F.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h)))
        return merge(x, h[:, 0].transpose(1, 2).reshape(x.shape), self.rescale)


def build(entry: Entry, config: NCSNppConfig) -> nn.Module:
    """The module that an entry of the plan stands for."""
    match entry.kind:
        case "fourier":
            return Fourier(entry.in_ch)
        case "linear":
            return nn.Linear(entry.in_ch, entry.out_ch)
        case "conv3x3":
            return nn.Conv2d(entry.in_ch, entry.out_ch, 3, padding=1)
        case "groupnorm":
            return group_norm(entry.in_ch)
        case "attention":
            return Attention(entry, config)
        case "resample_conv":
            return DownConv(entry, config)
        case "resblock_biggan":
            return ResBlock(entry, config)
    raise ValueError(f"the network in PyTorch has no {entry.kind!r}")


class NCSNpp(nn.Module):
    """``eps(z, t)`` for ``z [n, in_ch, H, W]`` and ``t [n]``."""

    def __init__(self, config: NCSNppConfig):
        super().__init__()
        check(config)
        self.config = config
        self.layers = nn.ModuleDict({entry.name: build(entry, config) for entry in plan(config)})

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        c, layers = self.config, self.layers
        fourier = c.embedding_type == "fourier"
        h = layers["fourier"](torch.log(t)) if fourier else positional(t, c.nf)
        temb = layers["temb_1"](F.silu(layers["temb_0"](h)))
        skips = self.down(z, temb)
        h = layers["mid_block_0"](skips[-1], temb)
        h = layers["mid_block_1"](layers["mid_attn"](h), temb)
        for level in reversed(range(c.levels)):
            for i in range(c.num_res_blocks + 1):
                h = layers[f"up_{level}_block_{i}"](torch.cat([h, skips.pop()], dim=1), temb)
            if f"up_{level}_attn" in layers:
                h = layers[f"up_{level}_attn"](h)
            if level > 0:
                h = layers[f"up_{level}_resample"](h, temb)
        return layers["out_conv"](F.silu(layers["out_norm"](h)))

    def down(self, z: Tensor, temb: Tensor) -> list[Tensor]:
        """The way down: the activations that the way up will take."""
        c, layers = self.config, self.layers
        pyramid, skips = z, [layers["stem"](z)]
        for level in range(c.levels):
            for i in range(c.num_res_blocks):
                h = layers[f"down_{level}_block_{i}"](skips[-1], temb)
                if f"down_{level}_attn_{i}" in layers:
                    h = layers[f"down_{level}_attn_{i}"](h)
                skips.append(h)
            if level < c.levels - 1:
                h = layers[f"down_{level}_resample"](skips[-1], temb)
                if c.progressive_input == "residual":
                    pyramid = h = merge(layers[f"down_{level}_pyramid"](pyramid), h, c.skip_rescale)
                skips.append(h)
        return skips


def from_flax(net: Any) -> NCSNpp:
    """The network with the weights of a Flax one (:class:`psld_jax.models.NCSNpp`)."""
    result = NCSNpp(net.config)
    targets = {**dict(result.named_parameters()), **dict(result.named_buffers())}
    kinds = {entry.name: entry.kind for entry in plan(net.config)}
    flat = nnx.to_flat_state(nnx.state(net))
    with torch.no_grad():
        for path, leaf in flat:
            _, layer, *rest = map(str, path)
            inner = ["conv", *rest] if kinds[layer] == "resample_conv" else rest
            leaf_name = {"kernel": "weight", "scale": "weight"}.get(rest[-1], rest[-1])
            target = targets[".".join(["layers", layer, *inner[:-1], leaf_name])]
            target.copy_(_torch_layout(np.asarray(leaf[...])).reshape(target.shape))
    return result


def _torch_layout(array: np.ndarray) -> Tensor:
    """Kernels ``[k, k, in, out]`` or ``[in, out]`` with the channels first, ``[out, in, ...]``; the rest as it is."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, tuple(range(array.ndim)))
    return torch.from_numpy(array.transpose(axes).copy())
