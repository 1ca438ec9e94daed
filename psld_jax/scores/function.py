"""From any function that predicts noise, data, a score or a velocity to an ``eps_fn`` on states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime.device import TimeFunction
from psld_jax._runtime.errors import check_choice
from psld_jax.sde import LinearSDE

Array = Any

#: What a network may predict.
PREDICTIONS = ("eps", "data", "score", "velocity")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FunctionScore:
    """``eps_fn`` of a function; make it with :func:`function`. A pytree whose leaves are the function's parameters.

    Attributes:
      predict: function of images ``[n, ...]`` and times ``[n]``, a pytree.
      matrices: function of time, ``[K, K + J]``: eps is ``U z + V out`` for the J blocks that are predicted; ``None``
        if it is what is predicted.
      times: from the time of the diffusion to that which the function was trained with, or ``None``.
      channels_first: whether the function takes ``[n, C, H, W]``.
    """

    predict: Any
    matrices: TimeFunction | None
    times: Any
    channels_first: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, z: blocks.State, t: Array) -> blocks.State:
        """``eps(z, t)`` for a state of arrays ``[n, H, W, C]`` and scalar ``t``; same structure and dtype.

        Raises:
          ValueError: when it is traced, if the function returns another shape.
        """
        dtype = z[0].dtype
        t = jnp.asarray(t, dtype)
        own_time = t if self.times is None else self.times(t)
        images = jnp.concatenate(z, axis=-1)
        images = jnp.moveaxis(images, -1, 1) if self.channels_first else images
        out = jnp.asarray(self.predict(images, jnp.full(len(images), own_time, dtype)), dtype)
        out = jnp.moveaxis(out, 1, -1) if self.channels_first else out
        channels = z[0].shape[-1]
        expected = len(z) if self.matrices is None else self.matrices.coefficients.shape[-1] - len(z)
        if out.shape != (*z[0].shape[:-1], expected * channels):
            raise ValueError(f"the network returns {out.shape}, not {expected} blocks of {z[0].shape}, side by side")
        parts = tuple(jnp.split(out, expected, axis=-1))
        if self.matrices is None:
            return blocks.like(z, parts)
        return blocks.like(z, blocks.apply(self.matrices(t), (*z, *parts)))


def function(
    predict: Callable[[Array, Array], Array],
    sde: LinearSDE,
    *,
    predicts: str = "eps",
    times: Callable[[Array], Array] | None = None,
    channels_first: bool = False,
) -> FunctionScore:
    """Make an ``eps_fn`` of a network that knows nothing of this library, whatever it was written with.

    With the kernel ``z_t = mu_t x_0 + L_t eps`` what is predicted is

    - ``"eps"``: the noise of all K blocks, side by side on the channel axis (for VP, of one);
    - ``"score"``: ``-L_t^-T eps`` of all blocks, the gradient of the log density;
    - ``"data"``: ``x_0``, one block: ``eps = L_t^-1 (z_t - mu_t x_0)``;
    - ``"velocity"``: ``mu_t eps - sigma_t x_0`` (Salimans & Ho, 2022), for one block.

    Args:
      predict: function of images ``[n, H, W, K C]``, the blocks side by side, and times ``[n]``, to an array of the
        same leading shape. Bind parameters by ``jax.tree_util.Partial(apply, params)``: then other ones do not
        compile again.
      sde: the diffusion it was trained for.
      predicts: see above.
      times: from the time of the diffusion, 0 to 1, to that which the network takes, e.g. ``lambda t: 999 * t``; for a
        schedule of discrete noise levels :func:`discrete_times`.
      channels_first: the network takes and returns ``[n, C, H, W]``.

    Raises:
      ValueError: for another kind of prediction, or a preconditioned or (velocity) a phase-space diffusion; and when
        the network is called, for an output of another shape.
    """
    check_choice("prediction", predicts, PREDICTIONS)
    if sde.data_std is not None:
        raise ValueError(f"{sde!r} is preconditioned: pass the diffusion itself, its eps is that of the kernel")
    k = sde.num_blocks
    if predicts == "velocity" and k != 1:
        raise ValueError(f"velocity is the prediction of a diffusion of one block, not of {k}")

    def matrices(t: Array) -> np.ndarray:
        factor, mu = sde.factor(t), sde.mean(t)
        inverse = np.linalg.inv(factor)
        if predicts == "score":
            return np.concatenate([np.zeros_like(factor), -np.swapaxes(factor, -1, -2)], axis=-1)
        if predicts == "velocity":
            return np.concatenate([factor, mu], axis=-1) / (factor**2 + mu**2)
        return np.concatenate([inverse, -inverse @ mu], axis=-1)

    return FunctionScore(
        blocks.as_pytree(predict),
        None if predicts == "eps" else TimeFunction(matrices),
        None if times is None else blocks.as_pytree(times),
        channels_first,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DiscreteTimes:
    """Time of a diffusion to the index of a discrete schedule; make it with :func:`discrete_times`."""

    log_snr: TimeFunction
    levels: Array

    def __call__(self, t: Array) -> Array:
        """Index, a real number, of the same noise level as at ``t``; any shape."""
        levels = jnp.asarray(self.levels, t.dtype)
        return jnp.interp(-self.log_snr(t), levels, jnp.arange(len(levels), dtype=t.dtype))


def discrete_times(alphas_cumprod: Sequence[float], sde: LinearSDE) -> DiscreteTimes:
    """For a network trained on levels ``alpha_bar_0 > alpha_bar_1 > ...``: the index with the noise of time ``t``.

    ``log SNR = log alpha_bar / (1 - alpha_bar)`` is the same; between two levels the index is interpolated, and outside
    of them it is the first or the last.

    Args:
      alphas_cumprod: ``[N]``, between 0 and 1, falling; diffusers' ``scheduler.alphas_cumprod``.
      sde: a diffusion of one block.

    Raises:
      ValueError: for levels that do not fall from below 1 to above 0, or a diffusion of more blocks.
    """
    levels = np.asarray(alphas_cumprod, np.float64)
    if levels.ndim != 1 or len(levels) < 2 or not (levels[0] < 1 and levels[-1] > 0 and np.all(np.diff(levels) < 0)):
        raise ValueError("alphas_cumprod must be at least two numbers that fall, below 1 and above 0")
    if sde.num_blocks != 1:
        raise ValueError(f"discrete noise levels are those of a diffusion of one block, not of {sde.num_blocks}")
    return DiscreteTimes(TimeFunction(sde.log_snr), np.log1p(-levels) - np.log(levels))
