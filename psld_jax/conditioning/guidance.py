"""Guidance: an ``eps_fn`` plus the gradient of a log-likelihood, or a mixture of two of them.

``score(z | y) = score(z) + grad log p(y | z, t)`` (Bayes). A sampler asks for eps, so the gradient is written in eps:
every integrator takes it, and nothing in the tables changes. Measurements are in
:mod:`psld_jax.conditioning.measurements`, weights that vary with time in :mod:`psld_jax.conditioning.weights`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psld_jax import blocks
from psld_jax._runtime.device import TimeFunction
from psld_jax._runtime.errors import check_callable, check_choice, shown
from psld_jax.conditioning.weights import Weight, as_rescale, rescaled, weight_of
from psld_jax.sde import LinearSDE, OneBlock, check_sde

Array = Any

CLASSIFIER_TIMES = ("forward", "original")
# A signal-to-noise ratio below which guidance fades out, on paths whose signal vanishes: that at which EDM starts.
_NO_SIGNAL = 80.0**-2


def gradient_matrix(sde: LinearSDE, t: Array) -> np.ndarray:
    """Return ``W_t [..., K, K]`` such that ``eps + W g`` is the eps of ``score + g``.

    ``W = C^-1 = -L^T``. A preconditioned network predicts one block, and its score can only move along
    ``Sigma^-1 mu``, as the score of any law of ``x_0`` does (a condition moves ``E[x_0 | z]`` and nothing else): then
    ``g`` is projected there, ``a = mu^T g / (mu^T Sigma^-1 mu)``, which is exact for an exact ``g``.
    """
    if isinstance(sde, OneBlock):
        # C^-1 = -sigma / e; without a signal it is infinite, and a condition cannot be felt through z: there W is 0.
        alpha, std = sde.alpha(t), sde.std(t)
        floor = _NO_SIGNAL if sde.alpha(np.float64(1.0)) < 1e-3 else 0.0
        shift = alpha * std**2 / (alpha**2 + floor * std**2)  # of x_0, for a change of the score
        return (sde.target(t)[0] * shift)[..., None, None]
    if sde.data_std is None:
        return -np.swapaxes(sde.factor(t), -1, -2)
    snr = sde.snr(t)[..., None, None]
    row = np.swapaxes(sde.mean(t), -1, -2) / snr * (sde.data_std**-2 + snr) ** 0.5
    return np.concatenate([row, np.zeros((*np.shape(t), sde.num_blocks - 1, sde.num_blocks))], axis=-2)


def pushed(
    eps: blocks.State, gradient: blocks.State, matrix: Array, weight: Array, rescale: Array | None
) -> blocks.State:
    """Return ``eps + weight W g``, its standard deviation set to that of weight 1 as ``rescale`` says.

    Leaves ``[n, ...]``, a matrix ``[K, K]`` and a scalar weight; same structure and dtype.
    """
    out = blocks.add(eps, blocks.apply(weight.astype(matrix.dtype) * matrix, gradient))
    return out if rescale is None else rescaled(out, blocks.add(eps, blocks.apply(matrix, gradient)), rescale)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash, and jax.jit asks for one
class ClassifierGuided:
    """Guidance by a noise-conditional classifier (Dhariwal & Nichol, 2021); make it with :func:`classifier_guided`."""

    eps_fn: Any
    logits_fn: Any
    labels: Array
    weight: Weight
    matrix: TimeFunction
    rescale: Array | None
    time: str = dataclasses.field(metadata={"static": True})

    def bind(self, eps_fn: Any, own: dict[str, Array]) -> ClassifierGuided:
        """The same around another ``eps_fn``, with the classes ``own["labels"]``, integers ``[n]``."""
        return dataclasses.replace(self, eps_fn=blocks.as_pytree(eps_fn), labels=own["labels"])

    def __call__(self, z: blocks.State, t: Array) -> blocks.State:
        """Return ``eps(z, t) + w(t) W_t grad_z log p(labels | z, t)``.

        For a state of arrays ``[n, H, W, C]`` and scalar ``t``; same structure and dtype. Where the weight is 0 the
        classifier is not asked.

        Raises:
          ValueError: when it is traced, for another number of labels than samples.
        """

        def log_likelihood(z: blocks.State) -> Array:
            logits = self.logits_fn(z, t if self.time == "forward" else 1 - t)
            if len(self.labels) not in (1, len(logits)):
                # They would be broadcast, and every sample be guided towards all of them at once.
                raise ValueError(
                    f"{len(self.labels)} labels for a state of {len(logits)} samples: psld_jax.sample_ode tells them "
                    "apart with step_control='batch' alone, psld_jax.generate always"
                )
            return jnp.take_along_axis(jax.nn.log_softmax(logits), self.labels[:, None], axis=-1).sum()

        weight = self.weight(t)

        def guided(eps: blocks.State) -> blocks.State:
            matrix = self.matrix(jnp.asarray(t, z[0].dtype)).astype(z[0].dtype)
            return pushed(eps, jax.grad(log_likelihood)(z), matrix, weight, self.rescale)

        eps = blocks.like(z, self.eps_fn(z, t))
        return jax.lax.cond(weight != 0, guided, lambda eps: eps, eps) if self.weight.limited else guided(eps)


def classifier_guided(
    eps_fn: Callable[..., Any],
    logits_fn: Callable[..., Any],
    sde: LinearSDE,
    labels: Array,
    scale: float | Weight = 1.0,
    time: str = "forward",
    *,
    rescale: float = 0.0,
) -> ClassifierGuided:
    """Make the ``eps_fn`` of ``p(z | y)``, ``grad log p(z | y) = score + scale grad log p(y | z, t)``.

    One evaluation of the network and one forward and backward pass of the classifier.

    Args:
      eps_fn: of the unconditional law.
      logits_fn: ``logits_fn(z, t)``, ``[n, n_classes]``, of a classifier of states of the same diffusion.
      sde: the diffusion, preconditioned if the network is.
      labels: integers ``[n]``, one for each sample.
      scale: 1 is Bayes' rule; more makes samples more typical and less diverse. A weight that varies with time is
        ``weight_of(scale, 0.0, ...)``.
      time: ``"forward"``, or ``"original"``: the classifier is asked at ``1 - t``, as the original does by mistake.
      rescale: how much of the standard deviation of ``scale = 1`` is kept, 0 to 1 (:func:`rescaled`).

    Raises:
      ValueError: for another ``time``, labels that are no whole numbers ``[n]``, or a scale or ``rescale`` out of
        range.
    """
    check_choice("classifier time", time, CLASSIFIER_TIMES)
    check_sde(sde)
    check_callable("eps_fn", eps_fn)
    check_callable("logits_fn", logits_fn)
    matrix = TimeFunction(lambda t: gradient_matrix(sde, t), knots=sde.knots)
    fns = blocks.as_pytree(eps_fn), blocks.as_pytree(logits_fn)
    return ClassifierGuided(*fns, _as_labels(labels), weight_of(scale, 0.0), matrix, as_rescale(rescale), time)


def _as_labels(labels: Array) -> Array:
    """Return labels as an array; raise a ``ValueError`` unless they are whole numbers ``[n]``, or are traced."""
    if not isinstance(labels, Tracer):
        try:
            values = np.asarray(labels)
        except ValueError:
            values = np.zeros(0)
        if values.ndim != 1 or values.dtype.kind not in "iu" or not values.size:
            raise ValueError(f"labels={shown(labels)} must be whole numbers [n], one for each sample")
    return jnp.asarray(labels)


def _mixed(positive: Any, negative: Any, weight: Weight, rescale: Array | None, z: blocks.State, t: Array) -> Any:
    """Return ``negative + w (positive - negative)``, or ``positive`` where the weight is 1; a state like ``z``."""
    t = jnp.asarray(t, z[0].dtype)
    good, value = positive(z, t), weight(t)

    def guided() -> blocks.State:
        scale = value.astype(z[0].dtype)
        return rescaled(jax.tree.map(lambda a, b: b + scale * (a - b), good, negative(z, t)), good, rescale)

    return jax.lax.cond(value != 1, guided, lambda: good)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash, and jax.jit asks for one
class ClassifierFree:
    """Guidance by the difference that a label makes (Ho & Salimans, 2022); make it with :func:`classifier_free`."""

    with_label: Any
    without: Any
    weight: Weight
    rescale: Array | None

    def bind(self, eps_fn: Any, own: dict[str, Array]) -> ClassifierFree:
        """The same around another ``eps_fn``, with the classes ``own["labels"]``, integers ``[n]``."""
        told, free = blocks.as_pytree(eps_fn.with_labels(own["labels"])), blocks.as_pytree(eps_fn)
        return dataclasses.replace(self, with_label=told, without=free)

    def __call__(self, z: blocks.State, t: Array) -> blocks.State:
        """Return ``eps(z, t) + w(t) (eps(z, t, label) - eps(z, t))``, or ``eps(z, t, label)`` where the weight is 1.

        For a state of arrays ``[n, H, W, C]`` and scalar ``t``; same structure and dtype.
        """
        return _mixed(self.with_label, self.without, self.weight, self.rescale, z, t)


def classifier_free(
    eps_fn: Any,
    labels: Array,
    scale: float | Weight = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    *,
    rescale: float = 0.0,
) -> Any:
    """Make the ``eps_fn`` of ``p(z) (p(z | y) / p(z))^scale`` for a network that takes labels.

    Two evaluations of the network, or one outside of ``interval`` and for scale 1.

    Args:
      eps_fn: a :class:`psld_jax.scores.NetworkScore` of a network trained with labels, some of them dropped.
      labels: integers ``[n]``.
      scale: 1 is the law of the label, 0 the unconditional one; or a weight that varies with time, ``weight_of(...)``.
      interval: forward times between which the guidance acts; a weight has its own.
      rescale: how much of the standard deviation of the label's prediction is kept, 0 to 1 (Lin et al., 2024).

    Raises:
      ValueError: for a network that takes no labels, a scale other than 1 of one that was never trained without
        labels, as those of diffusers, or a scale, interval or ``rescale`` out of range.
    """
    if not hasattr(eps_fn, "with_labels"):
        raise ValueError(f"eps_fn={shown(eps_fn)} takes no labels: it has no with_labels")
    weight, part = weight_of(scale, interval=interval), as_rescale(rescale)
    if getattr(eps_fn, "needs_labels", False):
        if weight.limited or float(weight.scale) != 1:
            told = f"{float(weight.scale):g}"
            raise ValueError(f"guidance={told} needs a network that was also trained without labels: it must be 1")
        return eps_fn.with_labels(labels)
    told, free = blocks.as_pytree(eps_fn.with_labels(labels)), blocks.as_pytree(eps_fn)
    return ClassifierFree(told, free, weight, part)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash, and jax.jit asks for one
class Autoguided:
    """Guidance by the difference to a worse network (Karras et al., 2024); make it with :func:`autoguided`."""

    eps_fn: Any
    negative: Any
    weight: Weight
    rescale: Array | None
    labelled: bool = dataclasses.field(metadata={"static": True})

    def bind(self, eps_fn: Any, own: dict[str, Array]) -> Autoguided:
        """Wrap another ``eps_fn``; both are told the classes ``own["labels"]``, integers ``[n]``, if there are any."""
        good, bad = eps_fn, self.negative
        if "labels" in own:
            good = good.with_labels(own["labels"])
            bad = bad.with_labels(own["labels"]) if self.labelled else bad
        return dataclasses.replace(self, eps_fn=blocks.as_pytree(good), negative=blocks.as_pytree(bad))

    def __call__(self, z: blocks.State, t: Array) -> blocks.State:
        """Return ``negative(z, t) + w(t) (eps(z, t) - negative(z, t))``, or ``eps(z, t)`` where the weight is 1.

        For a state of arrays ``[n, H, W, C]`` and scalar ``t``; same structure and dtype.
        """
        return _mixed(self.eps_fn, self.negative, self.weight, self.rescale, z, t)


def autoguided(
    eps_fn: Any, negative: Any, scale: float | Weight = 2.0, *, labels: Array | None = None, rescale: float = 0.0
) -> Autoguided:
    """Make the ``eps_fn`` of a network guided away from a worse one: ``negative + scale (eps - negative)``.

    Karras et al., "Guiding a diffusion model with a bad version of itself", 2024. Both networks err in the same
    direction, and the worse one errs more, so the difference points to the truth. This takes one evaluation of each
    network, or of the better one alone where the scale is 1.

    Args:
      eps_fn: of the network.
      negative: of a worse one of the same diffusion and prediction: smaller, or trained less.
      scale: 1 is the network, 0 the worse one; or a weight that varies with time, ``weight_of(...)``.
      labels: integers ``[n]`` for networks that take them, or ``None``; a worse one without labels is asked without.
      rescale: how much of the standard deviation of the network's prediction is kept, 0 to 1 (Lin et al., 2024).

    Raises:
      ValueError: for a scale or ``rescale`` out of range, labels that are no whole numbers ``[n]``, or labels of a
        network that takes none.
    """
    check_callable("eps_fn", eps_fn)
    check_callable("negative", negative)
    if labels is not None and not hasattr(eps_fn, "with_labels"):
        raise ValueError("labels have no effect: eps_fn takes none (it has no with_labels)")
    labelled = hasattr(negative, "with_labels")
    made = Autoguided(
        blocks.as_pytree(eps_fn), blocks.as_pytree(negative), weight_of(scale), as_rescale(rescale), labelled
    )
    return made if labels is None else made.bind(eps_fn, {"labels": _as_labels(labels)})
