"""Conjugate integration of a measurement: its pull on the range of the operator is integrated exactly.

For ``y = H x_0 + noise_std n`` and ``p(x_0 | z)`` taken for ``N(D, r_t^2 I)``, ``D = E[x_0 | z]``, the posterior mean
is, for each singular value ``s`` of ``H`` by itself,

    E[x_0 | z, y] = D + w g (H^+ y - D),    g(t) = r_t^2 s^2 / (r_t^2 s^2 + noise_std^2),    w = weight,

and ``D`` where ``s = 0``. A sampler in data prediction, ``dz/dt = Hd z + N E[x_0 | z]`` with ``E[x_0 | z, y]`` in its
place, is on the range

    dz/dt = Hd z + N (1 - w g) D + N w g H^+ y.

Only ``D`` comes from the network, so only ``D`` is interpolated: the rest, stiff where ``g`` rises from 0 to 1, goes
into integrals that the host computes in float64. That gives a second table with the same evaluations and the same
``A``, ``U``, ``V``, and with ``B'`` in place of ``B``. For ``D = H^+ y`` the range moves as if nothing had been
measured, so ``H^+ y`` has the weights ``B - B'``:

    null space   z <- A z + sum_j B_j D_j
    range        z <- A z + sum_j B_j D_j + sum_j (B_j - B'_j) (H^+ y - D_j)

This is the idea of the conjugate integrators of Pandey, Yang & Mandt (NeurIPS 2024, C-PiGDM), here in data prediction,
for methods of any order, any K and noise; the Jacobian of the network is left out, so no backward evaluation is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime.checks import check_measurement, check_noise, check_number
from psld_jax._runtime.errors import check_callable, check_kind, is_count, shown
from psld_jax.conditioning._modes import modes_of
from psld_jax.conditioning._operators import check_reach
from psld_jax.integrators.base import Integrator
from psld_jax.integrators.tableau import Tableau, tabulate
from psld_jax.sde import LinearSDE, check_sde

Array = Any

#: Levels of singular values between which weights are interpolated. From one to the next they grow by less than 1.6
#: for singular values of a thousand to one, and then g is off by 1% at most.
_LEVELS = 16
#: A gain below which a singular value counts as not measured.
_NO_GAIN = 1e-3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pull:
    """What a measurement adds to the rows of a table; :func:`measurement_pull` makes it.

    Attributes:
      target: ``H^+ y``, ``[n, H, W, C]``.
      modes: the singular vectors of the operator.
      response: ``[L, ...]``, how much of each level a mode takes.
      weights: ``[S, L, history, K]``: ``B - B'`` of each row and level.
      last: ``[S, L]``: ``g``, times a weight below 1, in the denoising step, and 0 in the others.
    """

    target: Array
    modes: Any
    response: Array
    weights: Array
    last: Array

    def of(self, target: Array) -> Pull:
        """Return the same pull for these pseudo-inverses ``H^+ y``, ``[n, H, W, C]``."""
        return dataclasses.replace(self, target=target)

    def at(self, row: Array) -> Pull:
        """Return the pull of one row, a scalar number: ``weights [L, history, K]`` and ``last [L]``."""
        return dataclasses.replace(self, weights=jnp.asarray(self.weights)[row], last=jnp.asarray(self.last)[row])

    def __call__(self, z: blocks.State, history: tuple[blocks.State, ...]) -> blocks.State:
        """Add the pull to the state after a row; the pull is that of one row, see :meth:`at`.

        Leaves ``[n, H, W, C]``, ``history`` the predictions with the newest first; same structure and dtype as ``z``.
        """
        dtype = z[0].dtype
        target, weights, last = (jnp.asarray(v, dtype) for v in (self.target, self.weights, self.last))
        missing = jnp.stack([target - q[0] for q in history[: weights.shape[1]]])
        by_block = [jnp.tensordot(weights[:, :, k], missing, 1) for k in range(weights.shape[2])]
        pulls = [self.modes.mixed(parts, self.response) for parts in by_block]
        z = blocks.add(z, blocks.like(z, pulls))
        # The denoising step gives E[x_0 | z] itself, so that is where the posterior mean is taken.
        x = z[0] + self.modes.mixed(last[:, None, None, None, None] * (target - z[0]), self.response)
        return blocks.like(z, (x, *z[1:]))


def gain(sde: LinearSDE, noise_std: float, data_std: float = 1.0) -> Callable[[Array, float], np.ndarray]:
    """Make ``g(t, s) = r_t^2 s^2 / (r_t^2 s^2 + noise_std^2)`` of a singular value ``s``, for times ``[...]``.

    ``r_t^-2 = data_std^-2 + mu^T Sigma^-1 mu``; a preconditioned ``sde`` knows its ``data_std``.
    """
    spread = sde.data_std or data_std

    def value(t: Array, s: float) -> np.ndarray:
        precision = noise_std**2 * (spread**-2 + sde.snr(t))  # noise^2 / r^2
        return s**2 / (s**2 + precision)

    return value


def first_guess(operator: Any, pinv: Array, noise_std: float, data_std: float = 1.0) -> Array:
    """Return the mean of ``x_0 ~ N(0, data_std^2 I)`` given ``pinv = H^+ y [n, H, W, C]``; same shape.

    ``s^2 / (s^2 + noise_std^2 / data_std^2)`` of it for each singular value, so that noise is not blown up.

    Raises:
      ValueError: for an operator without ``pinv`` or ``projection``.
    """
    modes, ratio = modes_of(operator, tuple(np.shape(pinv)[1:])), noise_std / data_std
    levels = _levels(modes.singular_values(), ratio)
    shares = levels**2 / (levels**2 + ratio**2)
    parts = jnp.asarray(shares[:, None, None, None, None], jnp.result_type(pinv)) * pinv
    return modes.mixed(parts, jnp.asarray(modes.response(levels)))


def measurement_pull(
    sde: LinearSDE,
    integrator: Integrator,
    table: Tableau,
    operator: Any,
    measurement: Array,
    image_shape: tuple[int, ...],
    *,
    noise_std: float = 0.05,
    weight: float = 1.0,
    data_std: float = 1.0,
) -> Pull:
    """Make the pull of a measurement, for :func:`psld_jax.sample` with the same table: no further evaluation.

    Args:
      sde: the diffusion.
      integrator: one in data prediction, such as ``exponential_multistep`` or ``predictor_corrector``.
      table: of that integrator, made by :func:`psld_jax.tabulate` without ``resample``.
      operator: one of ``psld_jax.operators``, or your own with ``pinv`` and ``projection``.
      measurement: what it gave, ``[n, ...]``.
      image_shape: ``(H, W, C)``.
      noise_std: of the measurement; 0 if it is exact.
      weight: ``w``; 1 is the formula, 0 leaves the measurement out.
      data_std: standard deviation of the data.

    Raises:
      ValueError: for an operator without ``pinv`` or ``projection``, an integrator whose steps are not made of
        ``E[x_0 | z]`` alone, a table of another integrator, or numbers out of range.
    """
    check_sde(sde)
    check_kind("integrator", integrator, Integrator, "one of psld_jax.integrators.get")
    check_kind("table", table, Tableau, "one of psld_jax.tabulate")
    check_callable("operator", operator, "a linear function of images, one of psld_jax.operators")
    measurement = jnp.asarray(check_measurement("measurement", measurement))
    if np.ndim(image_shape) != 1 or len(image_shape) != 3 or not all(is_count(size) for size in image_shape):
        raise ValueError(f"image_shape={shown(image_shape)} must be whole numbers (height, width, channels)")
    law = pull_law(sde, integrator, table, operator, tuple(image_shape), noise_std, weight, data_std)
    expected = jax.eval_shape(operator, jax.ShapeDtypeStruct((1, *image_shape), measurement.dtype)).shape[1:]
    if measurement.shape[1:] != expected:
        raise ValueError(f"measurement has shape {measurement.shape}, the operator gives [n, *{expected}]")
    check_reach(operator, np.asarray(measurement), tuple(image_shape), noise_std)
    return law.of(jnp.asarray(operator.pinv(measurement)))


def pull_law(
    sde: LinearSDE,
    integrator: Integrator,
    table: Tableau,
    operator: Any,
    image_shape: tuple[int, ...],
    noise_std: float,
    weight: float,
    data_std: float = 1.0,
) -> Pull:
    """Do what :func:`measurement_pull` does before the measurement is known; :meth:`Pull.of` adds it.

    ``image_shape`` is ``(H, W, C)``.

    Raises:
      ValueError: as :func:`measurement_pull`.
    """
    check_noise(noise_std)
    check_number("weight", weight, 0)
    check_number("data_std", data_std, 0, strict=True)
    modes = modes_of(operator, image_shape)
    denoise = bool(table.times[-1] == 0)
    grid = table.times[:-1] if denoise else table.times
    grid = np.append(table.tau[0], grid[1:])  # the state may be led to the start of the grid
    if np.any(np.diff(grid) >= 0):
        raise ValueError("a measurement is not integrated over a grid that goes back: leave resample out")
    steps = table.nfe - denoise

    def other_weights(share: Callable[[Array], np.ndarray]) -> np.ndarray:
        other = tabulate(integrator, sde.measured(share), grid, denoise)
        same = other.nfe == table.nfe and other.B.shape == table.B.shape
        # Equal but for rounding: where the flow is found by a quadrature, its steps depend on the forcing.
        if not same or not all(np.allclose(getattr(other, name), getattr(table, name), rtol=1e-9) for name in "AUV"):
            raise ValueError(f"the table is none of {integrator.name!r} and {sde!r} in data prediction")
        return table.B[:steps] - other.B[:steps]

    # A step in which D counts for nothing must have no weight for it: that tells data prediction from others.
    if not np.array_equal(other_weights(lambda t: np.zeros(np.shape(t))), table.B[:steps]):
        raise ValueError(
            f"posterior='conjugate' integrates E[x_0 | z], and {integrator.name!r} with {integrator.hyper} does not: "
            "take exponential_multistep, predictor_corrector or exponential_runge_kutta with prediction='data'"
        )
    g = gain(sde, noise_std, data_std)
    levels = _levels(modes.singular_values(), noise_std / (sde.data_std or data_std))
    weights = np.zeros((table.nfe, len(levels), table.B.shape[1], table.num_blocks))
    last = np.zeros((table.nfe, len(levels)))
    for i, level in enumerate(levels):
        weights[:steps, i] = other_weights(lambda t, level=level: 1 - weight * g(t, level))[..., 0]
        if denoise:
            # A weight above 1 is for the way: here the posterior mean is what is asked for.
            last[-1, i] = min(weight, 1.0) * g(np.float64(grid[-1]), level)
    return Pull(None, modes, modes.response(levels), weights, last)


def _levels(values: np.ndarray, ratio: float) -> np.ndarray:
    """Return rising singular values at which weights are computed, ``[L]``; ``ratio`` is ``noise_std / data_std``."""
    low = max(values.min(), ratio * np.sqrt(_NO_GAIN))
    if ratio == 0 or low >= values.max() / (1 + 1e-6):
        return np.array([values.min() if ratio == 0 else values.max()])
    return np.geomspace(low, values.max(), _LEVELS)
