"""Samples from a model: any sampler, any budget, every image a function of (seed, index)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks, random
from psld_jax.build import Model
from psld_jax.errors import is_count
from psld_jax.settings import Setting, choose
from psld_jax.solve import SOLVERS, sample, sample_ode

Array = Any


def resolve(
    model: Model,
    sampler: str = "auto",
    nfe: int = 20,
    *,
    grid: str | Sequence[float] = "auto",
    rho: float = 7.0,
    **hyper: Any,
) -> Setting:
    """The setting that these arguments of :func:`generate` mean for ``model``.

    ``sampler="auto"`` is what was tuned for the model at the nearest budget, else a rule (``settings.choose``).
    ``grid="auto"`` is the grid that was tuned with it, and ``"quadratic"`` for a sampler that is named.
    """
    if sampler != "auto":
        return Setting(sampler, "quadratic" if _is(grid, "auto") else _times(grid), rho, hyper)
    if hyper:
        raise ValueError(f'sampler="auto" chooses its hyper-parameters; name a sampler to set {sorted(hyper)}')
    chosen = choose(model.sde, model.tuned, nfe)
    return chosen if _is(grid, "auto") else dataclasses.replace(chosen, grid=_times(grid), rho=rho)


def _is(grid: Any, name: str) -> bool:
    return isinstance(grid, str) and grid == name


def _times(grid: Any) -> str | tuple[float, ...]:
    return grid if isinstance(grid, str) else tuple(map(float, grid))


def generate_states(
    model: Model,
    sampler: str = "auto",
    *,
    nfe: int = 20,
    n: int = 64,
    seed: int = 0,
    grid: str | Sequence[float] = "auto",
    rho: float = 7.0,
    t_end: float = 1e-3,
    denoise: bool = True,
    batch_size: int = 256,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    **hyper: Any,
) -> tuple[blocks.State, np.ndarray]:
    """Like :func:`generate`, but returns all K blocks, and the NFE of each sample ``[n]``.

    ``progress`` wraps the iterable of batches, e.g. ``rich.progress.track`` or ``tqdm.tqdm``.
    """
    for name, value in (("n", n), ("batch_size", batch_size)):
        if not is_count(value):
            raise ValueError(f"{name}={value!r} must be an integer >= 1")
    adaptive = sampler in SOLVERS
    if adaptive and hyper:
        raise ValueError(f"the adaptive solver {sampler!r} has no hyper-parameters, got {sorted(hyper)}")
    table = None
    if not adaptive:
        setting = resolve(model, sampler, nfe, grid=grid, rho=rho, **hyper)
        table = setting.table(model.sde, nfe, t_end=t_end, denoise=denoise)
    key = jax.random.key(seed)
    size = min(batch_size, n)
    parts, counts = [], []
    for start in progress(range(0, n, size)):
        # The last batch is filled up with samples beyond n: one shape, so one program and the same bits.
        keys = random.sample_keys(key, jnp.arange(start, start + size))
        z_T = model.sde.prior_sample(keys, (size, *model.image_shape))
        if table is None:
            z, count = sample_ode(
                model.eps_fn,
                model.sde,
                z_T,
                t_end=t_end,
                solver=sampler,
                rtol=rtol,
                atol=atol,
                denoise=denoise,
            )
        else:
            z, count = sample(model.eps_fn, table, z_T, keys), np.full(len(keys), table.nfe)
        parts.append(jax.tree.map(np.asarray, z))
        counts.append(np.asarray(count))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts), np.concatenate(counts)[:n]


def generate(model: Model, sampler: str = "auto", **options: Any) -> np.ndarray:
    """Images from a model, float32 NHWC in [-1, 1].

    Image ``i`` is a function of ``(seed, i)``, whatever ``n`` and ``batch_size`` are (to the bit for the exact score;
    a network may round differently in batches of another shape).

    Args:
      model: from ``psld_jax.load``.
      sampler: an integrator or a paper acronym, or ``rk23``, ``rk45``, ``tsit5``, ``dopri8``; ``"auto"`` is what was
        tuned for the model, see :func:`resolve`.
      options: ``nfe`` (budget, denoising included), ``n``, ``seed``, ``grid`` (a name or times), ``rho`` (of the power
        grid), ``t_end``, ``denoise``, ``batch_size``, ``rtol`` and ``atol`` (adaptive solvers), and the sampler's
        hyper-parameters (``lam``, ``lam_s``, ...).

    Raises:
      ValueError: for anything unknown or out of range, before anything is compiled.
    """
    return np.clip(generate_states(model, sampler, **options)[0][0], -1.0, 1.0)
