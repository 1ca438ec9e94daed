"""Samples from a model: any sampler, any budget, every image a function of (seed, index)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks, grids, integrators, random
from psld_jax.build import Model
from psld_jax.errors import is_count, unknown
from psld_jax.solve import SOLVERS, sample, sample_ode
from psld_jax.tableau import Tableau, tabulate

Array = Any


def make_table(
    model: Model,
    sampler: str,
    nfe: int,
    grid: str = "quadratic",
    t_end: float = 1e-3,
    denoise: bool = True,
    **hyper: Any,
) -> Tableau:
    """The table of ``sampler`` on the largest grid that ``nfe`` evaluations allow.

    Raises:
      ValueError: for an unknown sampler, grid or hyper-parameter, or a budget below one step.
    """
    if sampler in SOLVERS:
        raise ValueError(f"{sampler!r} is adaptive and has no table; use psld_jax.sample_ode")
    try:
        integrators.get(sampler)  # the name alone: what is wrong with a hyper-parameter is said below
    except ValueError:
        raise unknown("sampler", sampler, (*integrators.available(), *SOLVERS)) from None
    integrator = integrators.get(sampler, **hyper)
    options = {"sde": model.sde} if grid == "log_snr" else {}
    times = grids.for_budget(grid, integrator, nfe, denoise, t_end=t_end, **options)
    return tabulate(integrator, model.sde, times, denoise=denoise)


def generate_states(
    model: Model,
    sampler: str = "reduced_oba",
    *,
    nfe: int = 50,
    n: int = 64,
    seed: int = 0,
    grid: str = "quadratic",
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
    table = None if adaptive else make_table(model, sampler, nfe, grid, t_end, denoise, **hyper)
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


def generate(model: Model, sampler: str = "reduced_oba", **options: Any) -> np.ndarray:
    """Images from a model, float32 NHWC in [-1, 1].

    Image ``i`` is a function of ``(seed, i)``, whatever ``n`` and ``batch_size`` are (to the bit for the exact score;
    a network may round differently in batches of another shape).

    Args:
      model: from ``psld_jax.load``.
      sampler: an integrator or a paper acronym, or ``rk23``, ``rk45``, ``tsit5``, ``dopri8``.
      options: ``nfe`` (budget, denoising included), ``n``, ``seed``, ``grid``, ``t_end``, ``denoise``, ``batch_size``,
        ``rtol`` and ``atol`` (adaptive solvers), and the sampler's hyper-parameters (``lam``, ``lam_s``, ...).

    Raises:
      ValueError: for anything unknown or out of range, before anything is compiled.
    """
    return np.clip(generate_states(model, sampler, **options)[0][0], -1.0, 1.0)
