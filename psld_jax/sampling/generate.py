"""Drawing samples from a model by any sampler with any budget. Every image is a function of (seed, index)."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from psld_jax import blocks
from psld_jax._runtime.checks import check_flag, check_number
from psld_jax._runtime.errors import check_choice, check_counts, shown
from psld_jax.build import Model, check_model
from psld_jax.conditioning.bound import Bound
from psld_jax.conditioning.steering import Steering
from psld_jax.integrators.baselines import LAST_STEPS
from psld_jax.integrators.tableau import Tableau
from psld_jax.sampling.adaptive import MAX_STEPS, SOLVERS, check_solver
from psld_jax.sampling.sampler import Sampler
from psld_jax.sampling.settings import MEASURED, Setting, choose, given_times
from psld_jax.sampling.solver import LEARNED, Solver, load_solver

Array = Any


def resolve(
    model: Model,
    sampler: str = "auto",
    nfe: int = 20,
    *,
    grid: str | Sequence[float] = "auto",
    rho: float = 7.0,
    t_start: float | None = None,
    solver: Solver | str | os.PathLike[str] | None = None,
    usable: Callable[[Solver], bool] = lambda solver: False,
    **hyper: Any,
) -> Setting:
    """Return the setting that these arguments of :func:`generate` mean for ``model``.

    ``sampler="auto"`` takes the solver that was learned for the budget, else the setting that was tuned for the nearest
    budget, else a rule (``settings.choose``). Only learned solvers that are ``usable`` count, by default none.
    ``grid="auto"`` takes the grid that was tuned with that setting. For a sampler that is given by name it is the grid
    of the diffusion (``sde.grid``: ``"quadratic"`` for PSLD and VP). ``t_start=None`` is what was tuned, or 1.

    Raises:
      ValueError: for hyper-parameters beside ``sampler="auto"``, a solver beside another sampler or a grid, or another
        start than that of times that were tuned; what is unknown is found when a table is made.
    """
    if solver is not None or sampler == LEARNED:
        return _learned(sampler, solver, grid, t_start, hyper)
    if sampler != "auto":
        grid = model.sde.grid if _is(grid, "auto") else _times(grid)
        return Setting(sampler, grid, rho, hyper, t_start=1.0 if t_start is None else t_start)
    if hyper:
        raise ValueError(f'sampler="auto" chooses its hyper-parameters; name a sampler to set {sorted(hyper)}')
    if _is(grid, "auto") and t_start is None:
        return choose(model, nfe, usable)
    setting = choose(model, nfe, lambda _: False)
    tuned = setting.grid if _is(grid, "auto") and not isinstance(setting.grid, str) else None
    if tuned is not None and t_start is not None and not np.isclose(t_start, tuned[0], rtol=1e-9):
        raise ValueError(
            f"t_start={t_start}, but the times that were tuned start at {tuned[0]:.6g}: leave t_start out, or "
            f"give the name of a grid with it, e.g. grid={model.sde.grid!r}"
        )
    changed = {} if _is(grid, "auto") else {"grid": _times(grid), "rho": rho, "t_start": 1.0}
    changed |= {} if t_start is None else {"t_start": t_start}
    return dataclasses.replace(setting, **changed)


def _learned(sampler: str, solver: Any, grid: Any, t_start: float | None, hyper: dict[str, Any]) -> Setting:
    """Return the setting of a learned solver, or of the file that it is in."""
    if solver is None:
        raise ValueError(f"sampler={LEARNED!r} needs solver=..., a learned solver or the file of one")
    if sampler not in ("auto", LEARNED):
        raise ValueError(f"solver is a sampler by itself; leave sampler={sampler!r} out")
    if hyper or not _is(grid, "auto") or t_start is not None:
        wrong = sorted(hyper) or ("t_start" if _is(grid, "auto") else "grid")
        raise ValueError(f"a learned solver has its own times and coefficients; leave {wrong} out")
    return Setting.learned(solver if isinstance(solver, Solver) else load_solver(solver))


def _is(grid: Any, name: str) -> bool:
    return isinstance(grid, str) and grid == name


def _times(grid: Any) -> str | tuple[float, ...]:
    if isinstance(grid, str):
        return grid
    try:
        return tuple(map(float, grid))
    except (TypeError, ValueError):
        raise ValueError(f"grid={shown(grid)} must be a name or falling times, e.g. (1.0, 0.5, 1e-3)") from None


def prepare(
    model: Model,
    sampler: str = "auto",
    *,
    nfe: int = 20,
    grid: str | Sequence[float] = "auto",
    rho: float = 7.0,
    solver: Solver | str | os.PathLike[str] | None = None,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
    t_end: float | None = None,
    t_start: float | None = None,
    denoise: bool | str = True,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = MAX_STEPS,
    **options: Any,
) -> Sampler:
    """Make the :class:`Sampler` that these arguments of :func:`generate` mean for ``model``, and check all of them.

    Raises:
      ValueError: for anything unknown or out of range, or a condition that the sampler or the model cannot take.
    """
    check_model(model)
    if not isinstance(sampler, Hashable):
        raise ValueError(f"sampler={shown(sampler)} must be a name")
    conditions = {name: options.pop(name) for name in _CONDITIONS if name in options}
    if t_start is not None:
        check_number("t_start", t_start, 0, 1, strict=True)
    if conditions.get("operator") is not None and t_start is not None:
        # A measurement tells where to start; what the setting leads there is noise.
        conditions["t_start"], t_start = t_start, None
    steering, hyper = Steering(**conditions), options
    if not model.image_shape:
        raise ValueError("the model does not know the shape of its images: give from_denoiser an image_shape")
    check_counts(nfe=nfe, max_steps=max_steps)
    nfe = int(nfe)
    rho = check_number("rho", rho, 0, strict=True)
    check_end(t_end, denoise)
    if solver is not None and not isinstance(solver, Solver):
        solver = load_solver(solver)  # once, whatever number of budgets is tried
    bound = steering.bind(model) if conditions else None
    given = sigmas is not None or timesteps is not None
    if given:
        grid, nfe = given_times(model.sde, sampler, sigmas, timesteps, hyper, denoise, steering.resample)
        t_end = grid[-1]
    if sampler not in SOLVERS:

        def usable(known: Solver) -> bool:
            fits = known.fits(model.sde, t_end, denoise, steering.resample)
            # Its states between steps are its own, not those that known pixels are given (docs/results.md).
            return fits and known.is_for(model.fingerprint) and steering.t_start == 1 and steering.known is None

        left_open = sampler == "auto" and solver is None and not hyper  # resolve() refuses "auto" with others

        def setting_for(budget: int) -> Setting:
            if steering.integrated and left_open:
                # What was tuned need not predict the data, whatever grid was asked for.
                return MEASURED if _is(grid, "auto") else dataclasses.replace(MEASURED, grid=_times(grid), rho=rho)
            setting = resolve(
                model, sampler, budget, grid=grid, rho=rho, t_start=t_start, solver=solver, usable=usable, **hyper
            )
            if not (left_open and _is(grid, "auto")):
                return setting
            # Nobody asked for the times and the start of "auto": they give way to a start or an end that was asked for.
            if steering.t_start < 1 and setting.solver is None:
                named = {} if isinstance(setting.grid, str) else {"grid": model.sde.grid, "rho": rho}
                return dataclasses.replace(setting, t_start=1.0, **named)
            setting = setting.until(t_end, model.sde)
            if t_start is None and isinstance(setting.grid, str) and t_end is not None and t_end >= setting.t_start:
                return dataclasses.replace(setting, t_start=1.0)
            return setting

        setting, table = _within_budget(setting_for, bound, model, nfe, t_end, denoise, given)
        _check_network(setting, model)
        return _checked(Sampler(model, setting, table, {}, bound))
    if solver is not None:
        raise ValueError(f"solver is a sampler by itself; leave sampler={sampler!r} out")
    if steering.known is not None or steering.resample > 1:
        raise ValueError(f"known pixels are replaced between steps; the adaptive solver {sampler!r} has none to show")
    if steering.guidance_rule != "cfg" or steering.momentum:
        raise ValueError(f"guidance_rule='cfg++' and momentum change the table of a sampler; {sampler!r} has none")
    if t_start not in (None, 1):
        raise ValueError(f"t_start={t_start} is for samplers with a grid; {sampler!r} is adaptive")
    if steering.integrated or steering.t_start < 1:
        raise ValueError(f"posterior='conjugate' and t_start are for samplers with a grid; {sampler!r} is adaptive")
    if hyper:
        raise ValueError(f"the adaptive solver {sampler!r} has no hyper-parameters, got {sorted(hyper)}")
    adaptive = {
        "t_end": model.sde.t_end if t_end is None else t_end,
        "solver": sampler,
        "rtol": rtol,
        "atol": atol,
        "denoise": denoise,
        "max_steps": int(max_steps),
    }
    check_solver(sampler, rtol, atol)
    return _checked(Sampler(model, None, None, adaptive, bound))


def _checked(sampler: Sampler) -> Sampler:
    """Return ``sampler``; raise a ``ValueError`` if it cannot take a condition that acts on the steps of its table."""
    chosen = None if sampler.steering is None else sampler.steering.steering
    if chosen is not None and (chosen.integrated or chosen.clip_noise != "new"):
        _ = sampler.conditions  # kept with the sampler, which needs it in any case
    return sampler


def check_end(t_end: Any, denoise: Any) -> None:
    """Raise a ``ValueError`` unless ``t_end`` is ``None`` or a time, and ``denoise`` a flag or a last step's name."""
    if t_end is not None:
        check_number("t_end", t_end, 0, 1, strict=True)
    if isinstance(denoise, str):
        check_choice("denoise", denoise, LAST_STEPS)
    else:
        check_flag("denoise", denoise)


_CONDITIONS = tuple(field.name for field in dataclasses.fields(Steering))


def _within_budget(
    setting_for: Callable[[int], Setting],
    bound: Bound | None,
    model: Model,
    nfe: int,
    t_end: float | None,
    denoise: bool | str,
    given: bool,
) -> tuple[Setting, Tableau]:
    """Return the setting and the largest table whose evaluations, those of guidance included, ``nfe`` allows.

    If its times were given, it is the whole table.
    """
    options: dict[str, Any] = {"t_end": t_end, "denoise": denoise}
    if bound is None:
        setting = setting_for(nfe)
        return setting, setting.table(model.sde, nfe, **options)
    options |= {name: getattr(bound.steering, name) for name in ("resample", "jump", "t_start")}
    # Guidance at most doubles the evaluations; how much it does depends on where the grid lies.
    least, budget = 0, nfe
    while budget > 0:
        setting = setting_for(budget)
        try:
            table = setting.table(model.sde, budget, **options)
        except ValueError:
            if not least:
                raise
            break
        least = bound.evaluations(table).forward
        if given or least <= nfe:
            return setting, table
        # An evaluation less in the budget is at most two less with guidance, but for whole steps and where it acts.
        step = bound.steering.resample * (int(np.diff(table.last_rows, prepend=-1).max()) + 1)
        budget -= max(1, (least - nfe) // 2 - step)
    # Without a denoising step one row is a table, and guidance alone may make it too much.
    what = "one step" if setting.solver is None else f"the learned solver of {setting.solver.nfe} evaluations"
    raise ValueError(f"nfe={nfe} is too small: with guidance {what} takes {least} evaluations")


def _check_network(setting: Setting, model: Model) -> None:
    """Warn if a solver was learned for other weights: its numbers need not be the best for these."""
    solver = setting.solver
    if solver is not None and model.fingerprint and not solver.is_for(model.fingerprint):
        warnings.warn(
            f"the solver was learned for another network ({shown(solver.about['network'])}; this one is "
            f"{model.fingerprint!r}): it may be worse than sampler='auto' without it",
            stacklevel=4,
        )


def generate_states(
    model: Model,
    sampler: str = "auto",
    *,
    n: int = 64,
    seed: int = 0,
    batch_size: int = 256,
    check: bool = True,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    **options: Any,
) -> tuple[blocks.State, np.ndarray]:
    """Draw samples like :func:`generate`, but return all K blocks, and the NFE of each sample ``[n]``.

    ``progress`` wraps the iterable of batches, e.g. ``rich.progress.track`` or ``tqdm.tqdm``. Where several processes
    run together, each must call it; each draws its share, and all get all samples.

    Raises:
      ValueError: as :func:`generate`, and for labels, images or measurements that are neither one nor ``n``.
    """
    prepared = prepare(model, sampler, **options)
    return prepared.states(n, seed=seed, batch_size=batch_size, check=check, progress=progress)


def generate(model: Model, sampler: str = "auto", **options: Any) -> np.ndarray:
    """Draw images from a model, float32 ``[n, H, W, C]`` in [-1, 1].

    Image ``i`` is a function of ``(seed, i)``, whatever ``n``, ``batch_size`` and number of devices. Its noise is the
    same to the bit. Products of matrices may round differently in batches of another shape.

    Args:
      model: from ``psld_jax.load``.
      sampler: an integrator or a paper acronym, or ``rk23``, ``rk45``, ``tsit5``, ``dopri8``; ``"auto"`` is what was
        tuned for the model, see :func:`resolve`.
      options: ``nfe`` (budget, denoising included), ``n``, ``seed``, ``grid`` (a name or times), ``rho`` (of the power
        and edm grids), ``sigmas`` or ``timesteps`` (as given, in place of grid and budget), ``t_end``, ``t_start``
        (below 1 the grid starts there, and the state is led there as if the data were Gaussian, without an evaluation:
        see ``Setting``; with a measurement it starts as :class:`psld_jax.Steering` says), ``denoise``,
        ``batch_size``, ``rtol``, ``atol`` and ``max_steps`` (adaptive solvers), ``check`` (False returns samples that
        are not finite), the sampler's hyper-parameters (``lam``, ``lam_s``,
        ...), and conditions: any field of :class:`psld_jax.Steering`, such as ``label`` and ``classifier``, ``known``
        and ``mask``, ``operator`` and ``measurement``.

    Raises:
      ValueError: for anything unknown or out of range, before anything is compiled; and (``NotFinite``) for samples
        that hold NaN or infinite values.
    """
    return np.clip(generate_states(model, sampler, **options)[0][0], -1.0, 1.0)
