"""Inpainting: after every step, known pixels are replaced by a draw of the forward process from their true values.

Lugmayr et al. (RePaint, 2022), section 4.1, here in phase space: position and momentum of a known pixel are replaced
together. It is a constraint on the state, so it works with every table.
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
from psld_jax._runtime.checks import as_pixels, check_flag
from psld_jax._runtime.errors import check_choice, check_kind, shown
from psld_jax.integrators.tableau import Tableau
from psld_jax.sde import LinearSDE, check_sde

Array = Any

TIMES = ("current", "original")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Known:
    """Which pixels are known, and the forward process at the times of a table; :func:`known_pixels` makes it.

    Attributes:
      x: images ``[n, H, W, C]``; mask: bool, ``[n or 1, H, W, C]``, true where a pixel is known.
      mean, factor: ``[num_steps + 1, K, 1]`` and ``[num_steps + 1, K, K]``: a known pixel is ``mean x + factor xi``.
      draws: ``[num_steps + 1]``, number of the draw ``xi``; they follow those of the table.
      num_draws: how many there are.
    """

    x: Array
    mask: Array
    mean: Array
    factor: Array
    draws: Array
    num_draws: int = dataclasses.field(metadata={"static": True})

    @property
    def num_steps(self) -> int:
        """Number of steps of the table that it was made for."""
        return len(self.draws) - 1

    def of(self, x: Array, mask: Array) -> Known:
        """Return the same for these images ``[n, H, W, C]`` and this mask of 0 and 1, ``[n or 1, H, W, C or 1]``."""
        return dataclasses.replace(self, x=x, mask=jnp.asarray(mask).astype(bool))

    def __call__(
        self, z: blocks.State, step: Array, draw: Callable[[Array, blocks.State], blocks.State]
    ) -> blocks.State:
        """Return the state with known pixels as the forward process has them after ``step`` steps.

        Leaves ``[n, H, W, C]``, a scalar ``step``; same structure and dtype.
        """
        dtype = z[0].dtype
        known = blocks.add(
            blocks.like(z, blocks.apply(self.mean[step].astype(dtype), (self.x.astype(dtype),))),
            blocks.apply(self.factor[step].astype(dtype), draw(self.draws[step], z)),
        )
        return jax.tree.map(lambda true, free: jnp.where(self.mask, true, free), known, z)


def known_pixels(
    sde: LinearSDE, table: Tableau, x: Array, mask: Array, *, fresh: bool = True, time: str = "current"
) -> Known:
    """Make the constraint by which :func:`psld_jax.sample` keeps known pixels.

    Args:
      sde: the diffusion.
      table: the sampler's.
      x: images ``[n, H, W, C]``; what they hold where the mask is 0 does not matter.
      mask: ``[n, H, W, C]``, or 1 in place of n or C, or ``[H, W]``: 1 where a pixel is known, 0 where it is to be
        found.
      fresh: draw the noise of known pixels anew after every step, as the original does; else once for all steps, so
        that they move on a smooth path, as those of a deterministic sampler do.
      time: ``"current"``: known pixels have the noise of the time that the step has reached; or ``"original"``: of the
        time that it came from, as the original has them by mistake (and so they end at ``mu x``, not at ``x``).

    Raises:
      ValueError: for a mask of another shape, or with other values than 0 and 1, or an unknown ``time``.
    """
    check_sde(sde)
    check_kind("table", table, Tableau, "one of psld_jax.tabulate")
    check_flag("fresh", fresh)
    if not isinstance(x, Tracer):
        values = np.asarray(x)
        if values.ndim != 4 or (values.dtype.kind not in "uf" and values.dtype.name != "bfloat16"):
            raise ValueError(f"x={shown(x)} must be images [n, H, W, C] in [-1, 1]")
        x = as_pixels("x", np.where(as_mask(mask, values.shape) == 1, values, 0).astype(values.dtype), values.shape[1:])
    x = jnp.asarray(x)
    mask = as_mask(mask, x.shape)
    return known_law(sde, table, fresh=fresh, time=time).of(x, mask)


def known_law(sde: LinearSDE, table: Tableau, *, fresh: bool = True, time: str = "current") -> Known:
    """Do what :func:`known_pixels` does before the pixels are known; :meth:`Known.of` adds them.

    Raises:
      ValueError: for an unknown ``time``.
    """
    check_choice("time of known pixels", time, TIMES)
    reached = table.times if table.lead is None else np.append(table.lead[0], table.times[1:])
    times = reached if time == "current" else np.append(reached[0], reached[:-1])
    # At t = 0 a known pixel is what it is; its momentum there is not asked for.
    noisy = np.where(table.times > 0, 1.0, 0.0)[:, None, None]
    at, start = np.where(times > 0, times, 1.0), np.eye(sde.num_blocks)[:, :1]
    mean, factor = np.where(times[:, None, None] > 0, sde.mean(at), start), noisy * sde.factor(at)
    if table.lead is not None:
        # The way to the start of the grid is for noise. Known pixels are put where that way takes them to their law.
        mean[0], factor[0] = np.linalg.solve(table.lead[1], mean[0]), np.linalg.solve(table.lead[1], factor[0])
    return Known(
        None,
        None,
        mean,
        factor,
        np.full(len(times), table.num_draws) + (np.arange(len(times)) if fresh else 0),
        len(times) if fresh else 1,
    )


def as_mask(mask: Array, shape: tuple[int, ...]) -> np.ndarray:
    """Return ``mask``, also one ``[H, W]``, as ``[n or 1, H, W, C or 1]`` for images of ``shape [n, H, W, C]``.

    Raises:
      ValueError: as :func:`check_mask`.
    """
    try:
        mask = np.asarray(mask)
    except ValueError:
        raise ValueError("the mask must be one array, [H, W] or [n, H, W, C]") from None
    if mask.ndim == 2:
        mask = mask[..., None]
    mask = mask[None] if mask.ndim == 3 else mask
    check_mask(mask, shape)
    return mask


def check_mask(mask: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise a ``ValueError`` unless ``mask`` is of 0 and 1, and of the images' shape, ``[n or 1, H, W, C or 1]``."""
    if mask.dtype.kind not in "biuf":
        raise ValueError(f"the mask must hold 1 (known) and 0 only, got dtype {mask.dtype}")
    allowed = [{size, 1} if axis in (0, len(shape) - 1) else {size} for axis, size in enumerate(shape)]
    if mask.ndim != len(shape) or any(size not in sizes for size, sizes in zip(mask.shape, allowed, strict=True)):
        raise ValueError(f"the mask has shape {mask.shape}, the images {shape}; n and C may be 1 in the mask")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f"the mask must hold 1 (known) and 0 only, got values from {mask.min()} to {mask.max()}")
