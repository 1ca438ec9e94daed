"""Triangular factors, and the transition and covariance of a linear diffusion with constant matrices; numpy float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import expm

from psld_jax._runtime.errors import shown

Array = Any

# The least eigenvalue of the correlations of noise that counts as some; rounding leaves less.
_UNREACHED = 1e-13


def real(values: Any) -> np.ndarray:
    """Return ``values`` as a float64 array ``[...]`` of its own; ``TypeError`` if complex, where numpy drops a part."""
    if np.iscomplexobj(values):
        raise TypeError("it gives complex numbers")
    return np.array(values, np.float64)


def real_matrix(name: str, values: Any) -> np.ndarray:
    """Return ``values`` as float64 ``[...]``; raise a ``ValueError`` that names what is no array of real numbers."""
    try:
        return real(values)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={shown(values)} must be a matrix of real numbers, [K, K]") from None


def check_covariance(name: str, cov: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise a ``ValueError`` unless ``cov``, ``[K, K]``, is finite, symmetric and positive semi-definite."""
    if cov.shape != shape:
        raise ValueError(f"{name} has shape {cov.shape}, expected {shape}")
    if not (np.isfinite(cov).all() and np.allclose(cov, cov.T, rtol=0, atol=1e-9 * np.abs(cov).max())):
        raise ValueError(f"{name}={cov.tolist()} must be finite and symmetric")
    least = float(np.linalg.eigvalsh(cov)[0])
    if least < -1e-12 * np.abs(cov).max():
        raise ValueError(f"{name}={cov.tolist()} has the negative eigenvalue {least:.6g}; it must be a covariance")


def check_reached(noise: np.ndarray) -> None:
    """Raise a ``ValueError`` unless ``noise``, ``[K, K]``, the covariance of what a diffusion adds, has an inverse.

    Else the law of ``z_t`` given an image has no density, and there is no score to learn.
    """
    spread = np.sqrt(np.diag(noise))
    reached = spread > 0
    # In units of each block, so that a small one counts like a large one.
    if reached.all() and np.linalg.eigvalsh(noise / np.outer(spread, spread))[0] > _UNREACHED:
        return
    where = ", ".join(map(str, np.flatnonzero(~reached))) or "some combination of them"
    raise ValueError(
        f"noise must reach every block, by diffusion or from there by drift, and it does not reach {where} "
        f"(of blocks 0 to {len(noise) - 1})"
    )


def cholesky(cov: np.ndarray, decomposition: str = "lower") -> np.ndarray:
    """Triangular ``L`` with ``L L^T = cov`` for positive semi-definite ``cov [..., K, K]``.

    ``decomposition`` is ``"lower"`` or ``"upper"``. A vanishing pivot gives a vanishing column, so
    singular covariances (no noise in one block) are fine.

    Raises:
      ValueError: if a pivot is negative beyond rounding, or NaN.
    """
    cov = np.asarray(cov, np.float64)
    if decomposition == "upper":
        return cholesky(cov[..., ::-1, ::-1])[..., ::-1, ::-1]
    rest, scale = cov.copy(), np.abs(cov).max(initial=0.0)
    factor = np.zeros_like(cov)
    for j in range(cov.shape[-1]):
        pivot = rest[..., j, j]
        if not np.all(pivot >= -1e-12 * scale):
            raise ValueError(f"covariance is not positive semi-definite: pivot {j} is {np.min(pivot)}")
        root = np.sqrt(np.maximum(pivot, 0.0))
        column = rest[..., j:, j] / np.where(root > 0, root, np.inf)[..., None]
        factor[..., j:, j] = column
        rest[..., j:, j:] -= column[..., :, None] * column[..., None, :]
    return factor


def triangular(root: np.ndarray, decomposition: str = "lower") -> np.ndarray:
    """Triangular ``L`` with ``L L^T = root root^T`` for ``root [..., K, M]``, ``M >= K``: Householder reflections.

    It has the digits of ``root``. Those of :func:`cholesky` are half as many where ``root root^T`` is nearly singular.
    """
    if decomposition == "upper":
        return triangular(root[..., ::-1, :])[..., ::-1, ::-1]
    factor = np.swapaxes(np.linalg.qr(np.swapaxes(root, -1, -2), mode="r"), -1, -2)
    signs = np.where(np.diagonal(factor, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return factor * signs[..., None, :]


def linear_flow(f: np.ndarray, d: np.ndarray, length: Array) -> tuple[np.ndarray, np.ndarray]:
    """Transition ``e^{F b}`` and covariance ``int_0^b e^{F u} D e^{F^T u} du`` of ``dz = F z db + D^1/2 dw``.

    The block exponential of Van Loan (1978) over a piece short enough to be accurate, then doubling,
    ``Q(2 b) = Psi Q Psi^T + Q``: a sum of positive terms at every length.

    Args:
      f, d: ``[K, K]``.
      length: ``b >= 0``, ``[...]``.

    Returns:
      Float64 ``[..., K, K]`` each.
    """
    length, k = np.asarray(length, np.float64), len(f)
    reach = np.max(np.abs(length), initial=0.0) * np.linalg.norm(f, 2)
    doublings = max(0, int(np.ceil(np.log2(max(reach, 1e-300) / 0.5))))
    block = np.block([[-f, d], [np.zeros((k, k)), f.T]])
    exp = expm((length / 2**doublings)[..., None, None] * block)
    psi = np.swapaxes(exp[..., k:, k:], -1, -2)
    noise = psi @ exp[..., :k, k:]
    for _ in range(doublings):
        noise = psi @ noise @ np.swapaxes(psi, -1, -2) + noise
        psi = psi @ psi
    return psi, (noise + np.swapaxes(noise, -1, -2)) / 2
