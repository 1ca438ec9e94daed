"""The optimiser, its learning rate, and the exponential moving average (EMA) of the weights, from plain numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from psld_jax._runtime.errors import check_choice

Array = Any

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine")


def learning_rate(lr: float, warmup: int, schedule: str, steps: int, final: float = 0.0) -> optax.Schedule:
    """Make the learning rate of update ``count = 0, 1, ...``: ``lr min(count / warmup, 1)``, then as ``schedule`` says.

    ``"constant"`` stays at ``lr`` (the original's). ``"cosine"`` falls from ``lr`` at the end of the warm-up to
    ``final * lr`` at update ``steps``. With a warm-up, update 0 has rate 0: it only moves the moments of Adam.

    Raises:
      ValueError: for an unknown schedule, a rate that is not positive, or a warm-up that leaves no steps to fall in.
    """
    check_choice("learning rate schedule", schedule, SCHEDULES)
    if not 0 < lr < float("inf"):
        raise ValueError(f"learning rate {lr} must be a finite number > 0")
    if not 0 <= final <= 1:
        raise ValueError(f"the last learning rate over the first, {final}, must lie in [0, 1]")
    if schedule == "constant":
        after = optax.constant_schedule(lr)
    elif warmup < steps:
        after = optax.cosine_decay_schedule(lr, steps - warmup, final)
    else:
        raise ValueError(f"warmup={warmup} must be less than steps={steps} for the cosine schedule to have room")
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), after], [warmup]) if warmup else after


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale gradients by ``min(1, max_norm / (norm + 1e-6))``, as PyTorch does. The clipping of optax has no 1e-6."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def optimizer(
    name: str,
    rate: optax.Schedule,
    *,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_clip: float = 0.0,
) -> optax.GradientTransformation:
    """Make an optimiser: clipping by global norm (0: none), then Adam (Kingma & Ba, 2015).

    ``"adam"`` adds ``weight_decay * params`` to the gradient, after clipping, as PyTorch's Adam does; ``"adamw"``
    decays the weights apart from the gradient (Loshchilov & Hutter, 2019).

    Raises:
      ValueError: for an unknown name, or numbers out of range.
    """
    check_choice("optimizer", name, OPTIMIZERS)
    if not (0 <= beta_1 < 1 and 0 <= beta_2 < 1 and eps > 0):
        raise ValueError(f"Adam needs 0 <= beta < 1 and eps > 0, got beta_1={beta_1}, beta_2={beta_2}, eps={eps}")
    # What is switched off keeps its place, so that it can be switched on when a run is resumed.
    clip = clip_by_global_norm(grad_clip) if grad_clip > 0 else optax.identity()
    decay = optax.add_decayed_weights(weight_decay) if weight_decay > 0 else optax.identity()
    before, after = (optax.identity(), decay) if name == "adamw" else (decay, optax.identity())
    adam = optax.scale_by_adam(beta_1, beta_2, eps)
    return optax.chain(clip, before, adam, after, optax.scale_by_learning_rate(rate))


def ema_update(average: Any, params: Any, decay: float, step: Array, warmup: bool = False) -> Any:
    """Return ``decay * average + (1 - decay) * params`` for every array, frozen ones included, as the original does.

    With ``warmup``, ``decay`` is at most ``(1 + step) / (10 + step)``: early averages forget the initial weights. The
    two have the same shapes.
    """
    limit = jnp.minimum(decay, (1 + step) / (10 + step)) if warmup else decay
    # In this form constant weights keep their average to the bit; the sum of two products drifts a rounding a step.
    return jax.tree.map(lambda a, p: a + (1 - limit) * (p - a), average, params)
