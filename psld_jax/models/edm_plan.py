"""The networks of EDM as data: their options, and the ordered list of modules that these stand for.

Karras et al. (2022) run two U-Nets, that of Song et al. (2021), which has DDPM++ and NCSN++ as cases, and that of
Dhariwal & Nichol (2021), ADM, each under four ways of preconditioning. Names are those of the original's modules.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from psld_jax._runtime.errors import check_choice, is_count
from psld_jax.models import structure

PRECONDITIONS = ("edm", "vp", "ve", "iddpm")
_CHOICES = {
    "precondition": PRECONDITIONS,
    "architecture": ("song", "dhariwal"),
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "skip", "residual"),
    "decoder_type": ("standard", "skip"),
    "dtype": ("float32", "bfloat16"),
}
_COUNTS = ("channels", "model_channels", "channel_mult_emb", "num_blocks", "channel_mult_noise")
#: More than any network that fits a machine: a damaged file must not ask for the rest.
_MAX_CHANNELS, _MAX_BLOCKS, _MAX_STEPS = 2**16, 1000, 2**20


@dataclasses.dataclass(frozen=True)
class EDMConfig:
    """Options of a network of EDM (Karras et al., 2022); the defaults are the unconditional CIFAR-10 model, VP.

    Attributes:
      image_size, channels: of an image; the size is one number, or ``(H, W)``, and levels go by the shorter side.
      label_dim: classes that the network is told; 0: none.
      augment_dim: numbers that describe how a training image was changed; 0: none.
      precondition: ``edm``, or ``vp``, ``ve``, ``iddpm``, which state older networks in its terms (table 1).
      architecture: ``song`` (DDPM++, NCSN++) or ``dhariwal`` (ADM).
      model_channels: channels are this times ``channel_mult``, whose entries each halve the resolution.
      channel_mult_emb: size of the embedding, times ``model_channels``.
      num_blocks: residual blocks at each resolution on the way down; one more on the way up.
      attn_resolutions: image sizes with attention (the lowest always has it once).
      dropout: rate inside the residual blocks.
      label_dropout: probability that training does not tell the label of a sample.
      embedding_type, channel_mult_noise: ``song``: of the noise level, and its size times ``model_channels``.
      encoder_type: ``song``: ``standard``, or an input pyramid, ``skip`` or ``residual``.
      decoder_type: ``song``: ``standard``, or an output pyramid, ``skip``.
      resample_filter: ``song``: of every change of resolution; an even number of taps.
      channels_per_head: ``dhariwal``: of attention. A layer with fewer channels has none; ``song`` has one head.
      num_heads: of every block, way down and up, where these rules do not give them; empty: as they do.
      sigma_min, sigma_max: noise levels that the network was made for; infinity is no bound.
      sigma_data: ``edm``: standard deviation of the data.
      beta_d, beta_min: ``vp``: the rate is ``beta_min + beta_d t``.
      num_steps: ``vp``, ``iddpm``: steps of the discrete process that the network was trained for, M.
      c_1, c_2: ``iddpm``: constants of the cosine schedule.
      dtype: of the activations, ``float32`` or ``bfloat16``.

    Raises:
      ValueError: for an unknown choice, a number out of range, or an image that cannot be halved often enough.
    """

    image_size: int | tuple[int, int] = 32
    channels: int = 3
    label_dim: int = 0
    augment_dim: int = 0
    precondition: str = "edm"
    architecture: str = "song"
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.13
    label_dropout: float = 0.0
    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: tuple[float, ...] = (1, 1)
    channels_per_head: int = 64
    num_heads: tuple[int, ...] = ()
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    sigma_data: float = 0.5
    beta_d: float = 19.9
    beta_min: float = 0.1
    num_steps: int = 1000
    c_1: float = 0.001
    c_2: float = 0.008
    dtype: str = "float32"

    def __post_init__(self):
        for name in ("channel_mult", "attn_resolutions", "resample_filter", "num_heads"):  # lists would not hash
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "image_size", structure.image_size(self.image_size))
        for name, allowed in _CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        for name in (*_COUNTS, "channels_per_head"):
            if not 1 <= getattr(self, name) <= _MAX_CHANNELS:
                raise ValueError(f"{name}={getattr(self, name)} must be an integer from 1 to {_MAX_CHANNELS}")
        for name in ("label_dim", "augment_dim"):
            if not 0 <= getattr(self, name) <= _MAX_CHANNELS:
                raise ValueError(f"{name}={getattr(self, name)} must be an integer from 0 to {_MAX_CHANNELS}")
        mult = self.channel_mult
        known = 1 <= len(mult) <= 16 and all(is_count(number) for number in mult)
        if not known or max(mult) * self.model_channels > _MAX_CHANNELS:
            raise ValueError(
                f"channel_mult={mult} must hold 1 to 16 integers >= 1, at most {_MAX_CHANNELS} times "
                f"model_channels={self.model_channels}"
            )
        if self.num_blocks > _MAX_BLOCKS or not 2 <= self.num_steps <= _MAX_STEPS:
            raise ValueError(
                f"num_blocks={self.num_blocks} must be at most {_MAX_BLOCKS}, and num_steps={self.num_steps} "
                f"from 2 to {_MAX_STEPS}"
            )
        if max(self.image_shape[:2]) > _MAX_CHANNELS:
            raise ValueError(f"image_size={self.image_size} must be at most {_MAX_CHANNELS}")
        if any(side % 2 ** (len(mult) - 1) for side in self.image_shape[:2]):
            raise ValueError(
                f"image_size={self.image_size} must be divisible by {2 ** (len(mult) - 1)} to be halved "
                f"{len(mult) - 1} times; pad the images or shorten channel_mult={mult}"
            )
        if self.noise_channels % 2 or self.noise_channels < 4:
            raise ValueError(
                f"model_channels={self.model_channels} times channel_mult_noise={self.channel_mult_noise} must be even "
                "and at least 4: pairs of sine and cosine"
            )
        taps = self.resample_filter
        if len(taps) % 2 or not 2 <= len(taps) <= 32 or not abs(sum(taps)) > 0:
            raise ValueError(f"resample_filter={taps} must hold 2 to 32 taps, an even number, whose sum is not 0")
        for name in ("dropout", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1)")
        for name in ("sigma_data", "beta_d", "beta_min", "c_1", "c_2"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number > 0")
        if not 0 <= self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} must be >= 0 and below sigma_max={self.sigma_max}")
        for piece in (*plan(self)[0], *plan(self)[1]):
            if piece.heads < 0 or (piece.heads and piece.n_out % piece.heads):
                raise ValueError(f"{piece.name} cannot divide {piece.n_out} channels into {piece.heads} heads")
            for channels in piece.normalised:
                if not channels >= 4 or channels % min(32, channels // 4):
                    raise ValueError(
                        f"{piece.name} has {channels} channels, which group norm cannot divide into "
                        f"{min(32, channels // 4)} groups; make model_channels={self.model_channels} a multiple of 4 "
                        "(of 32 from 128 on)"
                    )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(H, W, C)`` of an image."""
        return (*structure.image_shape(self.image_size), self.channels)

    @property
    def side(self) -> int:
        """The shorter side of an image. Names of modules and places of attention go by it."""
        return min(self.image_shape[:2])

    @property
    def n_classes(self) -> int:
        """Number of classes that the network is told; 0: none."""
        return self.label_dim

    @property
    def predicts(self) -> str:
        """What the preconditioned network returns: the expected image."""
        return "data"

    @property
    def clock(self) -> str:
        """What the network takes for the time: the noise level."""
        return "sigma"

    def level_weight(self, sigma: np.ndarray) -> np.ndarray:
        """Return the weight of the image's squared error in training at noise levels ``sigma``, of the same shape.

        ``1 / c_out^2``: ``(sigma^2 + sigma_data^2) / (sigma sigma_data)^2`` for ``edm``, else ``1 / sigma^2`` (Karras
        et al., 2022, table 1).
        """
        if self.precondition == "edm":
            return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        return sigma**-2.0

    @property
    def taps(self) -> tuple[float, ...]:
        """The filter of resampling. For ``dhariwal`` it gives means of 2x2, and nearest neighbours."""
        return self.resample_filter if self.architecture == "song" else (1, 1)

    @property
    def noise_channels(self) -> int:
        """Size of the embedding of the noise level, before its two layers."""
        return self.model_channels * (self.channel_mult_noise if self.architecture == "song" else 1)

    @property
    def emb_channels(self) -> int:
        """Size of the embedding that the blocks take."""
        return self.model_channels * self.channel_mult_emb

    @property
    def out_channels(self) -> int:
        """Channels that the network inside returns. ``iddpm`` predicts variances too, which nothing here uses."""
        return self.channels * (2 if self.precondition == "iddpm" else 1)


@dataclasses.dataclass(frozen=True)
class Piece:
    """One module of the way down or up.

    Attributes:
      name: the original's, e.g. ``16x16_block0``.
      kind: ``conv``, ``block``, ``aux_down``, ``aux_skip``, ``aux_residual``, ``aux_up``, ``aux_norm`` or ``aux_conv``.
      n_in, n_out: channels.
      heads: of attention after a block; 0: none.
      resample: ``"up"``, ``"down"`` or ``""``.
      takes_skip: whether a block is given the last activation of the way down that is left, beside its input.
    """

    name: str
    kind: str
    n_in: int
    n_out: int
    heads: int = 0
    resample: str = ""
    takes_skip: bool = False

    @property
    def normalised(self) -> tuple[int, ...]:
        """Numbers of channels of the group norms inside."""
        if self.kind == "block":
            return self.n_in, self.n_out
        return (self.n_in,) if self.kind == "aux_norm" else ()


def plan(config: EDMConfig) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """List the modules of the way down and of the way up, in order. No arrays are needed.

    Raises:
      ValueError: for another number of ``num_heads`` than there are blocks.
    """
    down = tuple(_encoder(config))
    up = tuple(_decoder(config, down))
    if not config.num_heads:
        return down, up
    pieces, heads = (*down, *up), iter(config.num_heads)
    if len(config.num_heads) != sum(piece.kind == "block" for piece in pieces):
        raise ValueError(f"num_heads={config.num_heads} must hold a number for each of the network's blocks")
    pieces = tuple(dataclasses.replace(p, heads=next(heads)) if p.kind == "block" else p for p in pieces)
    return pieces[: len(down)], pieces[len(down) :]


def _heads(c: EDMConfig, channels: int, attention: bool) -> int:
    if not attention:
        return 0
    return 1 if c.architecture == "song" else channels // c.channels_per_head


def _block(c: EDMConfig, name: str, n_in: int, n_out: int, attention: bool = False, **options: object) -> Piece:
    return Piece(name, "block", n_in, n_out, heads=_heads(c, n_out, attention), **options)  # type: ignore[arg-type]


def _encoder(c: EDMConfig) -> Iterator[Piece]:
    song = c.architecture == "song"
    ch, pyramid = c.model_channels * (1 if song else c.channel_mult[0]), c.channels
    for level, mult in enumerate(c.channel_mult):
        size = c.side >> level
        if level == 0:
            yield Piece(f"{size}x{size}_conv", "conv", c.channels, ch)
        else:
            yield _block(c, f"{size}x{size}_down", ch, ch, resample="down")
            if song and c.encoder_type == "skip":
                yield Piece(f"{size}x{size}_aux_down", "aux_down", pyramid, pyramid, resample="down")
                yield Piece(f"{size}x{size}_aux_skip", "aux_skip", pyramid, ch)
            elif song and c.encoder_type == "residual":
                yield Piece(f"{size}x{size}_aux_residual", "aux_residual", pyramid, ch, resample="down")
                pyramid = ch
        for i in range(c.num_blocks):
            yield _block(c, f"{size}x{size}_block{i}", ch, c.model_channels * mult, size in c.attn_resolutions)
            ch = c.model_channels * mult


def _decoder(c: EDMConfig, down: tuple[Piece, ...]) -> Iterator[Piece]:
    song = c.architecture == "song"
    skips = [piece.n_out for piece in down if not piece.kind.startswith("aux")]
    ch, last = skips[-1], len(c.channel_mult) - 1
    for level in reversed(range(len(c.channel_mult))):
        size = c.side >> level
        if level == last:
            yield _block(c, f"{size}x{size}_in0", ch, ch, True)
            yield _block(c, f"{size}x{size}_in1", ch, ch)
        else:
            yield _block(c, f"{size}x{size}_up", ch, ch, resample="up")
        for i in range(c.num_blocks + 1):
            attention = size in c.attn_resolutions and (not song or i == c.num_blocks)
            n_out = c.model_channels * c.channel_mult[level]
            yield _block(c, f"{size}x{size}_block{i}", ch + skips.pop(), n_out, attention, takes_skip=True)
            ch = n_out
        if song and (c.decoder_type == "skip" or level == 0):
            if c.decoder_type == "skip" and level < last:
                yield Piece(f"{size}x{size}_aux_up", "aux_up", c.out_channels, c.out_channels, resample="up")
            yield Piece(f"{size}x{size}_aux_norm", "aux_norm", ch, ch)
            yield Piece(f"{size}x{size}_aux_conv", "aux_conv", ch, c.out_channels)
