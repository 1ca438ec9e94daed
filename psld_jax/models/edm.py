"""EDM's networks: ``D(x, sigma)``, the expected image, preconditioned in four ways (Karras et al., 2022)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psld_jax._runtime.abstract import shapes_of
from psld_jax.models.edm_plan import EDMConfig, plan
from psld_jax.models.families import register
from psld_jax.models.layers import Frozen
from psld_jax.models.unet import UNet

Array = Any


def iddpm_levels(num_steps: int, c_1: float, c_2: float) -> np.ndarray:
    """Return the noise levels ``u`` of the discrete process of improved DDPM, falling to 0, float64 ``[M + 1]``.

    ``u_{j-1} = sqrt((u_j^2 + 1) / max(a_{j-1} / a_j, c_1) - 1)``, ``a_j = sin^2(pi j / (2 M (c_2 + 1)))`` (Karras et
    al., 2022, table 1).
    """
    a = np.sin(0.5 * np.pi * np.arange(num_steps + 1) / num_steps / (c_2 + 1)) ** 2
    u = np.zeros(num_steps + 1)
    for j in range(num_steps, 0, -1):
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(a[j - 1] / a[j], c_1) - 1)
    return u


@register("edm")
class EDM(nnx.Module):
    """``D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)``, the expected image under noise of that level.

    Karras et al. (2022), table 1. With ``s = sigma``, ``d = sigma_data``:

    - ``edm``: ``c_skip = d^2 / (s^2 + d^2)``, ``c_out = s d / sqrt(s^2 + d^2)``, ``c_in = 1 / sqrt(s^2 + d^2)``,
      ``c_noise = ln(s) / 4``;
    - ``vp``: 1, ``-s``, ``1 / sqrt(s^2 + 1)``, ``(M - 1) t(s)`` where ``s^2 + 1 = exp(beta_d t^2 / 2 + beta_min t)``;
    - ``ve``: 1, ``s``, 1, ``ln(s / 2)``;
    - ``iddpm``: 1, ``-s``, ``1 / sqrt(s^2 + 1)``, ``M - 1 - j`` for the nearest level ``u_j``; of the output the first
      half of the channels is used.

    All arrays are ``nnx.Param`` but Fourier frequencies and the levels ``u``, which are
    :class:`psld_jax.models.Frozen`.

    Args:
      config: the options.
      rngs: stream ``params`` initialises.
    """

    options = EDMConfig

    def __init__(self, config: EDMConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.model = UNet(config, rngs=rngs)
        levels = iddpm_levels(config.num_steps, config.c_1, config.c_2) if config.precondition == "iddpm" else None
        self.u = None if levels is None else Frozen(jnp.asarray(levels, jnp.float32))

    def round_sigma(self, sigma: Array) -> tuple[Array, Array]:
        """Return the trained levels nearest to ``sigma [...]``, and their indices in ``u``.

        Only ``iddpm`` has such a table.

        Raises:
          ValueError: for another kind of preconditioning, which takes every level.
        """
        if self.u is None:
            raise ValueError(f"precondition={self.config.precondition!r} takes every noise level; 'iddpm' has a table")
        u = self.u[...]
        index = jnp.argmin(jnp.abs(jnp.asarray(sigma, u.dtype)[..., None] - u), axis=-1)
        return u[index], index

    def scalings(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        """Return ``c_skip, c_out, c_in, c_noise`` at ``sigma [n]``, ``[n]`` each, in its dtype."""
        c, one = self.config, jnp.ones_like(sigma)
        if c.precondition == "edm":
            total = sigma**2 + c.sigma_data**2
            root = jnp.sqrt(total)
            return c.sigma_data**2 / total, sigma * c.sigma_data / root, 1 / root, jnp.log(sigma) / 4
        if c.precondition == "ve":
            return one, sigma, one, jnp.log(sigma / 2)
        c_in = jax.lax.rsqrt(sigma**2 + 1)
        if c.precondition == "vp":
            # The root of the quadratic without a difference of equal numbers, which the original loses digits by.
            log = 2 * jnp.log1p(sigma**2)
            t = log / (jnp.sqrt(c.beta_min**2 + c.beta_d * log) + c.beta_min)
            return one, -sigma, c_in, (c.num_steps - 1) * t
        return one, -sigma, c_in, (c.num_steps - 1 - self.round_sigma(sigma)[1]).astype(sigma.dtype)

    def __call__(
        self,
        x: Array,
        sigma: Array,
        labels: Array | None = None,
        augment_labels: Array | None = None,
        *,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        """Return the expected image ``E[x_0 | x_0 + sigma n = x]``.

        Args:
          x: noisy images ``[n, H, W, C]``.
          sigma: noise levels > 0, a scalar or ``[n]``.
          labels: integers ``[n]`` below ``label_dim``, or ``label_dim`` for none; or numbers ``[n, label_dim]``, as a
            rule one-hot. ``None``: none for all. A network without labels takes no notice of them.
          augment_labels: ``[n, augment_dim]``, how the images were changed, or ``None``.
          deterministic: ``False`` applies dropout, and leaves out labels as ``label_dropout`` says.
          rngs: stream ``dropout``, where something is left out.

        Returns:
          float32 (the parameters' dtype) ``[n, H, W, C]``.

        Raises:
          ValueError: for a wrong shape, dropout without ``rngs``, or augmentation that the network does not take.
        """
        out = self.raw(x, sigma, labels, augment_labels, deterministic=deterministic, rngs=rngs)
        dtype = self.model.param_dtype
        c_skip, c_out, *_ = self.scalings(jnp.reshape(jnp.asarray(sigma, dtype), (-1, 1, 1, 1)))
        return c_skip * x.astype(dtype) + c_out * out[..., : self.config.channels]

    def raw(
        self,
        x: Array,
        sigma: Array,
        labels: Array | None = None,
        augment_labels: Array | None = None,
        *,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        """Return what the network inside gives, ``F(c_in x, c_noise)``, ``[n, H, W, out_channels]``.

        Arguments are those of a call.

        Raises:
          ValueError: as for a call.
        """
        c, dtype = self.config, self.model.param_dtype
        if x.ndim != 4 or x.shape[1:] != c.image_shape:
            raise ValueError(f"x has shape {x.shape}, expected [n, {', '.join(map(str, c.image_shape))}]")
        if jnp.shape(sigma) not in ((), (1,), (len(x),)):
            raise ValueError(f"sigma has shape {jnp.shape(sigma)}, expected a scalar or [{len(x)}]")
        if not deterministic and rngs is None and (c.dropout > 0 or (c.label_dropout > 0 and c.label_dim)):
            raise ValueError("deterministic=False draws what to leave out: pass rngs=nnx.Rngs(dropout=seed)")
        told, augment = self._labels(labels, len(x)), self._augment(augment_labels, len(x))
        if told is not None and c.label_dropout and not deterministic:
            assert rngs is not None
            kept = jax.random.uniform(rngs.dropout(), (len(x), 1), jnp.float32) >= c.label_dropout
            told = told * kept.astype(told.dtype)
        _, _, c_in, c_noise = self.scalings(jnp.reshape(jnp.asarray(sigma, dtype), (-1,)))
        inside = c_in[:, None, None, None] * x.astype(dtype)
        inside = inside.astype(jnp.bfloat16 if c.dtype == "bfloat16" else dtype)
        return self.model(inside, c_noise, told, augment, deterministic=deterministic, rngs=rngs)

    def _labels(self, labels: Array | None, n: int) -> Array | None:
        """Return labels ``[n, label_dim]``, or ``[1, label_dim]`` for none; ``None`` for a network without labels."""
        classes, dtype = self.config.label_dim, self.model.param_dtype
        if not classes:
            return None
        if labels is None:
            return jnp.zeros((1, classes), dtype)
        labels = jnp.asarray(labels)
        if labels.shape in ((), (n,), (1,)) and jnp.issubdtype(labels.dtype, jnp.integer):
            return jax.nn.one_hot(jnp.reshape(labels, (-1,)), classes, dtype=dtype)  # label_dim itself: a row of zeros
        if labels.shape not in ((n, classes), (1, classes)):
            raise ValueError(f"labels {labels.dtype} {labels.shape} must be integers [{n}] or numbers [{n}, {classes}]")
        return labels.astype(dtype)

    def _augment(self, augment: Array | None, n: int) -> Array | None:
        size = self.config.augment_dim
        if augment is None:
            return None
        if not size or jnp.shape(augment) not in ((n, size), (1, size)):
            raise ValueError(f"augment_labels have shape {jnp.shape(augment)}, this network takes [{n}, {size}]")
        return jnp.asarray(augment, self.model.param_dtype)


@dataclasses.dataclass(frozen=True)
class SourceArray:
    """The place in our network of one array of the original.

    Attributes:
      source: its name in the state dict, ``model.enc.16x16_block0.conv0.weight``.
      source_shape: its shape there.
      path: ours, as in ``nnx.to_flat_state(nnx.state(network))``.
      shape: its shape here.
      heads: for the joint layer of queries, keys and values, the number of heads; else 0.
    """

    source: str
    source_shape: tuple[int, ...]
    path: tuple[str, ...]
    shape: tuple[int, ...]
    heads: int = 0

    def convert(self, array: np.ndarray) -> np.ndarray:
        """Bring the original's array, of ``source_shape``, into our layout, of shape ``shape``.

        Its queries, keys and values alternate; ours follow one another.
        """
        if self.heads:
            rest = array.shape[1:]
            array = array.reshape(self.heads, -1, 3, *rest)
            array = np.moveaxis(array, 2, 0).reshape(-1, *rest)
        if array.ndim > 1:
            array = np.moveaxis(array, (0, 1), (-1, -2))
        return array.reshape(self.shape)

    def invert(self, array: np.ndarray) -> np.ndarray:
        """Bring our array ``[...]`` into the original's layout, of ``source_shape``: the inverse of :meth:`convert`."""
        if len(self.source_shape) > 1:
            array = np.moveaxis(array, (-1, -2), (0, 1)).reshape(self.source_shape)
        if self.heads:
            rest = array.shape[1:]
            array = array.reshape(3, self.heads, -1, *rest)
            array = np.moveaxis(array, 0, 2).reshape(-1, *rest)
        return array


#: Our 1x1 convolutions, whose kernels the original keeps as ``[out, in, 1, 1]``.
_POINTWISE = ("skip", "qkv", "proj")
_LEAVES = {"kernel": "weight", "scale": "weight"}


@functools.lru_cache(maxsize=8)
def source_arrays(config: EDMConfig) -> tuple[SourceArray, ...]:
    """List all arrays of the network but the filters of resampling, each once on either side. Nothing is allocated."""
    network = shapes_of(lambda rngs: EDM(config, rngs=rngs))
    flat = [(tuple(map(str, path)), leaf.shape) for path, leaf in nnx.to_flat_state(nnx.state(network))]
    ways = zip(("enc", "dec"), plan(config), strict=True)
    heads = {(way, piece.name): piece.heads for way, pieces in ways for piece in pieces}
    return tuple(_source_array(path, shape, heads) for path, shape in flat)


def _source_array(path: tuple[str, ...], shape: tuple[int, ...], heads: dict[tuple[str, str], int]) -> SourceArray:
    *modules, leaf = path
    laid_out = shape
    if leaf == "kernel":
        pointwise = modules[-1] in _POINTWISE or modules[-1].endswith("aux_skip")
        laid_out = (shape[-1], shape[-2], *(shape[:-2] if len(shape) == 4 else (1, 1) * pointwise))
    count = heads[modules[-3], modules[-2]] if modules[-1:] == ["qkv"] else 0
    return SourceArray(".".join((*modules, _LEAVES.get(leaf, leaf))), laid_out, path, shape, count)


def filters(config: EDMConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Return the resampling filters in the original's state dict, by name: float32 ``[1, 1, taps, taps]``."""
    taps = np.asarray(config.taps, np.float32)
    kernel = (np.outer(taps, taps) / taps.sum() ** 2)[None, None]
    for way, pieces in zip(("enc", "dec"), plan(config), strict=True):
        for piece in pieces:
            if piece.resample:
                names = ("conv0.", "skip.") if piece.kind == "block" else ("",)
                for name in names:
                    yield f"model.{way}.{piece.name}.{name}resample_filter", kernel
