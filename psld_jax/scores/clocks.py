"""Clocks: what a network is told for the time of a diffusion, such as thousandths or a level's number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime.device import TimeFunction
from psld_jax._runtime.errors import check_choice
from psld_jax.sde import LinearSDE
from psld_jax.sde.discrete import Discrete

Array = Any

#: Clocks that have a name, see :func:`clock`.
CLOCKS = ("t", "999 t", "index", "sigma", "log sigma / 4")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearClock:
    """The clock ``rate t + offset``."""

    rate: Array
    offset: Array

    def __call__(self, t: Array) -> Array:
        """Return the network's time for ``t`` of any shape and dtype; same shape and dtype."""
        return jnp.asarray(self.rate, t.dtype) * t + jnp.asarray(self.offset, t.dtype)


def clock(times: str | Callable[[Array], Array] | None, sde: LinearSDE) -> Any:
    """Make the network's clock: a function of the diffusion's time, any shape; ``None`` for that time itself.

    - ``"t"``: from 0 to 1;
    - ``"999 t"``: score_sde_pytorch's networks of VP;
    - ``"index"``: the number of the level, for :class:`psld_jax.sde.Discrete` (diffusers, iDDPM);
    - ``"sigma"``: the noise level ``sde.sigma(t)`` (k-diffusion's denoisers, EDM's);
    - ``"log sigma / 4"``: EDM's ``c_noise``;
    - a function of your own, or ``None``.

    Raises:
      ValueError: for another name, or a clock that ``sde`` has not.
    """
    if times is None or callable(times):
        return None if times is None else blocks.as_pytree(times)
    name = " ".join(str(times).split())
    check_choice("clock of the network", name, CLOCKS)
    if name == "t":
        return None
    if name == "999 t":
        return LinearClock(np.float64(999.0), np.float64(0.0))
    if name == "index":
        if not isinstance(sde, Discrete):
            raise ValueError(
                f"times='index' counts the levels of psld_jax.sde.Discrete, and {sde!r} has none; "
                "psld_jax.scores.discrete_times(alphas_cumprod, sde) finds the level of equal noise"
            )
        return LinearClock(np.float64(sde.num_steps), np.float64(-1.0))
    if not np.isfinite(sde.sigma(np.float64(1.0))):
        raise ValueError(
            f"times={name!r}: the noise level of {sde!r} is infinite at t = 1; a network that is told it needs a path "
            "with a finite one, e.g. EDM or VESDE"
        )
    return TimeFunction(sde.sigma if name == "sigma" else lambda t: np.log(sde.sigma(t)) / 4, knots=sde.knots)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DiscreteTimes:
    """The clock that gives the index of a discrete schedule; make it with :func:`discrete_times`."""

    log_snr: TimeFunction
    levels: Array

    def __call__(self, t: Array) -> Array:
        """Return the index, a real number, of the same noise level as at ``t``; any shape."""
        levels = jnp.asarray(self.levels, t.dtype)
        return jnp.interp(-self.log_snr(t), levels, jnp.arange(len(levels), dtype=t.dtype))


def discrete_times(alphas_cumprod: Sequence[float], sde: LinearSDE) -> DiscreteTimes:
    """Make the clock of a network trained on levels ``alpha_bar_0 > alpha_bar_1 > ...``: the index with that noise.

    ``log SNR = log alpha_bar / (1 - alpha_bar)`` is the same; between two levels the index is interpolated, and outside
    of them it is the first or the last. :class:`psld_jax.sde.Discrete` is the diffusion that has these levels itself.

    Args:
      alphas_cumprod: ``[N]``, between 0 and 1, falling; diffusers' ``scheduler.alphas_cumprod``.
      sde: a diffusion of one block.

    Raises:
      ValueError: for levels that do not fall from below 1 to above 0, or a diffusion of more blocks.
    """
    levels = np.asarray(alphas_cumprod, np.float64)
    if levels.ndim != 1 or len(levels) < 2 or not (levels[0] < 1 and levels[-1] > 0 and np.all(np.diff(levels) < 0)):
        raise ValueError("alphas_cumprod must be at least two numbers that fall, below 1 and above 0")
    if sde.num_blocks != 1:
        raise ValueError(f"discrete noise levels are those of a diffusion of one block, not of {sde.num_blocks}")
    return DiscreteTimes(TimeFunction(sde.log_snr, knots=sde.knots), np.log1p(-levels) - np.log(levels))
