"""The two U-Nets of EDM: that of Song et al. (2021), and that of Dhariwal & Nichol (2021), channels last.

Parameters are stored in float32. A layer computes in the dtype of its input; statistics of group norm and the softmax
are never below float32. Initial weights are EDM's.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from psld_jax._runtime.xla import materialise
from psld_jax.models import fir, layers
from psld_jax.models.edm_plan import EDMConfig, Piece, plan

Array = Any

_SILU = nnx.silu
_FREQUENCY = 10_000  # of the slowest feature of a position, in steps


class Init(NamedTuple):
    """How weights begin: ``gain`` times a distribution of variance 1 over ``mode``; biases ``bias_gain`` times that."""

    mode: Literal["fan_in", "fan_avg"]
    gain: float = 1.0
    bias_gain: float = 0.0
    distribution: Literal["uniform", "normal"] = "uniform"

    def kernel(self, rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
        """Draw a kernel of shape ``[in, out]`` or ``[k, k, in, out]``."""
        if self.gain == 0:
            return nnx.Param(jnp.zeros(shape, jnp.float32))
        draw = jax.nn.initializers.variance_scaling(self.gain**2, self.mode, self.distribution)
        return nnx.Param(draw(rngs.params(), shape, jnp.float32))

    def bias(self, rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
        """Draw a bias ``[out]`` for a kernel of ``shape``."""
        if self.bias_gain == 0:
            return nnx.Param(jnp.zeros(shape[-1], jnp.float32))
        limit = self.bias_gain * math.sqrt(3 / math.prod(shape[:-1]))
        return nnx.Param(jax.random.uniform(rngs.params(), shape[-1:], jnp.float32, -limit, limit))


class Rules(NamedTuple):
    """The differences between the two architectures within a block.

    ``eps``: of group norm; ``scale``: of sums. ``adaptive``: the embedding scales and shifts what ``norm1`` returns;
    else it is added before. ``project``: a block that resamples has a 1x1 convolution beside it, new channels or not.
    ``first``, ``attend`` and ``last`` say how weights begin.
    """

    eps: float
    scale: float
    adaptive: bool
    project: bool
    first: Init
    attend: Init
    last: Init


_SONG = Rules(
    1e-6, math.sqrt(0.5), False, True, Init("fan_avg"), Init("fan_avg", math.sqrt(0.2)), Init("fan_avg", 1e-5)
)
_ADM_INIT = Init("fan_in", math.sqrt(1 / 3), math.sqrt(1 / 3))
_ADM = Rules(1e-5, 1.0, True, False, _ADM_INIT, _ADM_INIT, Init("fan_in", 0.0))


class Linear(layers.Dense):
    """``x W + b`` on the last axis, ``[..., in] -> [..., out]``: linear layers and 1x1 convolutions."""

    def __init__(self, n_in: int, n_out: int, init: Init, *, use_bias: bool = True, rngs: nnx.Rngs):
        self.kernel = init.kernel(rngs, (n_in, n_out))
        self.bias = init.bias(rngs, (n_in, n_out)) if use_bias else None


class Conv(layers.Conv3x3):
    """3x3 convolution with zero padding, ``[n, H, W, in] -> [n, H, W, out]``."""

    def __init__(self, n_in: int, n_out: int, init: Init, *, rngs: nnx.Rngs):
        self.kernel = init.kernel(rngs, (3, 3, n_in, n_out))
        self.bias = init.bias(rngs, (3, 3, n_in, n_out))


class FilteredConv(Conv):
    """3x3 convolution, then the filter with stride 2, then the bias: ``[n, H, W, in] -> [n, H/2, W/2, out]``.

    The convolution's zeros reach as far as the filter needs, so its result is larger than the image.
    """

    def __init__(self, n_in: int, n_out: int, taps: tuple[float, ...], init: Init, *, rngs: nnx.Rngs):
        super().__init__(n_in, n_out, init, rngs=rngs)
        self.taps = taps

    def __call__(self, x: Array) -> Array:
        pad = (len(self.taps) - 1) // 2
        x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        y = fir.upfirdn2d(materialise(fir.convolve(x, self.kernel[...])), _unit(self.taps)[::-1], down=2)
        return materialise(y + self.bias.astype(x.dtype))


def _unit(taps: tuple[float, ...], total: float = 1.0) -> tuple[float, ...]:
    return tuple(tap * total / sum(taps) for tap in taps)


def downsample(x: Array, taps: tuple[float, ...]) -> Array:
    """``[n, H, W, C]`` to ``[n, H/2, W/2, C]``: filtered with unit gain, zeros around the image."""
    pad = (len(taps) - 1) // 2
    return fir.upfirdn2d(x, _unit(taps)[::-1], down=2, pad=(pad, pad))


def upsample(x: Array, taps: tuple[float, ...]) -> Array:
    """``[n, H, W, C]`` to ``[n, 2H, 2W, C]``: the transpose of :func:`downsample`, times 4."""
    pad = (len(taps) - 1) // 2
    return fir.upfirdn2d(x, _unit(taps, 2), up=2, pad=(len(taps) - 1 - pad, len(taps) - 2 - pad))


def resample(x: Array, direction: str, taps: tuple[float, ...]) -> Array:
    """:func:`upsample` for ``"up"``, :func:`downsample` for ``"down"``, else ``x``; ``[n, H, W, C]``."""
    if not direction:
        return x
    return (upsample if direction == "up" else downsample)(x, taps)


class Block(nnx.Module):
    """Residual block: norm, silu, (resample), conv, embedding, norm, silu, dropout, conv; plus the shortcut; attention.

    ``x [n, H, W, in]`` and ``emb [n or 1, emb]`` to ``[n, H', W', out]``.
    """

    def __init__(self, piece: Piece, config: EDMConfig, rules: Rules, rngs: nnx.Rngs):
        n_in, n_out = piece.n_in, piece.n_out
        self.resample, self.taps, self.heads, self.rules = piece.resample, config.taps, piece.heads, rules
        self.norm0 = layers.GroupNorm(n_in, eps=rules.eps)
        self.conv0 = Conv(n_in, n_out, rules.first, rngs=rngs)
        self.affine = Linear(config.emb_channels, n_out * (2 if rules.adaptive else 1), rules.first, rngs=rngs)
        self.norm1 = layers.GroupNorm(n_out, eps=rules.eps)
        self.dropout = nnx.Dropout(config.dropout)
        self.conv1 = Conv(n_out, n_out, rules.last, rngs=rngs)
        project = n_in != n_out or (rules.project and piece.resample != "")
        self.skip = Linear(n_in, n_out, rules.first, rngs=rngs) if project else None
        if self.heads:
            self.norm2 = layers.GroupNorm(n_out, eps=rules.eps)
            self.qkv = Linear(n_out, 3 * n_out, rules.attend, rngs=rngs)
            self.proj = Linear(n_out, n_out, rules.last, rngs=rngs)

    def __call__(self, x: Array, emb: Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None) -> Array:
        h = self.conv0(resample(_SILU(self.norm0(x)), self.resample, self.taps))
        told = self.affine(emb)[:, None, None].astype(h.dtype)
        if self.rules.adaptive:
            scale, shift = jnp.split(told, 2, axis=-1)
            h = _SILU(self.norm1(h) * (scale + 1) + shift)
        else:
            h = _SILU(self.norm1(h + told))
        h = self.conv1(self.dropout(h, deterministic=deterministic, rngs=rngs))
        x = resample(x, self.resample, self.taps)
        x = self._merge(x if self.skip is None else self.skip(x), h)
        return self._merge(x, self._attend(x)) if self.heads else x

    def _merge(self, x: Array, h: Array) -> Array:
        total = x + h if self.rules.scale == 1 else (x + h) * self.rules.scale
        return checkpoint_name(materialise(total), layers.SUM)

    def _attend(self, x: Array) -> Array:
        n, height, width, ch = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(n, height * width, 3, self.heads, ch // self.heads)
        return self.proj(layers.attend(*jnp.moveaxis(qkv, 2, 0)).reshape(x.shape))


class Frequencies(nnx.Module):
    """Random frozen frequencies of Fourier features, their scale included, ``[features / 2]``."""

    def __init__(self, features: int, rngs: nnx.Rngs, scale: float = 16.0):
        self.freqs = layers.Frozen(scale * jax.random.normal(rngs.params(), (features // 2,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        # The original's order of products: hundreds of radians, where another one moves the sine by 1e-5.
        angle = x[:, None] * (2 * math.pi * self.freqs[...])
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def positions(x: Array, features: int, endpoint: bool) -> Array:
    """Cosines and sines of ``x 10000^(-i / m)``, ``[n] -> [n, features]``.

    ``endpoint``: ``m = half - 1``, sines first (Song et al.). Else ``m = half``, cosines first (Dhariwal & Nichol).
    """
    half = features // 2
    exponents = np.arange(half) / (half - 1 if endpoint else half)
    angle = x[:, None] * jnp.asarray(_FREQUENCY**-exponents, x.dtype)
    pair = jnp.sin(angle), jnp.cos(angle)
    return jnp.concatenate(pair if endpoint else pair[::-1], axis=1)


class UNet(nnx.Module):
    """``F(x, c_noise)``: either U-Net, :func:`psld_jax.models.edm_plan.plan` built in order.

    Song et al. (2021), appendix H, and Dhariwal & Nichol (2021), as Karras et al. (2022) state them.

    Args:
      config: the options.
      rngs: stream ``params`` initialises.
    """

    def __init__(self, config: EDMConfig, *, rngs: nnx.Rngs):
        c, self.config = config, config
        song = c.architecture == "song"
        rules = _SONG if song else _ADM
        n, emb = c.noise_channels, c.emb_channels
        fourier = song and c.embedding_type == "fourier"
        self.map_noise = Frequencies(n, rngs) if fourier else None
        self.map_augment = Linear(c.augment_dim, n, rules.first, use_bias=False, rngs=rngs) if c.augment_dim else None
        self.map_layer0 = Linear(n, emb, rules.first, rngs=rngs)
        self.map_layer1 = Linear(emb, emb, rules.first, rngs=rngs)
        if song:
            label = Linear(c.label_dim, n, rules.first, rngs=rngs) if c.label_dim else None
        else:
            normal = Init("fan_in", math.sqrt(c.label_dim), distribution="normal")
            label = Linear(c.label_dim, emb, normal, use_bias=False, rngs=rngs) if c.label_dim else None
        self.map_label = label
        down, up = plan(c)
        self.enc: Any = nnx.Dict(_build(down, c, rules, rngs))
        self.dec: Any = nnx.Dict(_build(up, c, rules, rngs))
        if not song:
            self.out_norm = layers.GroupNorm(up[-1].n_out, eps=rules.eps)
            self.out_conv = Conv(up[-1].n_out, c.out_channels, rules.last, rngs=rngs)

    def embed(self, noise: Array, labels: Any, augment: Array | None) -> Array:
        """Embed ``noise [n or 1]``, labels ``[n or 1, label_dim]``, ``augment [n, augment_dim]``: ``[n or 1, emb]``."""
        c, song = self.config, self.config.architecture == "song"
        emb = positions(noise, c.noise_channels, song) if self.map_noise is None else self.map_noise(noise)
        if self.map_label is not None and song:
            emb = emb + self.map_label(math.sqrt(c.label_dim) * labels)
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        emb = self.map_layer1(_SILU(self.map_layer0(emb)))
        if self.map_label is not None and not song:
            emb = emb + self.map_label(labels)
        return _SILU(emb)

    def __call__(
        self,
        x: Array,
        noise: Array,
        labels: Array | None = None,
        augment: Array | None = None,
        *,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        """Return ``F``, ``[n, H, W, out_channels]``, in the dtype of the parameters.

        Args:
          x: ``[n, H, W, C]``, in the dtype of the activations.
          noise: ``c_noise``, ``[n]`` or ``[1]``.
          labels: ``[n, label_dim]``, one-hot; ``[1, label_dim]`` for all.
          augment: ``[n, augment_dim]``, or ``None``.
          deterministic: ``False`` applies dropout.
          rngs: stream ``dropout``.
        """
        dropout = {"deterministic": deterministic, "rngs": rngs}
        emb = self.embed(noise, labels, augment)
        down, up = plan(self.config)
        skips, pyramid = [], x
        for piece in down:
            match piece.kind:
                case "aux_down":
                    pyramid = downsample(pyramid, self.config.taps)
                case "aux_skip":
                    x = skips[-1] = x + self.enc[piece.name](pyramid)
                case "aux_residual":
                    x = skips[-1] = pyramid = layers.merge(x, self.enc[piece.name](pyramid), True)
                case "conv":
                    x = self.enc[piece.name](x)
                    skips.append(x)
                case _:
                    x = self.enc[piece.name](x, emb, **dropout)
                    skips.append(x)
        image = None
        for piece in up:
            match piece.kind:
                case "aux_up":
                    image = upsample(image, self.config.taps)
                case "aux_norm":
                    normed = self.dec[piece.name](x.astype(self.param_dtype))
                case "aux_conv":
                    part = self.dec[piece.name](_SILU(normed))
                    image = part if image is None else image + part
                case _:
                    x = jnp.concatenate([x, skips.pop()], axis=-1) if piece.takes_skip else x
                    x = self.dec[piece.name](x, emb, **dropout)
        if image is not None:
            return image
        return self.out_conv(_SILU(self.out_norm(x.astype(self.param_dtype))))

    @property
    def param_dtype(self) -> Any:
        """float32, unless the parameters have been cast."""
        return self.map_layer0.kernel.dtype


def _build(pieces: tuple[Piece, ...], c: EDMConfig, rules: Rules, rngs: nnx.Rngs) -> dict[str, Any]:
    """Make the modules by name. Resampling alone has no parameters, so it has no module."""
    kinds: dict[str, Any] = {
        "block": lambda piece: Block(piece, c, rules, rngs),
        "conv": lambda piece: Conv(piece.n_in, piece.n_out, rules.first, rngs=rngs),
        "aux_conv": lambda piece: Conv(piece.n_in, piece.n_out, rules.last, rngs=rngs),
        "aux_skip": lambda piece: Linear(piece.n_in, piece.n_out, rules.first, rngs=rngs),
        "aux_residual": lambda piece: FilteredConv(piece.n_in, piece.n_out, c.taps, rules.first, rngs=rngs),
        "aux_norm": lambda piece: layers.GroupNorm(piece.n_in, eps=rules.eps),
    }
    return {piece.name: kinds[piece.kind](piece) for piece in pieces if piece.kind in kinds}
