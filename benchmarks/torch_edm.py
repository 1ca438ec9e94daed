"""EDM's networks in PyTorch, channels first: the same layers as :mod:`psld_jax.models.edm`, as one runs them there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import Tensor, nn

from psld_jax.models.edm import source_arrays
from psld_jax.models.edm_plan import EDMConfig, Piece, plan


class EDM(nn.Module):
    """``D(x, sigma)`` of networks without labels, preconditioned as ``edm``; names are those of a state dict."""

    def __init__(self, config: EDMConfig, weights: dict[str, np.ndarray]):
        if config.precondition != "edm" or config.label_dim:
            raise ValueError("the network in PyTorch is preconditioned as 'edm' and takes no labels")
        super().__init__()
        self.config, self.song, (self.down, self.up) = config, config.architecture == "song", plan(config)
        self.eps, self.scale = (1e-6, math.sqrt(0.5)) if self.song else (1e-5, 1.0)
        for name, array in weights.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(torch.from_numpy(array.copy())))
        taps = torch.tensor(config.taps, dtype=torch.float32)
        self.register_buffer("filter", (torch.outer(taps, taps) / taps.sum() ** 2)[None, None])

    def _weights(self, name: str) -> tuple[Tensor, Tensor | None]:
        held = self._parameters
        return held[f"{name}/weight"], held.get(f"{name}/bias")  # type: ignore[return-value]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, *self._weights(name))

    def _conv(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights(name)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, min(32, x.shape[1] // 4), *self._weights(name), eps=self.eps)

    def _resample(self, x: Tensor, direction: str) -> Tensor:
        channels, pad = x.shape[1], (self.filter.shape[-1] - 1) // 2
        kernel = self.filter.expand(channels, 1, -1, -1)
        if direction == "up":
            return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=pad, groups=channels)
        return F.conv2d(x, kernel, stride=2, padding=pad, groups=channels) if direction else x

    def _block(self, x: Tensor, emb: Tensor, piece: Piece, name: str) -> Tensor:
        h = self._conv(self._resample(F.silu(self._norm(x, f"{name}/norm0")), piece.resample), f"{name}/conv0")
        told = self._linear(emb, f"{name}/affine")[:, :, None, None]
        if self.song:
            h = F.silu(self._norm(h + told, f"{name}/norm1"))
        else:
            scale, shift = told.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self._norm(h, f"{name}/norm1"), scale + 1))
        h, x = self._conv(h, f"{name}/conv1"), self._resample(x, piece.resample)
        x = self._conv(x, f"{name}/skip") if f"{name}/skip/weight" in self._parameters else x
        x = (x + h) * self.scale
        if piece.heads:
            qkv = self._conv(self._norm(x, f"{name}/norm2"), f"{name}/qkv")
            q, k, v = qkv.reshape(len(x), piece.heads, piece.n_out // piece.heads, 3, -1).transpose(2, 4).unbind(3)
            a = F.scaled_dot_product_attention(q, k, v)
            x = (x + self._conv(a.transpose(2, 3).reshape(x.shape), f"{name}/proj")) * self.scale
        return x

    def _embed(self, noise: Tensor) -> Tensor:
        c, half = self.config, self.config.noise_channels // 2
        if c.embedding_type == "fourier" and self.song:
            angle = noise[:, None] * (2 * math.pi * self._parameters["model/map_noise/freqs"])  # type: ignore[operator]
        else:
            angle = noise[:, None] * 10000.0 ** (-torch.arange(half) / (half - 1 if self.song else half))
        pair = (angle.sin(), angle.cos()) if self.song else (angle.cos(), angle.sin())
        emb = F.silu(self._linear(torch.cat(pair, dim=1), "model/map_layer0"))
        return F.silu(self._linear(emb, "model/map_layer1"))

    def forward(self, images: Tensor, sigma: Tensor) -> Tensor:
        """``[n, C, H, W]`` and noise levels ``[n]`` to the expected images."""
        sigma = sigma[:, None, None, None]
        total = sigma**2 + self.config.sigma_data**2
        emb, x = self._embed(sigma.flatten().log() / 4), images / total.sqrt()
        skips, pyramid = [], x
        for piece in self.down:
            name = f"model/enc/{piece.name}"
            if piece.kind == "aux_residual":
                weight, bias = self._weights(name)
                y = F.conv2d(pyramid, weight, padding=1 + (self.filter.shape[-1] - 1) // 2)
                y = F.conv2d(y, self.filter.expand(y.shape[1], 1, -1, -1), stride=2, groups=y.shape[1])
                x = skips[-1] = pyramid = (x + y + bias[:, None, None]) / math.sqrt(2)  # type: ignore[index]
                continue
            x = self._conv(x, name) if piece.kind == "conv" else self._block(x, emb, piece, name)
            skips.append(x)
        for piece in self.up:
            name = f"model/dec/{piece.name}"
            if piece.kind == "aux_norm":
                x = F.silu(self._norm(x, name))
            elif piece.kind == "aux_conv":
                x = self._conv(x, name)
            else:
                x = torch.cat([x, skips.pop()], dim=1) if piece.takes_skip else x
                x = self._block(x, emb, piece, name)
        if not self.song:
            x = self._conv(F.silu(self._norm(x, "model/out_norm")), "model/out_conv")
        d = self.config.sigma_data
        return d**2 / total * images + sigma * d / total.sqrt() * x


def from_flax(net: Any) -> EDM:
    """The network with the weights of a Flax one (:class:`psld_jax.models.edm.EDM`)."""
    held = {tuple(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(net))}
    weights = {
        array.source: np.ascontiguousarray(array.invert(held[array.path])) for array in source_arrays(net.config)
    }
    return EDM(net.config, weights)
