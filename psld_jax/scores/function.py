"""Making an ``eps_fn`` on states of any function that predicts noise, data, a score or a velocity."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime.checks import check_flag
from psld_jax._runtime.device import TimeFunction
from psld_jax._runtime.errors import check_choice
from psld_jax.scores.clocks import clock
from psld_jax.sde import LinearSDE, OneBlock
from psld_jax.sde.one_block import PREDICTIONS

Array = Any

# What JAX raises for numpy, float() and if on arrays that it traces.
_UNTRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)

#: How a network wants its input, see :func:`function`.
INPUTS = ("path", "data", "unit")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash, and jax.jit asks for one
class FunctionScore:
    """``eps_fn`` of a function; make it with :func:`function`. A pytree whose leaves are the function's parameters.

    Attributes:
      predict: function of images ``[n, ...]`` and times ``[n]`` (and labels ``[n]``), a pytree.
      matrices: function of time, ``[K, K + J]``: eps is ``U z + V out`` for the J blocks that are predicted; ``None``
        if it is what is predicted.
      times: from the time of the diffusion to that which the function was trained with, or ``None``.
      scale: function of time, by which the input is multiplied, or ``None``.
      channels_first: whether the function takes ``[n, C, H, W]``.
      labels: integers ``[n]`` for a function that takes them, or ``None``.
    """

    predict: Any
    matrices: TimeFunction | None
    times: Any
    scale: TimeFunction | None
    channels_first: bool = dataclasses.field(metadata={"static": True})
    labels: Any = None

    def with_labels(self, labels: Array) -> FunctionScore:
        """Return the same score for samples of these classes, integers ``[n]``."""
        return dataclasses.replace(self, labels=jnp.asarray(labels, jnp.int32))

    def __call__(self, z: blocks.State, t: Array) -> blocks.State:
        """Return ``eps(z, t)`` for a state of arrays ``[n, H, W, C]`` and scalar ``t``; same structure and dtype.

        Raises:
          ValueError: when it is traced, if that cannot be, or the function returns another shape, or no real array.
        """
        dtype = z[0].dtype
        t = jnp.asarray(t, dtype)
        own_time = t if self.times is None else self.times(t)
        images = jnp.concatenate(z, axis=-1)
        images = images if self.scale is None else self.scale(t) * images
        images = jnp.moveaxis(images, -1, 1) if self.channels_first else images
        labels = () if self.labels is None else (self.labels,)
        try:
            out = self.predict(images, jnp.full(len(images), own_time, dtype), *labels)
        except _UNTRACED as error:
            raise ValueError(
                "the network asks for numbers of its input, which are not known while the loop around it is compiled: "
                "it must compute with jax.numpy, not numpy, and have no if on arrays; jax.pure_callback takes a "
                "network of another library"
            ) from error
        out = jnp.asarray(_checked(out), dtype)
        out = jnp.moveaxis(out, 1, -1) if self.channels_first else out
        channels = z[0].shape[-1]
        expected = len(z) if self.matrices is None else self.matrices.coefficients.shape[-1] - len(z)
        if len(z) == 1 and out.shape == (*z[0].shape[:-1], 2 * channels):
            out = out[..., :channels]  # the second half is the variance of a step of DDPM
        if out.shape != (*z[0].shape[:-1], expected * channels):
            raise ValueError(f"the network returns {out.shape}, not {expected} blocks of {z[0].shape}, side by side")
        parts = tuple(jnp.split(out, expected, axis=-1))
        if self.matrices is None:
            return blocks.like(z, parts)
        return blocks.like(z, blocks.apply(self.matrices(t), (*z, *parts)))


def _checked(out: Any) -> Any:
    """Return ``out`` if it is an array; else a ``ValueError`` says what it is and how to get at the array in it."""
    if isinstance(out, dict):
        keys = ", ".join(map(repr, out))
        raise ValueError(f"the network returns a dictionary with {keys}: wrap it in a function that returns the array")
    if hasattr(out, "sample") and not hasattr(out, "shape"):
        raise ValueError(
            f"the network returns a {type(out).__name__} with a .sample: wrap it in a function that returns that array"
        )
    if isinstance(out, (tuple, list)) or not hasattr(out, "shape"):
        raise ValueError(f"the network returns a {type(out).__name__}: wrap it in a function that returns one array")
    if jnp.iscomplexobj(out):
        raise ValueError(f"the network returns {out.dtype}: wrap it in a function that returns real numbers")
    return out


def function(
    predict: Callable[..., Array],
    sde: LinearSDE,
    *,
    predicts: str = "eps",
    times: str | Callable[[Array], Array] | None = None,
    inputs: str = "path",
    channels_first: bool = False,
) -> FunctionScore:
    """Make an ``eps_fn`` of a network that knows nothing of this library, and that JAX can trace.

    With the kernel ``z_t = mu_t x_0 + L_t eps`` what is predicted is

    - ``"eps"``: the noise of all K blocks, side by side on the channel axis (for VP, of one);
    - ``"score"``: ``-L_t^-T eps`` of all blocks, the gradient of the log density;
    - ``"data"``: ``x_0``, one block: ``eps = L_t^-1 (z_t - mu_t x_0)``;
    - ``"velocity"``: ``alpha eps - sigma x_0`` (Salimans & Ho, 2022), for one block;
    - ``"flow"``: ``dx/dt = alpha' x_0 + sigma' eps`` (Lipman et al., 2023), for one block.

    What comes out is what ``sde`` says that a network predicts (``sde.prediction``), for most the noise. A second half
    of the channels beyond those of one block is a learned variance, and is dropped.

    Args:
      predict: function of images ``[n, H, W, K C]``, the blocks side by side, and times ``[n]``, to an array of the
        same leading shape. Bind parameters by ``jax.tree_util.Partial(apply, params)``: then other ones do not
        compile again.
      sde: the diffusion it was trained for.
      predicts: see above.
      times: the network's own clock: a name (``"999 t"``, ``"index"``, ``"sigma"``, ``"log sigma / 4"``, see
        :func:`psld_jax.scores.clock`), or a function from the time of the diffusion, 0 to 1.
      inputs: what the network is given: ``"path"``, ``x_t`` as the diffusion has it; ``"data"``, ``x_t / alpha``, in
        which data keep their size; ``"unit"``, ``x_t / sqrt(alpha^2 + sigma^2)``, as a network of VP wants it.
      channels_first: the network takes and returns ``[n, C, H, W]``.

    Raises:
      ValueError: for another kind of prediction, clock or input, or a preconditioned or (velocity, flow, inputs) a
        phase-space diffusion; and when the network is called, for an output of another shape, or that is no array.
    """
    check_choice("prediction", predicts, PREDICTIONS)
    check_choice("input of the network", inputs, INPUTS)
    check_flag("channels_first", channels_first)
    if sde.data_std is not None:
        raise ValueError(f"{sde!r} is preconditioned: pass the diffusion itself, its eps is that of the kernel")
    k = sde.num_blocks
    if predicts in ("velocity", "flow") and k != 1:
        raise ValueError(f"{predicts} is the prediction of a diffusion of one block, not of {k}")
    own_time, scale = clock(times, sde), _input_scale(sde, inputs)
    same = predicts == sde.prediction
    matrices = None if same else TimeFunction(lambda t: _conversion(sde, predicts, t), knots=sde.knots)
    return FunctionScore(blocks.as_pytree(predict), matrices, own_time, scale, channels_first)


def _conversion(sde: LinearSDE, predicts: str, t: Array) -> np.ndarray:
    """Return ``[U, V] [..., K, K + J]``: what ``sde`` says that a network predicts is ``U z + V out``."""
    if isinstance(sde, OneBlock):
        return np.concatenate(sde.predicting(predicts).converted(t, sde.prediction), axis=-1)
    factor, mu = sde.factor(t), sde.mean(t)
    if predicts == "score":
        return np.concatenate([np.zeros_like(factor), -np.swapaxes(factor, -1, -2)], axis=-1)
    inverse = np.linalg.inv(factor)
    return np.concatenate([inverse, -inverse @ mu], axis=-1)


def _input_scale(sde: LinearSDE, inputs: str) -> TimeFunction | None:
    if inputs == "path":
        return None
    if not isinstance(sde, OneBlock):
        raise ValueError(f"inputs={inputs!r} scales x of one block; {sde!r} has {sde.num_blocks}, use 'path'")
    if inputs == "data":
        if not np.isfinite(sde.sigma(np.float64(1.0))):
            raise ValueError(
                f"inputs='data' is x / alpha, and alpha of {sde!r} vanishes at t = 1; use 'path' or 'unit'"
            )
        return TimeFunction(lambda t: 1 / sde.alpha(t), knots=sde.knots)
    return TimeFunction(lambda t: (sde.alpha(t) ** 2 + sde.std(t) ** 2) ** -0.5, knots=sde.knots)
