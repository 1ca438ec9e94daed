"""The singular vectors and values of operators, and functions of these values applied to images.

``H = U S V^T``. A *mode* is a column of ``V``; modes with a singular value of 0 are the null space.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime.errors import why

Array = Any

# Of products and sums in float32, relative: what an operator of a user's own may err by.
_ROUNDING = 1e-3


def convolution_matrix(kernel: Array, size: int) -> np.ndarray:
    """Return the convolution of ``size`` pixels with ``kernel [2 r + 1]``, ``[size, size]``; outside is zero."""
    taps = np.asarray(kernel, np.float64)
    offset = np.arange(size)[None] - np.arange(size)[:, None] + len(taps) // 2
    inside = (offset >= 0) & (offset < len(taps))
    return np.where(inside, taps[np.clip(offset, 0, len(taps) - 1)], 0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Flat:
    """The modes of an operator all of whose singular values are 0 or the same: the range of its projection.

    Attributes:
      project: ``H^+ H`` of images, as a pytree.
      value: the singular value.
    """

    project: Any
    value: Array

    def singular_values(self) -> np.ndarray:
        """Return the only singular value that is not 0, float64 ``[m]`` with ``m = 1``."""
        return np.atleast_1d(np.asarray(self.value, np.float64))

    def response(self, levels: np.ndarray) -> np.ndarray:
        """Return the response to functions at ``levels [L]``, float64 ``[L]`` with ``L = 1``: all of the only one."""
        return np.ones((len(levels),))

    def mixed(self, parts: Array, response: Array) -> Array:
        """Return ``sum_l response_l projection(parts_l)``, ``[L, n, H, W, C]`` to ``[n, H, W, C]``."""
        return self.project(jnp.tensordot(response.astype(parts.dtype), parts, 1)).astype(parts.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Separable:
    """The modes of ``H x = A x B^T`` for every channel: products of the singular vectors of ``A`` and of ``B``.

    Attributes:
      left, right: ``(U, s, V)`` of ``A [H, H]`` and ``B [W, W]``.
      cutoff: singular values below this part of the largest count as 0.
    """

    left: tuple[Array, Array, Array]
    right: tuple[Array, Array, Array]
    cutoff: float = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray, cutoff: float) -> Separable:
        """Make the modes of ``A [H, H]`` and ``B [W, W]``, by two decompositions on the host in float64."""
        (ua, sa, va), (ub, sb, vb) = np.linalg.svd(a), np.linalg.svd(b)
        return cls((ua, sa, va.T), (ub, sb, vb.T), cutoff)

    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all singular values, ``[H, W]``, and which of them count."""
        values = np.outer(self.left[1], self.right[1])
        return values, values > self.cutoff * values.max()

    def singular_values(self) -> np.ndarray:
        """Return the singular values that are not 0, ``[m]``; one of 1, which no mode has, if all are."""
        values, counts = self._grid()
        return values[counts] if counts.any() else np.ones(1)

    def response(self, levels: np.ndarray) -> np.ndarray:
        """Return what modes take of functions known at rising ``levels [L]`` of singular values, ``[L, H, W]``.

        Linear in the logarithm of the singular value; below the lowest level nothing.
        """
        values, counts = self._grid()
        at = np.log(np.where(counts, values, 1.0))
        hats = np.stack([np.interp(at, np.log(levels), hat) for hat in np.eye(len(levels))])
        return np.where(counts & (values >= levels[0] * (1 - 1e-9)), hats, 0.0)

    def mixed(self, parts: Array, response: Array) -> Array:
        """Return ``V (sum_l response_l V^T parts_l)``, ``[L, n, H, W, C]`` to ``[n, H, W, C]``."""
        va, vb = (jnp.asarray(side[2], parts.dtype) for side in (self.left, self.right))
        modes = jnp.einsum("ia,jb,lnijc,lab->nabc", va, vb, parts, response.astype(parts.dtype), precision="highest")
        return jnp.einsum("ia,jb,nabc->nijc", va, vb, modes, precision="highest")

    def pinv(self, measurement: Array) -> Array:
        """Return ``V S^+ U^T y`` for ``[n, H, W, C]``."""
        values, counts = self._grid()
        inverse = np.where(counts, 1 / np.where(counts, values, 1.0), 0.0)
        return self._through(measurement, inverse, self.left[0], self.right[0])

    def projection(self, images: Array) -> Array:
        """Return ``V S^+ S V^T x`` for images ``[n, H, W, C]``."""
        return self._through(images, self._grid()[1].astype(np.float64), self.left[2], self.right[2])

    def _through(self, images: Array, gains: np.ndarray, a: np.ndarray, b: np.ndarray) -> Array:
        images = jnp.asarray(images)
        into_a, into_b, va, vb, gains_ = (
            jnp.asarray(m, images.dtype) for m in (a, b, self.left[2], self.right[2], gains)
        )
        modes = jnp.einsum("ia,jb,nijc->nabc", into_a, into_b, images, precision="highest") * gains_[..., None]
        return jnp.einsum("ia,jb,nabc->nijc", va, vb, modes, precision="highest")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Projection:
    """The projection ``H^+ H`` as data of a program; :func:`projection_of` makes it.

    Attributes:
      modes: of the operator.
      response: ``[1, ...]``, 1 for modes that are seen and 0 for others.
    """

    modes: Any
    response: Array

    def __call__(self, images: Array) -> Array:
        """Return ``H^+ H x`` of images ``[n, H, W, C]``; same shape and dtype."""
        return self.modes.mixed(images[None], jnp.asarray(self.response))


def transpose_of(operator: Any, images: Array) -> tuple[Array, Any]:
    """Return what an operator gives for images ``[n, H, W, C]``, and the transpose of its derivative, a function.

    Raises:
      ValueError: for one that JAX cannot differentiate in reverse mode.
    """

    def both(x: Array) -> Array:
        seen, pull_back = jax.vjp(operator, x)
        return pull_back(seen)[0]

    try:
        jax.eval_shape(both, images)
    except Exception as error:  # whatever JAX says of a callback, or of a loop without an end that is known
        raise ValueError(f"operator has no derivative, which guidance takes: {why(error)}") from None
    seen, pull_back = jax.vjp(operator, images)
    return seen, lambda y: pull_back(y)[0]


def projection_of(operator: Any, image_shape: tuple[int, ...]) -> Projection:
    """Make the projection on what an operator sees of images ``[H, W, C]``.

    Raises:
      ValueError: as :func:`modes_of`.
    """
    modes = modes_of(operator, image_shape)
    return Projection(modes, modes.response(np.array([modes.singular_values().min()])))


def modes_of(
    operator: Any,
    image_shape: tuple[int, ...],
    what: str = "posterior='conjugate'",
    instead: str = "take posterior='pigdm'",
) -> Any:
    """Make the modes of an operator for images ``[H, W, C]``.

    An operator without ``modes(image_shape)`` must have ``pinv`` and ``projection``, and one singular value besides 0:
    ``H^T H = s^2 H^+ H``, which is tried on noise. ``what`` is what needs the modes, and ``instead`` what does not.

    Raises:
      ValueError: for one that lacks these methods, or whose methods do not fit each other.
    """
    missing = [name for name in ("pinv", "projection") if not callable(getattr(operator, name, None))]
    if missing:
        raise ValueError(
            f"{what} needs operator.{' and operator.'.join(missing)}: add pinv(measurement) = H^+ y and "
            f"projection(images) = H^+ H x, take one of psld_jax.operators, or {instead}"
        )
    if callable(getattr(operator, "modes", None)):
        return operator.modes(image_shape)
    x = np.random.default_rng(0).standard_normal((1, *image_shape)).astype(np.float32)
    seen, transpose = transpose_of(operator, jnp.asarray(x))
    twice, part = transpose(seen), np.asarray(operator.projection(jnp.asarray(x)))
    if part.shape != x.shape or not np.allclose(operator.pinv(seen), part, atol=_ROUNDING):
        raise ValueError("operator.pinv(operator(images)) is not operator.projection(images): they must be H^+ H x")
    energy = float((part**2).sum())
    squared = float((part * np.asarray(twice)).sum()) / energy if energy else 1.0
    if not np.allclose(twice, squared * part, atol=_ROUNDING * np.sqrt(squared)):
        raise ValueError(
            "operator has several singular values (H^T H is not a multiple of operator.projection): give it a method "
            f"modes(image_shape), or {instead}"
        )
    # An operator that is a pytree is data of the program; another one is a part of it.
    its_own = jax.tree_util.all_leaves([operator])
    project = blocks.as_pytree(operator.projection) if its_own else jax.tree_util.Partial(_projected, operator)
    return Flat(project, np.sqrt(squared))


def _projected(operator: Any, images: Array) -> Array:
    return operator.projection(images)
