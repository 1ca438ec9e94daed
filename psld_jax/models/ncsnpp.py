"""NCSN++, the score network of Song et al. (2021) and Pandey & Mandt (2023), and its noise-conditional classifier."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from psld_jax._runtime.abstract import shapes_of
from psld_jax.models import fir, layers
from psld_jax.models.structure import Entry, NCSNppConfig, plan

Array = Any


class Encoder(nnx.Module):
    """The part that both networks share: time embedding, way down, middle. ``layers`` holds the modules by name.

    ``dropout`` below stands for the keyword arguments ``deterministic`` and ``rngs`` of the residual blocks.
    """

    def __init__(self, config: NCSNppConfig, entries: tuple[Entry, ...], rngs: nnx.Rngs):
        self.config = config
        self.act = layers.ACTIVATIONS[config.nonlinearity]
        self.layers: Any = nnx.Dict({entry.name: layers.build(entry, config, rngs) for entry in entries})

    def inputs(self, z: Array, t: Array, deterministic: bool, rngs: nnx.Rngs | None) -> tuple[Array, Array]:
        """Check ``z`` and ``t``, and return them in the dtypes of the activations and the parameters; ``t [n or 1]``.

        Raises:
          ValueError: for shapes other than ``[n, H, W, in_ch]`` and ``[n]``, ``[1]`` or a scalar; dropout without
            ``rngs``.
        """
        c = self.config
        if z.ndim != 4 or z.shape[1:] != (*c.shape, c.in_ch):
            raise ValueError(f"z has shape {z.shape}, expected [n, {c.shape[0]}, {c.shape[1]}, {c.in_ch}]")
        if jnp.shape(t) not in ((), (1,), (len(z),)):
            raise ValueError(f"t has shape {jnp.shape(t)}, expected a scalar or [{len(z)}]")
        if not deterministic and rngs is None and c.dropout > 0:
            raise ValueError("deterministic=False draws dropout masks: pass rngs=nnx.Rngs(dropout=seed)")
        dtype = jnp.bfloat16 if c.dtype == "bfloat16" else self.param_dtype
        return z.astype(dtype), jnp.reshape(jnp.asarray(t, self.param_dtype), (-1,))

    @property
    def param_dtype(self) -> Any:
        """float32, unless the parameters have been cast."""
        return self.layers["stem"].kernel.dtype

    def embed(self, t: Array) -> Array | None:
        """Embed ``time_scale t`` as ``[n, 4 nf]``, for ``t [n]``; return ``None`` without noise conditioning."""
        if not self.config.noise_cond:
            return None
        t = self.config.time_scale * t
        if self.config.embedding_type == "fourier":
            h = self.layers["fourier"](jnp.log(t))
        else:
            h = layers.positional(t, self.config.nf)
        return self.layers["temb_1"](self.act(self.layers["temb_0"](h)))

    def down(self, z: Array, temb: Array | None, **dropout: Any) -> list[Array]:
        """Run the way down; return the activations that the way up will take, those of the lowest resolution last.

        ``z [n, H, W, C]`` and ``temb [n, 4 nf]`` to a list of ``[n, H', W', C']``.
        """
        c = self.config
        pyramid, skips = z, [self.layers["stem"](z)]
        for level in range(c.levels):
            for i in range(c.num_res_blocks):
                h = self.layers[f"down_{level}_block_{i}"](skips[-1], temb, **dropout)
                if f"down_{level}_attn_{i}" in self.layers:
                    h = self.layers[f"down_{level}_attn_{i}"](h)
                skips.append(h)
            if level < c.levels - 1:
                h = self.resample(f"down_{level}_resample", skips[-1], temb, **dropout)
                if c.progressive_input == "input_skip":
                    pyramid = fir.downsample_2d(pyramid, c.taps)
                    h = self.layers[f"down_{level}_combine"](pyramid, h)
                elif c.progressive_input == "residual":
                    pyramid = self.layers[f"down_{level}_pyramid"](pyramid)
                    pyramid = h = layers.merge(pyramid, h, c.skip_rescale)
                skips.append(h)
        return skips

    def middle(self, h: Array, temb: Array | None, **dropout: Any) -> Array:
        """Run block, attention, block at the lowest resolution, ``[n, H, W, C]`` to the same."""
        h = self.layers["mid_block_0"](h, temb, **dropout)
        h = self.layers["mid_attn"](h)
        return self.layers["mid_block_1"](h, temb, **dropout)

    def resample(self, name: str, h: Array, temb: Array | None, **dropout: Any) -> Array:
        """Step between two resolutions: by a residual block for ``biggan``, by a plain layer for ``ddpm``.

        ``[n, H, W, C]`` to twice or half of height and width.
        """
        if self.config.resblock_type == "biggan":
            return self.layers[name](h, temb, **dropout)
        return self.layers[name](h)


class NCSNpp(Encoder):
    """The score network ``eps(z, t)``: NCSN++, a U-Net with optional input and output pyramids.

    Song et al. (2021), appendix H. The network is :func:`psld_jax.models.plan` built in order; compute dtype is
    ``config.dtype``. Fourier frequencies are :class:`psld_jax.models.Frozen`, all other arrays ``nnx.Param``.

    Args:
      config: the options, :class:`psld_jax.models.NCSNppConfig`.
      rngs: stream ``params`` initialises.
    """

    def __init__(self, config: NCSNppConfig, *, rngs: nnx.Rngs):
        super().__init__(config, plan(config), rngs)

    def __call__(
        self,
        z: Array,
        t: Array,
        labels: Array | None = None,
        *,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        """Return the predicted noise.

        Args:
          z: the state, channels ``[x, m]``, ``[n, H, W, in_ch]``.
          t: forward time in (0, 1], a scalar or ``[n]``.
          labels: integers ``[n]`` below ``num_labels``, or ``num_labels`` for any; ``None``: any for all.
          deterministic: ``False`` applies dropout.
          rngs: stream ``dropout``, where dropout is applied.

        Returns:
          float32 (the parameters' dtype) ``[n, H, W, returned_ch]``: ``out_ch``, or ``in_ch``
          with ``progressive="output_skip"``.

        Raises:
          ValueError: for a wrong shape, dropout without ``rngs``, or labels that the network does not take.
        """
        c, dropout = self.config, {"deterministic": deterministic, "rngs": rngs}
        z, t = self.inputs(z, t, deterministic, rngs)
        temb = self.embed(t)
        if c.num_labels:
            labels = jnp.full(len(z), c.num_labels) if labels is None else labels
            temb = temb + self.layers["labels"](labels)
        elif labels is not None:
            raise ValueError("the network has num_labels=0 and takes no labels")
        skips = self.down(z, temb, **dropout)
        h = self.middle(skips[-1], temb, **dropout)
        pyramid = None
        for level in reversed(range(c.levels)):
            for i in range(c.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self.layers[f"up_{level}_block_{i}"](h, temb, **dropout)
            if f"up_{level}_attn" in self.layers:
                h = self.layers[f"up_{level}_attn"](h)
            if c.progressive == "output_skip":
                image = self.head(f"up_{level}", h)
                pyramid = image if pyramid is None else fir.upsample_2d(pyramid, c.taps) + image
            elif c.progressive == "residual" and pyramid is None:
                pyramid = self.head(f"up_{level}", h).astype(h.dtype)
            elif c.progressive == "residual":
                pyramid = self.layers[f"up_{level}_pyramid"](pyramid)
                pyramid = h = layers.merge(pyramid, h, c.skip_rescale)
            if level > 0:
                h = self.resample(f"up_{level}_resample", h, temb, **dropout)
        return pyramid if c.progressive == "output_skip" else self.head("out", h)

    def head(self, name: str, h: Array) -> Array:
        """Run norm, act, 3x3 convolution, in the dtype of the parameters so that the output is not rounded.

        ``[n, H, W, C]`` to ``[n, H, W, D]``.
        """
        h = self.act(self.layers[f"{name}_norm"](h.astype(self.param_dtype)))
        return self.layers[f"{name}_conv"](h)


class NCSNppClassifier(Encoder):
    """The classifier ``p(y | z, t)``: way down and middle of NCSN++, then one linear layer without bias.

    Pandey & Mandt (2023), class-conditional sampling. The last activation is flattened in the order C, H, W, so that
    the original's weights fit as they are (transposed).

    Args:
      config: the options; ``out_ch`` is ignored and ``progressive`` must be ``none``.
      n_classes: number of logits.
      rngs: stream ``params`` initialises.

    Raises:
      ValueError: for fewer than one class, or with an output pyramid.
    """

    def __init__(self, config: NCSNppConfig, n_classes: int, *, rngs: nnx.Rngs):
        super().__init__(config, plan(config, n_classes), rngs)

    def __call__(self, z: Array, t: Array, *, deterministic: bool = True, rngs: nnx.Rngs | None = None) -> Array:
        """Return logits ``[n, n_classes]`` in the parameters' dtype; arguments and errors as for :class:`NCSNpp`."""
        dropout = {"deterministic": deterministic, "rngs": rngs}
        z, t = self.inputs(z, t, deterministic, rngs)
        temb = self.embed(t)
        h = self.middle(self.down(z, temb, **dropout)[-1], temb, **dropout)
        h = jnp.transpose(h, (0, 3, 1, 2)).reshape(len(h), -1)
        return self.layers["classifier"](h.astype(self.param_dtype))


def abstract(config: NCSNppConfig, n_classes: int | None = None) -> NCSNpp | NCSNppClassifier:
    """Make the score network, or the classifier if ``n_classes`` is given, with shapes in place of arrays."""
    if n_classes is None:
        return shapes_of(lambda rngs: NCSNpp(config, rngs=rngs))
    return shapes_of(lambda rngs: NCSNppClassifier(config, n_classes, rngs=rngs))
