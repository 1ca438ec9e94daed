"""Scores of conditional laws: an ``eps_fn`` plus the gradient of a log-likelihood, or two of them mixed.

``score(z | y) = score(z) + grad log p(y | z, t)`` (Bayes). A sampler asks for eps, so the gradient is written in eps:
every integrator takes it, and nothing in the tables changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime.device import TimeFunction
from psld_jax._runtime.errors import check_choice
from psld_jax.sde import LinearSDE, OneBlock

Array = Any

CLASSIFIER_TIMES = ("forward", "original")
POSTERIORS = ("pigdm", "dps")
# A signal-to-noise ratio below which guidance fades out, on paths whose signal vanishes: that at which EDM starts.
_NO_SIGNAL = 80.0**-2


def gradient_matrix(sde: LinearSDE, t: Array) -> np.ndarray:
    """``W_t [..., K, K]``: ``eps + W g`` is the eps of ``score + g``.

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


def data_matrices(sde: LinearSDE, t: Array) -> np.ndarray:
    """``[U, V] [..., 1, 2 K]``: ``E[x_0 | z] = U z + V eps``, by least squares where eps is redundant.

    From ``Sigma score = mu E[x_0 | z] - z``: ``U = w^T (I + Sigma Cskip)``, ``V = w^T Sigma C``,
    ``w = Sigma^-1 mu / (mu^T Sigma^-1 mu)``.
    """
    return np.concatenate(sde.denoiser(t), axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassifierGuided:
    """Guidance by a noise-conditional classifier (Dhariwal & Nichol, 2021); make it with :func:`classifier_guided`."""

    eps_fn: Any
    logits_fn: Any
    labels: Array
    scale: Array
    matrix: TimeFunction
    time: str = dataclasses.field(metadata={"static": True})

    def bind(self, eps_fn: Any, own: dict[str, Array]) -> ClassifierGuided:
        """The same around another ``eps_fn``, with the classes ``own["labels"]``, integers ``[n]``."""
        return dataclasses.replace(self, eps_fn=blocks.as_pytree(eps_fn), labels=own["labels"])

    def __call__(self, z: blocks.State, t: Array) -> blocks.State:
        """``eps(z, t) + scale W_t grad_z log p(labels | z, t)``.

        For a state of arrays ``[n, H, W, C]`` and scalar ``t``; same structure and dtype.
        """

        def log_likelihood(z: blocks.State) -> Array:
            logits = self.logits_fn(z, t if self.time == "forward" else 1 - t)
            return jnp.take_along_axis(jax.nn.log_softmax(logits), self.labels[:, None], axis=-1).sum()

        gradient = jax.grad(log_likelihood)(z)
        matrix = self.scale * self.matrix(jnp.asarray(t, z[0].dtype))
        eps = blocks.like(z, self.eps_fn(z, t))
        return blocks.add(eps, blocks.apply(matrix.astype(z[0].dtype), gradient))


def classifier_guided(
    eps_fn: Callable[..., Any],
    logits_fn: Callable[..., Any],
    sde: LinearSDE,
    labels: Array,
    scale: float = 1.0,
    time: str = "forward",
) -> ClassifierGuided:
    """``eps_fn`` of ``p(z | y)``, ``grad log p(z | y) = score + scale grad log p(y | z, t)``.

    One evaluation of the network and one forward and backward pass of the classifier.

    Args:
      eps_fn: of the unconditional law.
      logits_fn: ``logits_fn(z, t)``, ``[n, n_classes]``, of a classifier of states of the same diffusion.
      sde: the diffusion, preconditioned if the network is.
      labels: integers ``[n]``, one for each sample.
      scale: 1 is Bayes' rule; more makes samples more typical and less diverse.
      time: ``"forward"``, or ``"original"``: the classifier is asked at ``1 - t``, as the original does by mistake.

    Raises:
      ValueError: for another ``time``.
    """
    check_choice("classifier time", time, CLASSIFIER_TIMES)
    matrix = TimeFunction(lambda t: gradient_matrix(sde, t), knots=sde.knots)
    return ClassifierGuided(
        blocks.as_pytree(eps_fn), blocks.as_pytree(logits_fn), jnp.asarray(labels), jnp.asarray(scale), matrix, time
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassifierFree:
    """Guidance by the difference that a label makes (Ho & Salimans, 2022); make it with :func:`classifier_free`."""

    with_label: Any
    without: Any
    scale: Array
    interval: tuple[Array, Array]

    def bind(self, eps_fn: Any, own: dict[str, Array]) -> ClassifierFree:
        """The same around another ``eps_fn``, with the classes ``own["labels"]``, integers ``[n]``."""
        told, free = blocks.as_pytree(eps_fn.with_labels(own["labels"])), blocks.as_pytree(eps_fn)
        return dataclasses.replace(self, with_label=told, without=free)

    def __call__(self, z: blocks.State, t: Array) -> blocks.State:
        """``eps(z, t) + scale (eps(z, t, label) - eps(z, t))``, or ``eps(z, t, label)`` outside of the interval.

        For a state of arrays ``[n, H, W, C]`` and scalar ``t``; same structure and dtype.
        """
        t = jnp.asarray(t, z[0].dtype)
        low, high = self.interval
        labelled = self.with_label(z, t)

        def guided() -> blocks.State:
            scale = self.scale.astype(z[0].dtype)
            return jax.tree.map(lambda a, b: b + scale * (a - b), labelled, self.without(z, t))

        acts = (t >= low) & (t <= high) & (self.scale != 1)
        return jax.lax.cond(acts, guided, lambda: labelled)


def classifier_free(eps_fn: Any, labels: Array, scale: float = 1.0, interval: tuple[float, float] = (0.0, 1.0)) -> Any:
    """``eps_fn`` of ``p(z) (p(z | y) / p(z))^scale`` for a network that takes labels.

    Two evaluations of the network, or one outside of ``interval`` and for scale 1.

    Args:
      eps_fn: a :class:`psld_jax.scores.NetworkScore` of a network trained with labels, some of them dropped.
      labels: integers ``[n]``.
      scale: 1 is the law of the label, 0 the unconditional one.
      interval: forward times between which the guidance acts.

    Raises:
      ValueError: for a scale other than 1 of a network that was never trained without labels, as those of diffusers.
    """
    if getattr(eps_fn, "needs_labels", False):
        if scale != 1:
            raise ValueError(f"guidance={scale} needs a network that was also trained without labels: it must be 1")
        return eps_fn.with_labels(labels)
    low, high = (jnp.asarray(t, jnp.float32) for t in interval)
    told, free = blocks.as_pytree(eps_fn.with_labels(labels)), blocks.as_pytree(eps_fn)
    return ClassifierFree(told, free, jnp.asarray(scale, jnp.float32), (low, high))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PosteriorGuided:
    """Guidance by a measurement of ``x_0``; make it with :func:`posterior_guided`."""

    eps_fn: Any
    operator: Any
    measurement: Array
    scale: Array
    noise_std: Array
    matrices: TimeFunction
    gradient: TimeFunction
    variance: TimeFunction
    method: str = dataclasses.field(metadata={"static": True})
    iterations: int = dataclasses.field(metadata={"static": True})

    def bind(self, eps_fn: Any, own: dict[str, Array]) -> PosteriorGuided:
        """The same around another ``eps_fn``, with the measurements ``own["measurement"]``, ``[n, ...]``."""
        return dataclasses.replace(self, eps_fn=blocks.as_pytree(eps_fn), measurement=own["measurement"])

    def __call__(self, z: blocks.State, t: Array) -> blocks.State:
        """``eps(z, t) + scale W_t grad_z log N(y; A x_0(z), Var)``, the variance held fixed.

        For a state of arrays ``[n, H, W, C]`` and scalar ``t``; same structure and dtype.
        """
        dtype = z[0].dtype
        t = jnp.asarray(t, dtype)
        matrices, variance = self.matrices(t), self.variance(t)
        k = matrices.shape[-1] // 2

        def data(z: blocks.State) -> tuple[Array, blocks.State]:
            eps = self.eps_fn(z, t)
            (x0,) = blocks.add(blocks.apply(matrices[:, :k], tuple(z)), blocks.apply(matrices[:, k:], tuple(eps)))
            return x0, eps

        x0, pull_back, eps = jax.vjp(data, z, has_aux=True)
        predicted, transpose = jax.vjp(self.operator, x0)
        residual = self.measurement.astype(dtype) - predicted
        noise = self.noise_std.astype(dtype) ** 2
        if self.method == "pigdm":

            def covariance(u: Array) -> Array:
                return variance * self.operator(transpose(u)[0]) + noise * u

            residual = _solve(covariance, residual, self.iterations)
        else:
            residual = residual / (variance + noise)
        (gradient,) = pull_back(transpose(residual)[0])
        matrix = self.scale.astype(dtype) * self.gradient(t)
        return blocks.add(blocks.like(z, eps), blocks.apply(matrix, blocks.like(z, gradient)))


def _solve(covariance: Callable[[Array], Array], right: Array, iterations: int) -> Array:
    """Conjugate gradients for every sample by itself, a fixed number: the operator has no inverse to be had."""

    def dot(a: Array, b: Array) -> Array:
        return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)

    def step(_: int, carry: Any) -> Any:
        u, r, p, rr = carry
        ap = covariance(p)
        curvature = dot(p, ap)
        alpha = jnp.where(curvature > 0, rr / jnp.where(curvature > 0, curvature, 1), 0)
        u, r = u + alpha * p, r - alpha * ap
        new = dot(r, r)
        beta = jnp.where(rr > 0, new / jnp.where(rr > 0, rr, 1), 0)
        return u, r, r + beta * p, new

    start = (jnp.zeros_like(right), right, right, dot(right, right))
    return jax.lax.fori_loop(0, iterations, step, start)[0]


def posterior_guided(
    eps_fn: Callable[..., Any],
    sde: LinearSDE,
    operator: Callable[[Array], Array],
    measurement: Array,
    *,
    noise_std: float = 0.05,
    scale: float = 1.0,
    method: str = "pigdm",
    data_std: float = 1.0,
    iterations: int = 10,
) -> PosteriorGuided:
    """``eps_fn`` of ``p(z | y)`` for ``y = A x_0 + noise_std n``.

    ``p(x_0 | z)`` is taken for ``N(E[x_0 | z], r_t^2 I)``, ``r_t^-2 = data_std^-2 + mu^T Sigma^-1 mu``, and
    ``grad log p(y | z) = J^T A^T Var^-1 (y - A E[x_0 | z])`` with ``J`` the Jacobian of ``E[x_0 | z]``, through the
    network: one evaluation and its backward pass.

    - ``"pigdm"`` (Song et al., 2023): ``Var = r_t^2 A A^T + noise_std^2``, solved by conjugate gradients.
    - ``"dps"`` (Chung et al., 2023), made independent of step sizes: ``Var = r_t^2 + noise_std^2``.

    Args:
      eps_fn: of the unconditional law.
      sde: the diffusion.
      operator: ``A``, a linear function of images ``[n, H, W, C]``, each by itself.
      measurement: ``y``, ``[n, ...]``.
      noise_std: of the measurement, > 0: that of the pixels if it is exact.
      scale: 1 is the formula.
      data_std: standard deviation of the data; a preconditioned ``sde`` knows its own.
      iterations: of conjugate gradients.

    Raises:
      ValueError: for an unknown method, or ``noise_std`` or ``data_std`` not > 0.
    """
    check_choice("posterior guidance", method, POSTERIORS)
    data_std = sde.data_std or data_std
    for name, value in (("noise_std", noise_std), ("data_std", data_std)):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value} must be a finite number > 0")

    def variance(t: np.ndarray) -> np.ndarray:
        return 1 / (data_std**-2 + sde.snr(t))

    return PosteriorGuided(
        blocks.as_pytree(eps_fn),
        blocks.as_pytree(operator),
        jnp.asarray(measurement),
        jnp.asarray(scale, jnp.float32),
        jnp.asarray(noise_std, jnp.float32),
        TimeFunction(lambda t: data_matrices(sde, t), knots=sde.knots),
        TimeFunction(lambda t: gradient_matrix(sde, t), knots=sde.knots),
        TimeFunction(variance, knots=sde.knots),
        method,
        iterations,
    )
