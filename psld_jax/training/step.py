"""One step of training, and one step on held-out images: pure functions of the state, to be jitted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from psld_jax.models import NCSNpp, NCSNppClassifier
from psld_jax.models.layers import SUM
from psld_jax.training import losses, optim

Array = Any


class Weights(NamedTuple):
    """The arrays of a network.

    Attributes:
      params: what is trained.
      frozen: what is not (Fourier frequencies).
    """

    params: Any
    frozen: Any

    def as_dict(self) -> dict[str, Any]:
        """Return all arrays as a nested dict, as :func:`psld_jax.checkpoints.directory.read_training` does."""
        return nnx.to_pure_dict(nnx.merge_state(self.params, self.frozen))

    def updated(self, tree: dict[str, Any]) -> Weights:
        """Return the same structure with the arrays of a nested dict."""
        state = jax.tree.map(lambda leaf: leaf, nnx.merge_state(*self))  # a copy: arrays are replaced in place
        nnx.replace_by_pure_dict(state, tree)
        return Weights(*nnx.split_state(state, nnx.Param, ...))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes. It is donated to the step.

    Attributes:
      step: steps done, a scalar.
      online: the weights that are trained.
      ema: their moving average, or ``None``.
      optimizer: the state of the optimiser.
    """

    step: Array
    online: Weights
    ema: Weights | None
    optimizer: Any


def create_state(net: nnx.Module, transformation: optax.GradientTransformation, ema: bool) -> TrainState:
    """Make the state before the first step. The EMA starts at the initial weights."""
    _, params, frozen = nnx.split(net, nnx.Param, ...)
    online = Weights(params, frozen)
    copy = jax.tree.map(jnp.copy, online) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), online, copy, transformation.init(params))


def keep_sums(network: Callable[..., Array]) -> Callable[..., Array]:
    """Return the same function, for whose gradient only sums of branches are kept. The rest is computed again.

    For NCSN++ on images ``[n, H, W, C]`` and times ``[n]``. XLA for CPUs gains little by it: it computes them early.
    """
    return jax.checkpoint(network, policy=jax.checkpoint_policies.save_only_these_names(SUM))


def make_train_step(
    net: nnx.Module,
    loss: losses.ScoreLoss | losses.ClassifierLoss,
    transformation: optax.GradientTransformation,
    rate: optax.Schedule,
    *,
    ema_decay: float = 0.9999,
    ema_warmup: bool = False,
    accumulate: int = 1,
    label_dropout: float = 0.0,
    remat: bool = False,
    whole: Callable[[Any], Any] = lambda params: params,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """Make ``step(state, key, images, labels, coefficients, noise=None) -> (state, metrics)``, not yet jitted.

    In this order, as in the original: loss, gradient, clipping, Adam, learning rate, EMA.

    Args:
      net: the network (only its structure is used).
      loss: of samples.
      transformation, rate: from :mod:`psld_jax.training.optim`.
      ema_decay, ema_warmup: see :func:`psld_jax.training.optim.ema_update`.
      accumulate: parts that the batch is cut into; their gradients are added up, which saves memory.
      label_dropout: probability that a network that takes labels is not told that of a sample.
      remat: :func:`keep_sums`.
      whole: makes split parameters whole, :meth:`psld_jax._runtime.distributed.Devices.gather`.

    Returns:
      The step. ``key`` is the run's, the same at every step; ``noise`` replaces the draws of the loss. Metrics:
      ``loss`` of every sample ``[n]`` and what else the loss reports, ``grad_norm`` before clipping, ``lr``.
    """
    graph, num_labels = nnx.graphdef(net), _num_labels(net)
    # Without a label for "any" none is dropped.
    all_labelled = getattr(getattr(net, "config", None), "needs_labels", False)

    def gradient(weights: Weights, key: Array, batch: tuple) -> tuple[Any, dict[str, Array]]:
        images, labels, coefficients, noise = batch

        def objective(params: Any) -> tuple[Array, dict[str, Array]]:
            module: Any = nnx.merge(graph, whole(params), weights.frozen)
            told = ()
            if num_labels:
                dropped = jax.random.uniform(jax.random.fold_in(key, 1), labels.shape, jnp.float32) < label_dropout
                told = (labels if all_labelled else jnp.where(dropped, num_labels, labels),)

            def network(x: Array, t: Array) -> Array:
                return module(x, t, *told, deterministic=False, rngs=nnx.Rngs(dropout=key))

            values, extra = loss(keep_sums(network) if remat else network, coefficients, images, labels, noise)
            return values.mean() if loss.reduce_mean else values.sum(), {"loss": values, **extra}

        return jax.grad(objective, has_aux=True)(weights.params)

    def step(
        state: TrainState,
        key: Array,
        images: Array,
        labels: Array,
        coefficients: losses.Coefficients,
        noise: tuple[Array, ...] | None = None,
    ) -> tuple[TrainState, dict[str, Array]]:
        noise_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        if noise is None:
            keys = jax.random.split(noise_key, loss.num_noise)
            noise = tuple(jax.random.normal(k, images.shape, images.dtype) for k in keys)
        batch = (images, labels, coefficients, noise)
        if accumulate == 1:
            gradients, metrics = gradient(state.online, dropout_key, batch)
        else:
            # Sample i goes to part i mod accumulate: every device keeps its own samples.
            parts = jax.tree.map(lambda a: a.reshape(-1, accumulate, *a.shape[1:]).swapaxes(0, 1), batch)

            def add(total: Any, part: Any) -> tuple[Any, dict[str, Array]]:
                gradients, metrics = gradient(state.online, *part)
                return jax.tree.map(jnp.add, total, gradients), metrics

            zero = jax.tree.map(jnp.zeros_like, state.online.params)
            total, metrics = jax.lax.scan(add, zero, (jax.random.split(dropout_key, accumulate), parts))
            gradients = jax.tree.map(lambda g: g / accumulate, total) if loss.reduce_mean else total
            metrics = jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1), metrics)
        updates, optimizer = transformation.update(gradients, state.optimizer, state.online.params)
        online = Weights(optax.apply_updates(state.online.params, updates), state.online.frozen)
        ema = None if state.ema is None else optim.ema_update(state.ema, online, ema_decay, state.step, ema_warmup)
        metrics |= {"grad_norm": optax.tree.norm(gradients), "lr": jnp.asarray(rate(state.step))}
        return TrainState(state.step + 1, online, ema, optimizer), metrics

    return step


def make_eval_step(
    net: nnx.Module,
    loss: losses.ScoreLoss | losses.ClassifierLoss,
    *,
    whole: Callable[[Any], Any] = lambda params: params,
) -> Callable[..., dict[str, Array]]:
    """Make ``step(weights, keys [n], images, labels, coefficients) -> metrics`` of the samples, without dropout."""
    graph, num_labels = nnx.graphdef(net), _num_labels(net)

    def step(weights: Weights, keys: Array, images: Array, labels: Array, coefficients: losses.Coefficients):
        def draws(key: Array) -> tuple[Array, ...]:
            return tuple(
                jax.random.normal(k, images.shape[1:], images.dtype) for k in jax.random.split(key, loss.num_noise)
            )

        module: Any = nnx.merge(graph, *whole(weights))

        def network(x: Array, t: Array) -> Array:
            return module(x, t, *((labels,) if num_labels else ()))

        values, extra = loss(network, coefficients, images, labels, jax.vmap(draws)(keys))
        return {"loss": values, **extra}

    return step


def _num_labels(net: Any) -> int:
    """Return the number of classes that a network is told; 0 for a classifier."""
    if isinstance(net, NCSNppClassifier):
        return 0
    config = getattr(net, "config", None)  # a network of one's own need not have one
    return getattr(config, "num_labels" if isinstance(net, NCSNpp) else "n_classes", 0)
