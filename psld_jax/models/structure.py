"""NCSN++ as data: its options, and the ordered list of modules that they stand for.

The order is that of ``all_modules`` in the original PyTorch code, so an entry's ``index`` is the number in the name of
a checkpoint's parameter. The networks are built from this list and read their modules from it by name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from psld_jax._runtime.errors import check_choice, is_count, shown

_CHOICES = {
    "nonlinearity": ("swish", "elu", "relu", "lrelu"),
    "resblock_type": ("ddpm", "biggan"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "embedding_type": ("fourier", "positional"),
    "dtype": ("float32", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class NCSNppConfig:
    """Options of NCSN++ (Song et al., 2021, appendix H); the defaults are the CIFAR-10 model of Pandey & Mandt (2023).

    Attributes:
      in_ch, out_ch: channels in and out: of the whole state ``[x, m]`` in phase space.
      image_size: height and width, in pixels: one number, or ``(H, W)``.
      nonlinearity: ``swish``, ``elu``, ``relu`` or ``lrelu`` (slope 0.2).
      nf: channels at full resolution are ``nf * ch_mult[0]``; each later entry of ``ch_mult`` halves the resolution.
      ch_mult, num_res_blocks: multipliers, one per resolution; blocks per resolution.
      attn_resolutions: image sizes, by their shorter side, that get attention (the middle always has it).
      dropout: rate inside the residual blocks.
      resamp_with_conv: whether ``ddpm`` networks resample with a convolution (``biggan`` ones do it in blocks).
      noise_cond: whether the network sees ``t``. If not, the parameters that would use it exist all the same.
      fir, fir_kernel: resample with this FIR filter; else nearest neighbours and means.
      skip_rescale: divide sums of two branches by ``sqrt(2)``.
      resblock_type: ``ddpm`` or ``biggan``.
      progressive: output pyramid: ``none``, ``output_skip`` or ``residual``. With ``output_skip`` the network returns
        ``in_ch`` channels whatever ``out_ch`` says, as in the original, unless ``returns_in_ch`` is off.
      progressive_input, progressive_combine: input pyramid: ``none``, ``input_skip`` (combined by ``sum`` or ``cat``)
        or ``residual``.
      returns_in_ch: see ``progressive``; off for networks of CLD-SGM.
      embedding_type: ``fourier`` (of ``log s``) or ``positional`` (of ``s``), where ``s = time_scale t``.
      time_scale: 1 for networks of PSLD, 999 for VP networks of score_sde_pytorch.
      init_scale: initial scale of each branch's last layer (0 stands for 1e-10).
      fourier_scale: standard deviation of the Fourier frequencies.
      dtype: of the activations, ``float32`` or ``bfloat16``. Parameters, statistics of group norm, softmax and output
        stay float32.
      num_labels: classes that the network is told, each with an embedding that is added to that of the time; one more
        stands for "any". 0: none, as in the original.

    Raises:
      ValueError: for an unknown choice, a number out of range, an image that cannot be halved often enough, or
        channels that group norm cannot divide.
    """

    in_ch: int = 6
    out_ch: int = 6
    image_size: int | tuple[int, int] = 32
    nonlinearity: str = "swish"
    nf: int = 128
    ch_mult: tuple[int, ...] = (2, 2, 2)
    num_res_blocks: int = 8
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.15
    resamp_with_conv: bool = True
    noise_cond: bool = True
    fir: bool = True
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    skip_rescale: bool = True
    resblock_type: str = "biggan"
    progressive: str = "none"
    progressive_input: str = "residual"
    progressive_combine: str = "sum"
    returns_in_ch: bool = True
    embedding_type: str = "fourier"
    time_scale: float = 1.0
    init_scale: float = 0.0
    fourier_scale: float = 16.0
    dtype: str = "float32"
    num_labels: int = 0

    def __post_init__(self):
        for name in ("ch_mult", "attn_resolutions", "fir_kernel"):  # lists would not hash
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, allowed in _CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        # A square is one number, so that configurations of the same network are equal.
        object.__setattr__(self, "image_size", image_size(self.image_size))
        for name in ("in_ch", "out_ch", "num_res_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be an integer >= 1")
        if self.nf < 4:
            raise ValueError(f"nf={self.nf} must be an integer >= 4: group norm takes at least four channels a group")
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise ValueError(f"ch_mult={self.ch_mult} must hold integers >= 1, one per resolution")
        if any(side % 2 ** (self.levels - 1) for side in self.shape):
            raise ValueError(
                f"image_size={self.image_size} must be divisible by {2 ** (self.levels - 1)} to be halved "
                f"{self.levels - 1} times; pad the images or shorten ch_mult={self.ch_mult}"
            )
        if self.num_labels < 0 or (self.num_labels and not self.noise_cond):
            raise ValueError(f"num_labels={self.num_labels} must be >= 0, and 0 with noise_cond=False")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")
        if not self.fir_kernel or sum(self.fir_kernel) == 0:
            raise ValueError(f"fir_kernel={self.fir_kernel} must hold numbers whose sum is not 0; try (1, 3, 3, 1)")
        if self.init_scale < 0 or self.fourier_scale <= 0:
            raise ValueError(
                f"init_scale={self.init_scale} must be >= 0 and fourier_scale={self.fourier_scale} must be > 0"
            )
        if not self.time_scale > 0:
            raise ValueError(f"time_scale={self.time_scale} must be > 0: 1 for networks of PSLD, 999 of score_sde")
        for entry in plan(self):
            for channels in entry.normalised:
                if channels % groups(channels):
                    raise ValueError(
                        f"nf={self.nf}, ch_mult={self.ch_mult} give {entry.name} {channels} channels, which group norm "
                        f"cannot divide into {groups(channels)} groups; make nf a multiple of 4 (of 32 from 128 on)"
                    )

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.ch_mult)

    @property
    def returned_ch(self) -> int:
        """Channels that the network returns."""
        return self.in_ch if self.progressive == "output_skip" and self.returns_in_ch else self.out_ch

    @property
    def taps(self) -> tuple[float, ...]:
        """The filter of plain resampling. Without FIR it is a box: nearest neighbours up, and means down."""
        return self.fir_kernel if self.fir else (1, 1)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return image_shape(self.image_size)

    def size(self, level: int) -> int:
        """Return the shorter of height and width at a level, in pixels. Level 0 is full resolution."""
        return min(self.shape) // 2**level

    def area(self, level: int) -> int:
        """Return the number of pixels at a level."""
        return math.prod(side // 2**level for side in self.shape)


def image_size(value: Any) -> int | tuple[int, int]:
    """Return the image size of a configuration: one number for a square, else ``(H, W)``.

    Raises:
      ValueError: for anything else than one or two whole numbers of at least 1.
    """
    sides = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(sides) not in (1, 2) or not all(is_count(side) for side in sides):
        raise ValueError(f"image_size={shown(value)} must be an integer >= 1, or two of them: (H, W)")
    height, width = int(sides[0]), int(sides[-1])
    return height if height == width else (height, width)


def image_shape(value: Any) -> tuple[int, int]:
    """Return height and width; raise a ``ValueError`` as :func:`image_size` does."""
    size = image_size(value)
    return (size, size) if isinstance(size, int) else size


def groups(channels: int) -> int:
    """Return the number of groups of a group norm: at most 32, with four channels or more each."""
    return min(channels // 4, 32)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One module of the network.

    Attributes:
      index: position in the original's ``all_modules``.
      name: our name; the module is ``network.layers[name]``.
      kind: one of

        =================== ============================================== =====================================
        kind                module                                         original's sub-names
        =================== ============================================== =====================================
        ``fourier``         frozen random frequencies                      none: ``W``
        ``embedding``       embedding of the label                         the original has none
        ``linear``          linear layer (``classifier``: without bias)    none: ``weight``, ``bias``
        ``conv3x3``         3x3 convolution                                none: ``weight``, ``bias``
        ``groupnorm``       group norm                                     none: ``weight``, ``bias``
        ``resblock_ddpm``   residual block                                 GroupNorm_0, Conv_0, Dense_0,
                                                                           GroupNorm_1, Conv_1, NIN_0 (shortcut)
        ``resblock_biggan`` residual block, may resample                   GroupNorm_0, Conv_0, Dense_0,
                                                                           GroupNorm_1, Conv_1, Conv_2 (shortcut)
        ``attention``       self-attention over all pixels                 GroupNorm_0, NIN_0 to NIN_3
        ``combine``         1x1 convolution of the input, then sum or cat  Conv_0
        ``resample``        x2 up or down without parameters               none
        ``resample_conv``   x2 up or down with a 3x3 convolution           Conv2d_0 with FIR, else Conv_0
        =================== ============================================== =====================================

      in_ch, out_ch: channels (features for ``linear``; frequencies and features for ``fourier``).
      resample: ``"up"``, ``"down"`` or ``""``.
      init_scale: initial scale of the module's last layer.
    """

    index: int
    name: str
    kind: str
    in_ch: int
    out_ch: int
    resample: str = ""
    init_scale: float = 1.0

    @property
    def normalised(self) -> tuple[int, ...]:
        """Numbers of channels of the group norms inside."""
        if self.kind.startswith("resblock"):
            return self.in_ch, self.out_ch
        return (self.in_ch,) if self.kind in ("attention", "groupnorm") else ()


def plan(config: NCSNppConfig, n_classes: int | None = None) -> tuple[Entry, ...]:
    """List the network's modules in the order of the original's ``all_modules``. No arrays are needed.

    Args:
      config: the options.
      n_classes: ``None`` for the score network, else the number of classes of a classifier, which has the way down and
        the middle, then one linear layer.

    Raises:
      ValueError: for a classifier with fewer than one class or with an output pyramid.
    """
    if n_classes is not None and n_classes < 1:
        raise ValueError(f"n_classes={n_classes} must be an integer >= 1")
    if n_classes is not None and config.progressive != "none":
        raise ValueError(f"a classifier has no output pyramid: progressive={config.progressive!r} must be 'none'")
    return tuple(Entry(i, *fields) for i, fields in enumerate(_modules(config, n_classes)))


def _modules(c: NCSNppConfig, n_classes: int | None) -> Iterator[tuple[str, str, int, int, str, float]]:
    """Yield the fields of the entries after ``index``."""
    block_kind = f"resblock_{c.resblock_type}"

    def layer(name: str, kind: str, in_ch: int, out_ch: int, resample: str = "", init_scale: float = 1.0):
        return name, kind, in_ch, out_ch, resample, init_scale

    def block(name: str, in_ch: int, out_ch: int, resample: str = ""):
        return layer(name, block_kind, in_ch, out_ch, resample, c.init_scale)

    def attention(name: str, channels: int):
        return layer(name, "attention", channels, channels, "", c.init_scale)

    def resample(name: str, channels: int, direction: str):
        if c.resblock_type == "biggan":
            return block(name, channels, channels, direction)
        return layer(name, "resample_conv" if c.resamp_with_conv else "resample", channels, channels, direction)

    # Time embedding.
    if c.embedding_type == "fourier":
        yield layer("fourier", "fourier", c.nf, 2 * c.nf)
    if c.noise_cond:
        yield layer("temb_0", "linear", 2 * c.nf if c.embedding_type == "fourier" else c.nf, 4 * c.nf)
        yield layer("temb_1", "linear", 4 * c.nf, 4 * c.nf)
    if c.num_labels and n_classes is None:
        yield layer("labels", "embedding", c.num_labels + 1, 4 * c.nf)

    # Way down. ``skips`` are the channels of the activations that the way up will take.
    yield layer("stem", "conv3x3", c.in_ch, c.nf)
    ch, pyramid, skips = c.nf, c.in_ch, [c.nf]
    for level in range(c.levels):
        for i in range(c.num_res_blocks):
            yield block(f"down_{level}_block_{i}", ch, c.nf * c.ch_mult[level])
            ch = c.nf * c.ch_mult[level]
            if c.size(level) in c.attn_resolutions:
                yield attention(f"down_{level}_attn_{i}", ch)
            skips.append(ch)
        if level < c.levels - 1:
            yield resample(f"down_{level}_resample", ch, "down")
            if c.progressive_input == "input_skip":
                yield layer(f"down_{level}_combine", "combine", pyramid, ch)
                ch = 2 * ch if c.progressive_combine == "cat" else ch
            elif c.progressive_input == "residual":
                yield layer(f"down_{level}_pyramid", "resample_conv", pyramid, ch, "down")
                pyramid = ch
            skips.append(ch)

    # Middle.
    yield block("mid_block_0", ch, ch)
    yield attention("mid_attn", ch)
    yield block("mid_block_1", ch, ch)
    if n_classes is not None:
        yield layer("classifier", "linear", ch * c.area(c.levels - 1), n_classes)
        return

    # Way up.
    for level in reversed(range(c.levels)):
        for i in range(c.num_res_blocks + 1):
            yield block(f"up_{level}_block_{i}", ch + skips.pop(), c.nf * c.ch_mult[level])
            ch = c.nf * c.ch_mult[level]
        if c.size(level) in c.attn_resolutions:
            yield attention(f"up_{level}_attn", ch)
        if c.progressive == "output_skip":
            yield layer(f"up_{level}_norm", "groupnorm", ch, ch)
            yield layer(f"up_{level}_conv", "conv3x3", ch, c.returned_ch, "", c.init_scale)
        elif c.progressive == "residual" and level == c.levels - 1:
            yield layer(f"up_{level}_norm", "groupnorm", ch, ch)
            yield layer(f"up_{level}_conv", "conv3x3", ch, ch)
            pyramid = ch
        elif c.progressive == "residual":
            yield layer(f"up_{level}_pyramid", "resample_conv", pyramid, ch, "up")
            pyramid = ch
        if level > 0:
            yield resample(f"up_{level}_resample", ch, "up")
    if c.progressive != "output_skip":
        yield layer("out_norm", "groupnorm", ch, ch)
        yield layer("out_conv", "conv3x3", ch, c.out_ch, "", c.init_scale)
