"""The settings of a sampler, and ``sampler="auto"``, which takes the settings that were tuned for a model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psld_jax import integrators
from psld_jax._runtime.checks import check_number
from psld_jax._runtime.errors import check_counts, check_kind, is_count, unknown, why
from psld_jax._runtime.journal import plain
from psld_jax.integrators import grids
from psld_jax.integrators.tableau import Tableau, from_prior, tabulate
from psld_jax.sampling.adaptive import SOLVERS
from psld_jax.sampling.solver import LEARNED, Solver, load_solver
from psld_jax.sde import LinearSDE

#: The fields of a setting in JSON, beside a solver.
_WRITTEN = ("sampler", "grid", "rho", "hyper")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A sampler, its time grid and its hyper-parameters; with a diffusion and a budget it becomes a table.

    Attributes:
      sampler: name of an integrator.
      grid: name of a grid, or descending times, which other budgets stretch (``grids.resample``).
      rho: of the ``power`` and ``edm`` grids.
      t_start: where the grid starts, of times that are given the first. Below 1 the state is led there from the noise
        of ``t = 1`` as if the data were Gaussian, without an evaluation (``analytic_start`` of :func:`tabulate`).
      hyper: hyper-parameters; those that are left out have their defaults.
      solver: the table itself, if it was learned: ``sampler`` is ``"learned"`` then, and the rest has no meaning.
    """

    sampler: str
    grid: str | tuple[float, ...] = "quadratic"
    rho: float = 7.0
    hyper: dict[str, Any] = dataclasses.field(default_factory=dict)
    solver: Solver | None = None
    t_start: float = 1.0

    def __post_init__(self) -> None:
        check_kind("sampler", self.sampler, str, "a name")
        check_kind("hyper", self.hyper, dict, "a dict of hyper-parameters")
        check_number("rho", self.rho, 0, strict=True)
        if (self.sampler == LEARNED) != (self.solver is not None):
            raise ValueError(f"sampler={self.sampler!r} with solver={self.solver}: a solver goes with {LEARNED!r}")
        # Numbers of numpy and JAX become those of Python, which JSON can hold.
        object.__setattr__(self, "t_start", check_number("t_start", self.t_start, 0, 1, strict=True))
        if self.t_start == 1:
            return
        if self.solver is not None:
            raise ValueError(f"a learned solver has its own start; leave t_start={self.t_start} out")
        if isinstance(self.grid, str):
            return
        times = grids.validate(self.grid)
        if not np.isclose(times[0], self.t_start, rtol=1e-9):
            raise ValueError(
                f"t_start={self.t_start} must be the first of the times that are given, {times[0]}, or give the "
                "name of a grid"
            )

    @classmethod
    def learned(cls, solver: Solver) -> Setting:
        """Make the setting of a learned solver."""
        return cls(LEARNED, solver=solver)

    @property
    def name(self) -> str:
        """The name of the sampler: the integrator's own, if an acronym was given."""
        return LEARNED if self.solver is not None else self.integrator().name

    def integrator(self) -> integrators.Integrator:
        """The integrator of the setting; ``ValueError`` for an unknown name or hyper-parameter."""
        return integrators.get(self.sampler, **self.hyper)

    def until(self, t_end: float | None, sde: LinearSDE) -> Setting:
        """Return the setting for grids that end at ``t_end``: other times than these give way to the grid of ``sde``.

        The start stays. ``None`` leaves everything as it is.
        """
        given = not isinstance(self.grid, str) and self.solver is None
        if not given or t_end is None or np.isclose(t_end, self.grid[-1], rtol=1e-9):
            return self
        return dataclasses.replace(self, grid=sde.grid)

    def table(
        self,
        sde: LinearSDE,
        nfe: int,
        *,
        t_end: float | None = None,
        denoise: bool | str = True,
        resample: int = 1,
        jump: int = 1,
        t_start: float = 1.0,
    ) -> Tableau:
        """Make the table on the largest grid that ``nfe`` evaluations allow, denoising and resampling included.

        The grid ends at ``sde.t_end`` unless ``t_end`` is given. With ``t_start`` below 1 one that is named starts
        there, whatever the setting says, and the state is taken for noise of that time. Otherwise the state is that of
        the prior, see :func:`psld_jax.integrators.tableau.from_prior` for times that are given and start below 1.

        Raises:
          ValueError: for an unknown sampler, grid or hyper-parameter, or a budget below one step.
        """
        if t_start < 1 and (self.solver is not None or not isinstance(self.grid, str)):
            raise ValueError(
                f"t_start={t_start} is for a grid that is named; times that are given have their own start"
            )
        if self.solver is not None:
            return self.solver.table_for(sde, nfe, t_end=t_end, denoise=denoise, resample=resample)
        if self.sampler in SOLVERS:
            raise ValueError(f"{self.sampler!r} is adaptive and has no table; use psld_jax.sample_ode")
        if self.sampler == "auto":
            raise ValueError("'auto' takes what was tuned for a model, and has no table; name a sampler")
        try:
            integrators.get(self.sampler)  # the name alone: what is wrong with a hyper-parameter is said below
        except ValueError:
            raise unknown("sampler", self.sampler, ("auto", LEARNED, *integrators.available(), *SOLVERS)) from None
        integrator = self.integrator()
        options: dict[str, Any] = {"t_end": sde.t_end if t_end is None else t_end}
        if isinstance(self.grid, str):
            options |= {
                "t_start": t_start if t_start < 1 else self.t_start,
                **grids.options_of(self.grid, sde, self.rho),
            }
        check_counts(resample=resample, jump=jump)
        last = bool(denoise)
        once = (nfe - last) // resample + last if is_count(nfe) else nfe
        grid = grids.for_budget(self.grid, integrator, once, denoise, **options)
        analytic = self.t_start < 1 <= t_start
        table = tabulate(integrator, sde, grid, denoise, analytic_start=analytic, resample=resample, jump=jump)
        return table if analytic or t_start < 1 else from_prior(table, sde)

    def describe(self) -> str:
        """Describe it in one line."""
        if self.solver is not None:
            return self.solver.describe()
        grid = self.grid if isinstance(self.grid, str) else ""
        chosen = [f"{name}={value}" for name, value in self.hyper.items()]
        rho = {"power": f"rho={self.rho:g}", "edm": f"edm grid, rho={self.rho:g}"}
        start = [f"analytic start at t={self.t_start:.3g}"] if self.t_start < 1 else []
        return ", ".join([self.sampler, rho.get(grid, f"{grid} grid" if grid else "times of its own"), *start, *chosen])

    def to_json(self) -> dict[str, Any]:
        """Return a dict that JSON can hold; :meth:`from_json` reads it."""
        values = {name: plain(getattr(self, name)) for name in _WRITTEN}
        values |= {"t_start": self.t_start} if self.t_start < 1 else {}
        return values if self.solver is None else {**values, "solver": self.solver.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any], directory: Path | None = None) -> Setting:
        """Read the setting that :meth:`to_json` wrote, or one that names the file of its solver, in ``directory``.

        Raises:
          ValueError: for anything else.
        """
        check_kind("a sampler's setting", values, dict, "a dict, as to_json makes it")
        names = set(_WRITTEN)
        if set(values) == {*names, "solver"}:
            solver = values["solver"]
            if isinstance(solver, str):
                return cls.learned(load_solver((directory or Path()) / solver))
            return cls.learned(Solver.from_json(solver))
        if set(values) - {"t_start"} != names:
            raise ValueError(f"a sampler's setting holds {sorted(names)} and may hold t_start, got {sorted(values)}")
        check_kind("hyper", values["hyper"], dict, "a dict of hyper-parameters")
        hyper = {name: _tuples(value) for name, value in values["hyper"].items()}
        return cls(**{**values, "grid": _tuples(values["grid"]), "hyper": hyper})


def given_times(
    sde: LinearSDE,
    sampler: str,
    sigmas: Any,
    timesteps: Any,
    hyper: dict[str, Any],
    denoise: bool | str,
    resample: int = 1,
) -> tuple[tuple[float, ...], int]:
    """Return times, given as such or as noise levels, and the evaluations that they take without guidance.

    Raises:
      ValueError: for both, an adaptive or unnamed sampler, or times that ``grids.from_sigmas`` or
        ``grids.from_timesteps`` refuse.
    """
    if sigmas is not None and timesteps is not None:
        raise ValueError("sigmas and timesteps say the same thing; give one of them")
    if sampler == "auto" or sampler in SOLVERS:
        raise ValueError(f"sampler={sampler!r} chooses its own times; name an integrator to give sigmas or timesteps")
    from_list = grids.from_sigmas if timesteps is None else grids.from_timesteps
    times = from_list(sde, sigmas if timesteps is None else timesteps)
    integrator = Setting(sampler, hyper=hyper).integrator()
    once = integrator.nfe_per_step * (len(times) - 1) + integrator.nfe_once
    return tuple(times), once * resample + bool(denoise)


def _tuples(value: Any) -> Any:
    """Turn lists into tuples, which JSON does not have."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What :func:`psld_jax.tune` found for one budget: ``setting``, best for ``nfe`` evaluations."""

    nfe: int
    setting: Setting


#: Up to so many evaluations a model that was not tuned has an analytic start, with one block and with more. On every
#: path it helped up to 6; at 8 it halved the error in phase space, and helped nowhere else (docs/results.md).
_LAST_LED, _LAST_LED_IN_PHASE_SPACE = 6, 8

#: The sampler of ``"auto"`` for such a model.
UNTUNED = "predictor_corrector"


def rule(model: Any, nfe: int) -> Setting:
    """Return the setting for a model that was not tuned: steps in the time of a VP diffusion, whatever the path.

    Few evaluations start at the noise level ``sigma = D^(1/2)``, for images of ``D`` numbers. The mean of an image has
    noise of size 1 there, so hardly anything is seen of it before.
    """
    sde, level = model.sde, np.sqrt(np.prod(model.image_shape or 0))
    last = _LAST_LED if sde.num_blocks == 1 else _LAST_LED_IN_PHASE_SPACE
    start = 1.0
    if nfe <= last and sde.sigma(np.float64(sde.t_end)) < level < sde.sigma(np.float64(1.0)):
        start = float(sde.time(level))
    return Setting(UNTUNED, "vp", hyper={"order": 3, "variable": "vp_time"}, t_start=start)


#: The setting for a measurement that is integrated, whatever was tuned for free samples and whatever the path. At few
#: evaluations higher orders overshoot where its weight is above 1 (docs/results.md).
MEASURED = Setting("exponential_multistep", "vp", hyper={"order": 1, "variable": "log_snr"})


def choose(model: Any, nfe: int, usable: Callable[[Solver], bool] = lambda solver: True) -> Setting:
    """Choose for ``sampler="auto"``: a solver that was learned for ``nfe`` evaluations, if there is a ``usable`` one.

    Otherwise what was tuned for the budget nearest to ``nfe`` (in its logarithm), else :func:`rule`. Both are in
    ``model.tuned``.
    """
    for row in model.tuned:
        if row.setting.solver is not None and row.nfe == nfe and usable(row.setting.solver):
            return row.setting
    others = [row for row in model.tuned if row.setting.solver is None]
    return nearest(others, max(nfe, 1)) if others else rule(model, nfe)


def nearest(tuned: Sequence[Tuned], nfe: int) -> Setting:
    """Return the setting for the budget nearest to ``nfe`` in its logarithm."""
    return min(tuned, key=lambda row: abs(np.log(row.nfe / nfe))).setting


def read_tuned(path: Path, which: str = "best") -> tuple[str, tuple[Tuned, ...]]:
    """Read what a file of tuned samplers belongs to, and the best of each budget, or ``"rows"``: of each sampler.

    Raises:
      ValueError: if there is no such file, or :func:`psld_jax.tune` has not written it.
    """
    try:
        content = json.loads(path.read_text())
        check_counts(**{f"{which}[{i}].nfe": row["nfe"] for i, row in enumerate(content[which])})
        rows = tuple(Tuned(row["nfe"], Setting.from_json(row["setting"], path.parent)) for row in content[which])
        if not rows:
            raise ValueError(f"{which} is empty")
        return content["model"], rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of tuned samplers ({why(error)}); --mode tune writes one") from None
