"""Pseudo-inverses and projections of the operators, against those of their matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psld_jax as pj
from psld_jax.conditioning._modes import modes_of
from psld_jax.evaluation.posterior import operator_matrix

operators = pj.operators
SHAPE = (6, 4, 3)
CORNER = np.zeros((6, 4), int)
CORNER[:2, 1:] = 1
CASES = {
    "mask": operators.mask(CORNER),
    "no pixel": operators.mask(np.zeros((6, 4))),
    "pixels of colours": operators.mask(np.arange(72).reshape(1, *SHAPE) % 2),
    "downsample": operators.downsample(2),
    "grayscale": operators.grayscale(3),
    "blur": operators.blur(0.6),
    "blur of two widths": operators.blur((0.5, 1.0)),
    "blur beyond the cutoff": operators.blur(1.5, cutoff=0.05),
}


@pytest.mark.parametrize("name", CASES)
def test_pinv_and_projection_are_those_of_the_matrix(name, rng):
    """Matrices are taken in float32, which the inverse of the smallest singular value makes larger by 1 / cutoff."""
    operator, x = CASES[name], rng.standard_normal((2, *SHAPE))
    matrix = operator_matrix(operator, SHAPE)
    inverse = np.linalg.pinv(matrix, rcond=getattr(operator, "cutoff", 1e-6))
    y = np.asarray(jax.jit(operator)(x))
    flat = y.reshape(2, -1)
    np.testing.assert_allclose(flat, x.reshape(2, -1) @ matrix.T, atol=1e-6)
    np.testing.assert_allclose(jax.jit(operator.pinv)(y), (flat @ inverse.T).reshape(x.shape), atol=2e-4)
    projected = (x.reshape(2, -1) @ (inverse @ matrix).T).reshape(x.shape)
    np.testing.assert_allclose(jax.jit(operator.projection)(x), projected, atol=2e-4)


@pytest.mark.parametrize("name", ["mask", "downsample", "grayscale", "blur of two widths"])
def test_a_function_of_the_singular_values_acts_on_the_modes(name, rng):
    """``H^T H`` is that of ``s^2``; interpolated between levels at the singular values themselves it is exact."""
    operator, x = CASES[name], rng.standard_normal((1, *SHAPE))
    modes = modes_of(operator, SHAPE)
    levels = np.unique(modes.singular_values())
    response = modes.response(levels)
    parts = jnp.asarray(levels[:, None, None, None, None] ** 2 * x)
    matrix = operator_matrix(operator, SHAPE)
    found = np.asarray(modes.mixed(parts, jnp.asarray(response))).ravel()
    np.testing.assert_allclose(found, matrix.T @ matrix @ x.ravel(), atol=1e-6)


def test_operators_are_pytrees_of_data_with_derivatives(rng):
    x = jnp.asarray(rng.standard_normal((1, *SHAPE)))
    for name in ("mask", "downsample", "grayscale", "blur"):
        gradient = jax.jit(jax.grad(lambda x, operator: (operator(x) ** 2).sum() / 2))(x, CASES[name])
        matrix = operator_matrix(CASES[name], SHAPE)
        np.testing.assert_allclose(np.ravel(gradient), matrix.T @ matrix @ np.ravel(x), atol=1e-5)
        derivative = jax.jit(jax.grad(lambda x, operator=CASES[name]: operator.projection(x).sum()))(x)
        np.testing.assert_allclose(derivative, jax.jit(CASES[name].projection)(np.ones_like(x)), atol=1e-9)


def test_what_an_operator_cannot_do_is_said():
    class Twice:
        def __call__(self, x):
            return x * jnp.asarray(CORNER + 1)[None, ..., None]

        def pinv(self, y):
            return y / (CORNER + 1)[None, ..., None]

        def projection(self, x):
            return x

    with pytest.raises(ValueError, match="several singular values"):
        modes_of(Twice(), SHAPE)
    with pytest.raises(ValueError, match=r"needs operator\.pinv and operator\.projection: add pinv"):
        modes_of(lambda x: x, SHAPE)
    Twice.projection = lambda self, x: 0 * x
    with pytest.raises(ValueError, match=r"H\^\+ H x"):
        modes_of(Twice(), SHAPE)
    for make, told in (
        (lambda: operators.blur((1.0, -1.0)), "blur std="),
        (lambda: operators.blur("wide"), "blur std='wide' must be a finite number"),
        (lambda: operators.blur(1.0, cutoff=0.0), "cutoff=0.0"),
        (lambda: operators.mask(np.full((2, 2), 0.5)), "0 only"),
        (lambda: operators.mask(np.ones(3)), r"array \[H, W\]"),
        (lambda: operators.grayscale(0), "channels=0"),
        (lambda: operators.grayscale(3)(jnp.zeros((1, 2, 2, 1))), "1 channels"),
        (lambda: operators.by_name("mask"), "needs a mask"),
    ):
        with pytest.raises(ValueError, match=told):
            make()


def test_a_mask_takes_float64_of_numpy_without_a_warning(recwarn, rng):
    """A float32 image times a whole-numbered mask is float64 in numpy, which JAX has only if it is asked to."""
    known = operators.half_mask("top", (4, 4, 1))
    images = rng.standard_normal((2, 4, 4, 1)).astype(np.float32)
    with jax.enable_x64(False):
        masked = operators.mask(known)(images * known)
    assert masked.dtype == np.float32 and not recwarn.list
    np.testing.assert_array_equal(masked, images * known)
