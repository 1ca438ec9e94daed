"""The ``UNet2DModel`` of diffusers as data: its options, and the ordered list of modules that they stand for."""

from __future__ import annotations

import dataclasses

from psld_jax._runtime.errors import check_choice
from psld_jax.models.structure import groups

#: Kinds of blocks; diffusers' older names begin with ``UNetRes``.
DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D")
DOWN_BLOCKS += ("ResnetDownsampleBlock2D", "KDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D", "ResnetUpsampleBlock2D", "KUpBlock2D")
#: Channels of an image in the skips of the original, whatever the network's are.
_SKIP_CHANNELS = 3
_K_GROUP = 32  # channels in a group of the K blocks' norms

_CHOICES = {
    "time_embedding_type": ("positional", "fourier", "learned"),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "downsample_padding": (0, 1),
    "act_fn": ("silu", "swish", "mish", "gelu", "relu"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": ("", "timestep", "identity"),
    "predicts": ("eps", "velocity", "data", "score"),
    "clock": ("index", "sigma"),
}


_LEAST = {  # of counts; 0 stands for none or for a rule
    **dict.fromkeys(("in_channels", "out_channels", "layers_per_block"), 1),
    **dict.fromkeys(("num_class_embeds", "num_train_timesteps", "time_embedding_dim"), 0),
    **dict.fromkeys(("attention_head_dim", "norm_num_groups", "attn_norm_num_groups"), 0),
}


@dataclasses.dataclass(frozen=True)
class UNet2DConfig:
    """Options of ``UNet2DModel`` by their names there, with the defaults of diffusers 0.42; where it says ``None``, 0.

    Attributes:
      sample_size: ``(H, W)``.
      in_channels, out_channels: of the images; of what is returned, which may have a learned variance behind the image.
      center_input_sample: the network sees ``2 x - 1``.
      time_embedding_type: ``positional``, ``fourier`` (of the logarithm; the output is divided by the time) or
        ``learned`` (a row for each of ``num_train_timesteps``; between two, they are interpolated).
      time_embedding_dim: of the time's embedding; 0: ``4 block_out_channels[0]``.
      freq_shift, flip_sin_to_cos: of the positional embedding.
      down_block_types, up_block_types: one for each resolution, from the full one down, and up again.
      mid_block: whether there is a middle.
      block_out_channels, layers_per_block: channels of each resolution, residual blocks in it.
      mid_block_scale_factor: what sums of branches in the middle are divided by.
      downsample_padding: of convolutions that halve: 1 on all sides, or 0 for one on the right and at the bottom.
      downsample_type, upsample_type: of the blocks with attention: ``conv`` or ``resnet``.
      act_fn: ``silu`` (``swish``), ``mish``, ``gelu`` or ``relu``.
      attention_head_dim: channels of a head; 0: one head.
      norm_num_groups: of group norms; 0: ``min(C // 4, 32)``, for networks of Skip blocks.
      attn_norm_num_groups: of the middle attention's group norm; 0: as the others, and none with ``scale_shift``.
      norm_eps: added to variances.
      resnet_time_scale_shift: ``default`` (the time is added) or ``scale_shift``.
      add_attention: whether the middle has attention.
      class_embed_type, num_class_embeds: labels are integers below ``num_class_embeds``; with ``timestep`` numbers,
        embedded as the time is; with ``identity`` vectors that are added as they are. Both empty: there are none.
      num_train_timesteps: of the learned embedding.
      predicts: what is returned: ``eps``, ``velocity``, ``data`` or ``score``.
      clock: what the time is: ``index`` of a schedule, or ``sigma``.
      dropout: rate inside the residual blocks.
      dtype: of the activations, ``float32`` or ``bfloat16``.

    Raises:
      ValueError: for an unknown choice, a number out of range, or blocks that do not fit each other.
    """

    sample_size: tuple[int, int] = (32, 32)
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int = 0
    freq_shift: float = 0.0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block: bool = True
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    act_fn: str = "silu"
    attention_head_dim: int = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int = 0
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str = ""
    num_class_embeds: int = 0
    num_train_timesteps: int = 0
    predicts: str = "eps"
    clock: str = "index"
    dropout: float = 0.0
    dtype: str = "float32"

    def __post_init__(self):
        for name in ("sample_size", "down_block_types", "up_block_types", "block_out_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists would not hash
        for name, allowed in _CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        for name, allowed in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            for block in getattr(self, name):
                check_choice(f"block in {name}", block, allowed)
        channels, levels = self.block_out_channels, len(self.block_out_channels)
        if not levels or {levels} != {len(self.down_block_types), len(self.up_block_types)}:
            raise ValueError(
                f"block_out_channels={channels}, down_block_types={self.down_block_types} and "
                f"up_block_types={self.up_block_types} must be equally many, one for each resolution"
            )
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be an integer >= {least}")
        if min(channels) < 1 or self.out_channels < self.in_channels:
            raise ValueError(
                f"block_out_channels={channels} must be >= 1, and out_channels={self.out_channels} >= "
                f"in_channels={self.in_channels}: the image comes first in what is returned"
            )
        if len(self.sample_size) != 2 or any(n < 1 or n % 2 ** (levels - 1) for n in self.sample_size):
            raise ValueError(
                f"sample_size={self.sample_size} must be (H, W), divisible by {2 ** (levels - 1)} to be halved "
                f"{levels - 1} times"
            )
        if self.time_embedding_type == "learned" and self.num_train_timesteps < 1:
            raise ValueError("time_embedding_type='learned' needs num_train_timesteps >= 1, the rows of its table")
        half = self.block_out_channels[0] // 2
        if self.time_embedding_type == "positional" and half <= self.freq_shift:
            raise ValueError(
                f"block_out_channels[0]={channels[0]} must be more than 2 freq_shift={2 * self.freq_shift}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        plan(self)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(H, W, C)`` of an image."""
        return (*self.sample_size, self.in_channels)

    @property
    def n_classes(self) -> int:
        """Number of classes that the network is told; 0: none, or labels of another kind."""
        return self.num_class_embeds if self.labels == "index" else 0

    @property
    def labels(self) -> str:
        """Kind of labels: ``"index"``, ``"timestep"``, ``"identity"``, or ``""`` if there are none."""
        return self.class_embed_type or ("index" if self.num_class_embeds else "")

    @property
    def needs_labels(self) -> bool:
        """Tells whether every image must have a label: there is none for "any"."""
        return bool(self.labels)

    @property
    def temb_dim(self) -> int:
        """Number of features of the time's embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def num_features(self) -> int:
        """Number of features that the time's embedding is made of."""
        return self.block_out_channels[0] * (2 if self.time_embedding_type == "fourier" else 1)


@dataclasses.dataclass(frozen=True)
class Unit:
    """One module of the network.

    Attributes:
      name: ours; the module is ``network.layers[name]``.
      source: the original's, dotted.
      kind: ``conv`` (3x3), ``conv1`` (1x1), ``linear``, ``fourier``, ``embedding``, ``norm``, ``block`` (residual),
        ``k_block`` (of the K blocks), ``attention``, ``down`` or ``up`` (a convolution that resamples).
      n_in, n_out: channels; rows and features of an embedding.
      groups: of the first and the second group norm; an attention without one has 0.
      scale: what sums of branches are divided by.
      resample: of a residual block: ``""``, ``down``, ``up``, ``fir_down`` or ``fir_up``.
      shortcut: of a residual block: whether a 1x1 convolution is in its shortcut.
    """

    name: str
    source: str
    kind: str
    n_in: int
    n_out: int
    groups: tuple[int, int] = (0, 0)
    scale: float = 1.0
    resample: str = ""
    shortcut: bool = False


def plan(config: UNet2DConfig) -> tuple[Unit, ...]:
    """List every module of the network, in the order in which data pass them.

    Raises:
      ValueError: for blocks that do not fit each other, or channels that group norm or attention cannot divide.
    """
    c = config
    features, temb, first = c.num_features, c.temb_dim, c.block_out_channels[0]
    units = []
    if c.time_embedding_type != "positional":
        kind, rows = ("fourier", first) if c.time_embedding_type == "fourier" else ("embedding", c.num_train_timesteps)
        units.append(Unit("time_proj", "time_proj", kind, rows, first))
    units.append(Unit("time_1", "time_embedding.linear_1", "linear", features, temb))
    units.append(Unit("time_2", "time_embedding.linear_2", "linear", temb, temb))
    if c.labels == "index":
        units.append(Unit("class", "class_embedding", "embedding", c.num_class_embeds, temb))
    elif c.labels == "timestep":
        units.append(Unit("class_1", "class_embedding.linear_1", "linear", features, temb))
        units.append(Unit("class_2", "class_embedding.linear_2", "linear", temb, temb))
    units.append(Unit("conv_in", "conv_in", "conv", c.in_channels, first))
    skips, pyramid, width = [first], 0, first
    for level, (kind, channels) in enumerate(zip(c.down_block_types, c.block_out_channels, strict=True)):
        last = level == len(c.block_out_channels) - 1
        units += _block(c, f"down_{level}", kind, [width, *[channels] * (c.layers_per_block - 1)], channels, last)
        skips += [channels] * (c.layers_per_block + (0 if last or kind == "KDownBlock2D" else 1))
        width = channels
        if "Skip" in kind and not last:
            if pyramid != level or c.in_channels != _SKIP_CHANNELS:
                raise ValueError(
                    f"{kind} in place {level}: Skip blocks take images of {_SKIP_CHANNELS} channels, and come before "
                    "all others"
                )
            pyramid = level + 1
    middle = c.norm_num_groups or groups(width)
    if c.mid_block:
        block = {"groups": (middle, middle), "scale": c.mid_block_scale_factor}
        units.append(Unit("mid_0", "mid_block.resnets.0", "block", width, width, **block))
        if c.add_attention:
            plain = middle if c.resnet_time_scale_shift == "default" else 0
            own = (c.attn_norm_num_groups or plain, 0)
            source = "mid_block.attentions.0"
            units.append(Unit("mid_attn", source, "attention", width, width, own, c.mid_block_scale_factor))
        units.append(Unit("mid_1", "mid_block.resnets.1", "block", width, width, **block))
    backwards, image = c.block_out_channels[::-1], None
    for level, (kind, channels) in enumerate(zip(c.up_block_types, backwards, strict=True)):
        last = level == len(backwards) - 1
        count = c.layers_per_block + (0 if kind == "KUpBlock2D" else 1)
        taken, skips = skips[-count:][::-1], skips[:-count]
        if kind == "KUpBlock2D":
            widths = [width + taken[0], *[channels] * (count - 1)]
            following = backwards[min(level + 1, len(backwards) - 1)]
        else:
            widths, following = (
                [old + new for old, new in zip([width, *[channels] * (count - 1)], taken, strict=True)],
                0,
            )
        units += _block(c, f"up_{level}", kind, widths, channels, last, taken, following)
        width = following or channels
        if "Skip" in kind:
            alone = last and image is None  # then it has no image to add to
            if image not in (None, level - 1) or not (alone or c.out_channels == _SKIP_CHANNELS):
                raise ValueError(
                    f"{kind} in place {level}: Skip blocks return images of {_SKIP_CHANNELS} channels, and come after "
                    "all others"
                )
            image = level
    if image is not None and image != len(backwards) - 1:
        raise ValueError(f"{c.up_block_types[image]} in place {image}: Skip blocks come after all others")
    if width != first:
        raise ValueError(f"the last block returns {width} channels, not {first}, and nothing can take them")
    units.append(Unit("norm_out", "conv_norm_out", "norm", first, first, (c.norm_num_groups or groups(first), 0)))
    units.append(Unit("conv_out", "conv_out", "conv", first, c.out_channels))
    _check(c, units)
    return tuple(units)


def _block(
    c: UNet2DConfig,
    name: str,
    kind: str,
    widths: list[int],
    channels: int,
    last: bool,
    taken: list[int] | None = None,
    following: int = 0,
) -> list[Unit]:
    """List the modules of one block: residual blocks of these widths, attention, the step to the next resolution."""
    skip, k, down = "Skip" in kind, kind.startswith("K"), taken is None
    source, units = f"{name.split('_')[0]}_blocks.{name.split('_')[1]}", []
    scale, common = (2**0.5 if skip else 1.0), c.norm_num_groups
    for i, n_in in enumerate(widths):
        n_out = following if following and i == len(widths) - 1 else channels
        if k:
            own = (n_in // _K_GROUP, channels // _K_GROUP)  # of the block, also where its last layer is narrower
        elif not skip:
            own = (common, common)
        elif kind == "AttnSkipUpBlock2D":  # the original divides the second of the two widths only
            assert taken is not None
            own = (min(n_in - taken[i] + taken[i] // 4, 32), groups(n_out))
        else:
            own = (groups(n_in), groups(n_out))
        of = "k_block" if k else "block"
        units.append(Unit(f"{name}_{i}", f"{source}.resnets.{i}", of, n_in, n_out, own, scale, "", n_in != n_out))
        if "Attn" in kind and (down or not skip):
            of_norm = (32 if skip else common, 0)
            attention = f"{source}.attentions.{i}"
            units.append(Unit(f"{name}_attn_{i}", attention, "attention", channels, channels, of_norm, scale))
    if "Attn" in kind and skip and not down:
        units.append(Unit(f"{name}_attn", f"{source}.attentions.0", "attention", channels, channels, (32, 0), scale))
    direction = "down" if down else "up"
    if last or k:
        return units
    if skip:
        own, resample = (groups(channels), groups(channels)), f"fir_{direction}"
        if down:
            shape = _SKIP_CHANNELS, channels
            units.append(Unit(f"{name}_skip", f"{source}.skip_conv", "conv1", *shape))
        else:
            units.append(Unit(f"{name}_skip_norm", f"{source}.skip_norm", "norm", channels, channels, own))
            units.append(Unit(f"{name}_skip", f"{source}.skip_conv", "conv", channels, _SKIP_CHANNELS))
        units.append(
            Unit(f"{name}_out", f"{source}.resnet_{direction}", "block", channels, channels, own, scale, resample, True)
        )
        return units
    place, attends = f"{source}.{direction}samplers.0", kind.startswith("Attn")
    chosen = c.downsample_type if down else c.upsample_type
    if kind.startswith("Resnet") or (attends and chosen == "resnet"):
        units.append(Unit(f"{name}_out", place, "block", channels, channels, (common, common), 1.0, direction))
    else:
        units.append(Unit(f"{name}_out", f"{place}.conv", direction, channels, channels))
    return units


def _check(c: UNet2DConfig, units: list[Unit]) -> None:
    for unit in units:
        if unit.kind == "attention" and c.attention_head_dim > unit.n_in:
            raise ValueError(
                f"attention_head_dim={c.attention_head_dim} is more than the {unit.n_in} channels of {unit.source}"
            )
        normed = {"block": (unit.n_in, unit.n_out), "k_block": (unit.n_in, unit.n_out)}.get(unit.kind, (unit.n_in, 0))
        for channels, count in zip(normed, unit.groups, strict=True):
            wanted = unit.kind in ("block", "k_block") or (unit.kind == "norm" and channels)
            if (count or wanted) and channels and (count < 1 or channels % count):
                raise ValueError(
                    f"{unit.source} has {channels} channels, which group norm cannot divide into {count} groups; "
                    f"norm_num_groups={c.norm_num_groups} must divide the channels of every block"
                )
