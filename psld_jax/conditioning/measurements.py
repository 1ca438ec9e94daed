"""Guidance by a measurement through the network: it takes any operator, and one evaluation with its backward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psld_jax import blocks
from psld_jax._runtime.checks import check_measurement, check_noise, check_number
from psld_jax._runtime.device import TimeFunction
from psld_jax._runtime.errors import check_callable, check_choice, check_counts
from psld_jax.conditioning.guidance import gradient_matrix, pushed
from psld_jax.conditioning.weights import Weight, as_rescale, weight_of
from psld_jax.sde import LinearSDE, check_sde

Array = Any

POSTERIORS = ("pigdm", "dps")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no hash, and jax.jit asks for one
class PosteriorGuided:
    """Guidance by a measurement of ``x_0``; make it with :func:`posterior_guided`."""

    eps_fn: Any
    operator: Any
    measurement: Array
    weight: Weight
    noise_std: Array
    matrices: TimeFunction
    gradient: TimeFunction
    variance: TimeFunction
    rescale: Array | None
    outside: Any
    method: str = dataclasses.field(metadata={"static": True})
    iterations: int = dataclasses.field(metadata={"static": True})

    def bind(self, eps_fn: Any, own: dict[str, Array]) -> PosteriorGuided:
        """Wrap another ``eps_fn``, with the measurements ``own["measurement"]``, ``[n, ...]``."""
        return dataclasses.replace(self, eps_fn=blocks.as_pytree(eps_fn), measurement=own["measurement"])

    def __call__(self, z: blocks.State, t: Array) -> blocks.State:
        """Return ``eps(z, t) + w(t) W_t grad_z log N(y; A x_0(z), Var)``, the variance held fixed.

        For a state of arrays ``[n, H, W, C]`` and scalar ``t``; same structure and dtype. Where the weight is 0 the
        network has no backward pass.
        """
        t = jnp.asarray(t, z[0].dtype)
        weight = self.weight(t)
        if not self.weight.limited:
            return self._guided(z, t, weight)
        return jax.lax.cond(weight != 0, lambda: self._guided(z, t, weight), lambda: blocks.like(z, self.eps_fn(z, t)))

    def _guided(self, z: blocks.State, t: Array, weight: Array) -> blocks.State:
        eps, gradient, _ = self.parts(z, t)
        return pushed(eps, gradient, self.gradient(t), weight, self.rescale)

    def parts(self, z: blocks.State, t: Array) -> tuple[blocks.State, blocks.State, Array]:
        """Return ``eps(z, t)``, ``grad_z log N(y; A x_0(z), Var)``, and that logarithm, ``[n]``.

        The logarithm lacks a function of ``t``. The arguments are a state of arrays ``[n, H, W, C]`` and
        scalar ``t``; the first two results are like ``z``.
        """
        dtype = z[0].dtype
        matrices, variance = self.matrices(t), self.variance(t)
        k = matrices.shape[-1] // 2

        def data(z: blocks.State) -> tuple[Array, blocks.State]:
            eps = self.eps_fn(z, t)
            (x0,) = blocks.add(blocks.apply(matrices[:, :k], tuple(z)), blocks.apply(matrices[:, k:], tuple(eps)))
            return x0, eps

        def measured(x0: Array) -> Array:
            return self.operator(x0).astype(dtype)

        x0, pull_back, eps = jax.vjp(data, z, has_aux=True)
        predicted, transpose = jax.vjp(measured, x0)
        residual = self.measurement.astype(dtype) - predicted
        noise = self.noise_std.astype(dtype) ** 2
        if self.method == "pigdm":

            def covariance(u: Array) -> Array:
                return variance * measured(transpose(u)[0]) + noise * u

            solved = _solve(covariance, residual, self.iterations)
        else:
            solved = residual / (variance + noise)
        likelihood = -0.5 * jnp.sum(residual * solved, axis=tuple(range(1, residual.ndim)))
        (gradient,) = pull_back(transpose(solved)[0])
        if self.outside is not None:
            gradient = jax.tree.map(lambda leaf: leaf - self.outside(leaf), gradient)
        return blocks.like(z, eps), blocks.like(z, gradient), likelihood


def _solve(covariance: Callable[[Array], Array], right: Array, iterations: int) -> Array:
    """Solve by a fixed number of conjugate gradients, for every sample by itself, where no inverse is known."""

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
    scale: float | Weight = 1.0,
    method: str = "pigdm",
    data_std: float = 1.0,
    iterations: int = 10,
    rescale: float = 0.0,
    outside: Callable[[Array], Array] | None = None,
) -> PosteriorGuided:
    """Make the ``eps_fn`` of ``p(z | y)`` for ``y = A x_0 + noise_std n``.

    ``p(x_0 | z)`` is taken for ``N(E[x_0 | z], r_t^2 I)``, ``r_t^-2 = data_std^-2 + mu^T Sigma^-1 mu``, and
    ``grad log p(y | z) = J^T A^T Var^-1 (y - A E[x_0 | z])`` with ``J`` the Jacobian of ``E[x_0 | z]``, through the
    network: one evaluation and its backward pass.

    - ``"pigdm"`` (Song et al., 2023): ``Var = r_t^2 A A^T + noise_std^2``, solved by conjugate gradients.
    - ``"dps"`` (Chung et al., 2023), made independent of step sizes: ``Var = r_t^2 + noise_std^2``. The operator
      need not be linear: ``A^T`` is then the transpose of its derivative at ``E[x_0 | z]``.

    Args:
      eps_fn: of the unconditional law.
      sde: the diffusion.
      operator: ``A``, a function of images ``[n, H, W, C]``, each by itself: linear, or for ``"dps"`` differentiable.
      measurement: ``y``, ``[n, ...]``.
      noise_std: of the measurement, > 0: that of the pixels if it is exact.
      scale: 1 is the formula; a weight that varies with time is ``weight_of(scale, 0.0, ...)``.
      data_std: standard deviation of the data; a preconditioned ``sde`` knows its own.
      iterations: of conjugate gradients.
      outside: a projection of images ``[n, H, W, C]``, such as ``operator.projection``, ``A^+ A``: of the gradient what
        lies in its range is left out. :func:`psld_jax.measurement_pull` moves that, and nothing else.
      rescale: how much of the standard deviation of ``scale = 1`` is kept, 0 to 1,
        as :func:`psld_jax.conditioning.weights.rescaled` does it.

    Raises:
      ValueError: for an unknown method, functions that are none, a measurement that is not floating and finite, or
        ``noise_std``, ``data_std``, ``iterations``, ``scale`` or ``rescale`` out of range.
    """
    check_choice("posterior guidance", method, POSTERIORS)
    check_sde(sde)
    check_callable("eps_fn", eps_fn)
    check_callable("operator", operator, "a function of images, one of psld_jax.operators")
    if outside is not None:
        check_callable("outside", outside, "a projection of images, or None")
    if not isinstance(measurement, Tracer):
        measurement = check_measurement("measurement", measurement)
    check_counts(iterations=iterations)
    noise_std = check_noise(noise_std, strict=True)
    data_std = check_number("data_std", sde.data_std or data_std, 0, strict=True)

    def variance(t: np.ndarray) -> np.ndarray:
        return 1 / (data_std**-2 + sde.snr(t))

    return PosteriorGuided(
        blocks.as_pytree(eps_fn),
        blocks.as_pytree(operator),
        jnp.asarray(measurement),
        weight_of(scale, 0.0),
        jnp.asarray(noise_std, jnp.float32),
        sde.denoiser_of_time,
        TimeFunction(lambda t: gradient_matrix(sde, t), knots=sde.knots),
        TimeFunction(variance, knots=sde.knots),
        as_rescale(rescale),
        None if outside is None else blocks.as_pytree(outside),
        method,
        int(iterations),
    )
