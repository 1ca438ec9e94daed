"""Samples from a model: any sampler, any budget, every image a function of (seed, index)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime import distributed, random, xla
from psld_jax._runtime.checks import check_finite, check_flag, check_number, check_seed
from psld_jax._runtime.errors import check_choice, check_counts
from psld_jax.build import Model
from psld_jax.conditioning.steering import Bound, Conditions, Steering
from psld_jax.integrators.baselines import LAST_STEPS
from psld_jax.integrators.tableau import Tableau
from psld_jax.sampling.adaptive import MAX_STEPS, SOLVERS, check_reached, check_solver, ode_problem, solve_ode
from psld_jax.sampling.loop import run_rows, sample
from psld_jax.sampling.rows import padded, padded_known
from psld_jax.sampling.settings import Setting, choose, given_times

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
    ``grid="auto"`` is the grid that was tuned with it, and that of the diffusion for a sampler that is named
    (``sde.grid``: ``"quadratic"`` for PSLD and VP).

    Raises:
      ValueError: for hyper-parameters beside ``sampler="auto"``; what is unknown is found when a table is made.
    """
    if sampler != "auto":
        return Setting(sampler, model.sde.grid if _is(grid, "auto") else _times(grid), rho, hyper)
    if hyper:
        raise ValueError(f'sampler="auto" chooses its hyper-parameters; name a sampler to set {sorted(hyper)}')
    chosen = choose(model.sde, model.tuned, nfe)
    return chosen if _is(grid, "auto") else dataclasses.replace(chosen, grid=_times(grid), rho=rho)


def _is(grid: Any, name: str) -> bool:
    return isinstance(grid, str) and grid == name


def _times(grid: Any) -> str | tuple[float, ...]:
    if isinstance(grid, str):
        return grid
    try:
        return tuple(map(float, grid))
    except TypeError:
        raise ValueError(f"grid={grid!r} must be a name or falling times, e.g. (1.0, 0.5, 1e-3)") from None


def _solve_rows(eps_fn, conditions, rows, count, z_T, keys, arrays):
    """A batch by the rows of a table: the samples, and the NFE of each."""
    eps_fn = conditions.eps_fn(eps_fn, arrays)
    z = run_rows(eps_fn, rows, count, z_T, keys, None, conditions.known_of(arrays))
    return z, jnp.full(len(keys), count)


def _solve_adaptively(eps_fn, conditions, problem, z_T, keys, arrays):
    """A batch by an adaptive solver: the samples, the NFE of each, and the time that each has reached."""
    return solve_ode(problem, conditions.eps_fn(eps_fn, arrays), z_T)


_solve_batch = xla.jit(_solve_adaptively)


@functools.partial(xla.jit, static_argnames=("work",))
def _on_all_devices(work, shared, own):
    """``work(*shared, *own)`` on every local device, each with its part of the samples."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("data",))
    mine, all_of_it = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    specs = {"in_specs": (all_of_it, mine), "out_specs": mine, "check_vma": False}
    return jax.shard_map(lambda shared, own: work(*shared, *own), mesh=mesh, **specs)(shared, own)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A model with all that is chosen about its sampling: a function of keys; :func:`prepare` makes one.

    Attributes:
      model: what is sampled from.
      setting: of a table-driven sampler; ``None`` if it is adaptive.
      table: its table.
      adaptive: keyword arguments of ``sample_ode``.
      steering: conditions on the samples, or ``None``.
    """

    model: Model
    setting: Setting | None
    table: Tableau | None
    adaptive: dict[str, Any]
    steering: Bound | None = None

    def __call__(self, key: Array, indices: Array) -> tuple[blocks.State, Array]:
        """Samples number ``indices [n]`` of ``key``, a state, and the NFE of each, ``[n]``; on all local devices."""
        devices = jax.local_device_count()
        numbers = np.resize(np.asarray(indices), -(-len(indices) // devices) * devices)
        own = self._own(key, numbers)
        if devices > 1:
            z, counts, *reached = _on_all_devices(self.work, self._shared, own)
        elif self.table is None:
            z, counts, *reached = _solve_batch(*self._shared, *own)
        else:
            # The program of pj.sample itself.
            z_T, keys, arrays = own
            eps_fn, known = self._conditions.eps_fn(self.model.eps_fn, arrays), self._conditions.known_of(arrays)
            z = sample(eps_fn, self.table, z_T, keys, known=known)
            counts, reached = jnp.full(len(numbers), self.nfe or 0), []
        if self.table is None:
            check_reached(self._shared[-1], reached[0], counts)
        return jax.tree.map(lambda leaf: leaf[: len(indices)], z), counts[: len(indices)]

    def lowered(self, n: int) -> Any:
        """The program of a batch of ``n``, as ``jax.jit(...).lower`` gives it; what it needs is known without a run."""
        return jax.jit(self.work, compiler_options=xla.options()).lower(*self.arguments(n))

    def arguments(self, n: int) -> tuple[Any, ...]:
        """What :attr:`work` takes for samples 0 to ``n - 1`` of seed 0, arrays ``[n, ...]`` among it."""
        return *self._shared, *self._own(jax.random.key(0), np.arange(n))

    @property
    def work(self) -> Callable[..., Any]:
        """The function that draws a batch, to be traced."""
        return _solve_rows if self.table is not None else _solve_adaptively

    @functools.cached_property
    def _conditions(self) -> Conditions:
        return Conditions() if self.steering is None else self.steering.conditions(self.table)

    @functools.cached_property
    def _shared(self) -> tuple[Any, ...]:
        """What all devices take: network, conditions, and the table or the solve."""
        conditions = dataclasses.replace(self._conditions, known=padded_known(self._conditions.known))
        eps_fn = blocks.as_pytree(self.model.eps_fn)
        if self.table is not None:
            return eps_fn, conditions, *padded(self.table, jnp.float32)
        a = self.adaptive
        problem = ode_problem(self.model.sde, jnp.float32, 1.0, a["t_end"], **{key: a[key] for key in _ADAPTIVE})
        return eps_fn, conditions, problem

    def _own(self, key: Array, indices: np.ndarray) -> tuple[Any, ...]:
        """What samples number ``indices [n]`` have of their own: start, key, and arrays of the conditions."""
        keys = random.sample_keys(key, indices)
        z_T = self.model.sde.prior_sample(keys, (len(indices), *self.model.image_shape))
        return z_T, keys, {} if self.steering is None else self.steering.arrays(indices)

    @property
    def nfe(self) -> int | None:
        """Network evaluations of a sample; ``None`` for an adaptive solver."""
        if self.table is None:
            return None
        return self.table.nfe if self.steering is None else self.steering.evaluations(self.table)

    def batches(self, seed: int, numbers: range, size: int) -> Iterator[tuple[int, blocks.State, np.ndarray]]:
        """Samples of these numbers and ``seed`` in batches: number of the first, and those of :meth:`batch`.

        ``size`` at a time, leaves ``[size, H, W, C]`` and NFE ``[size]``; the last batch fewer.
        """
        for start in range(numbers.start, numbers.stop, size):
            yield start, *self.batch(seed, range(start, min(start + size, numbers.stop)), size)

    def batch(self, seed: int, numbers: range, size: int) -> tuple[blocks.State, np.ndarray]:
        """Samples of these numbers, a state of numpy arrays, and the NFE of each.

        Leaves ``[n, H, W, C]``, NFE ``[n]``. They are filled up to ``size`` with those that follow: one shape, so one
        program and the same bits.
        """
        z, counts = self(jax.random.key(seed), np.arange(numbers.start, numbers.start + size))
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(numbers)], z), np.asarray(counts)[: len(numbers)]

    def draw(self, seed: int, numbers: range, size: int) -> np.ndarray:
        """Images of :meth:`batch`, float32 ``[n, H, W, C]`` in [-1, 1].

        Raises:
          NotFinite: as :meth:`check`.
        """
        state, _ = self.batch(seed, numbers, size)
        self.check(state)
        return np.clip(state[0], -1, 1)

    def check(self, state: blocks.State) -> None:
        """Raise ``NotFinite``, with sampler and budget, unless all of a state, leaves ``[n, ...]``, is finite."""
        budget = "adaptive" if self.nfe is None else f"{self.nfe} evaluations"
        name = self.adaptive["solver"] if self.setting is None else self.setting.describe()
        check_finite(
            f"samples of {name}, {budget}",
            state,
            len(state[0]),
            "Take more evaluations (nfe), another sampler (auto, predictor_corrector) or a larger t_end, or look at "
            "the weights; in Python check=False returns them as they are",
        )

    def about(self) -> dict[str, Any]:
        """What the samples of a key depend on, besides the model, as JSON can hold it."""
        table = None if self.table is None else {"times": self.table.times.tolist()}
        setting = None if self.setting is None else self.setting.to_json()
        steering = None if self.steering is None else self.steering.about()
        return {"setting": setting, "table": table, "adaptive": self.adaptive, "conditions": steering}


def prepare(
    model: Model,
    sampler: str = "auto",
    *,
    nfe: int = 20,
    grid: str | Sequence[float] = "auto",
    rho: float = 7.0,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
    t_end: float | None = None,
    denoise: bool | str = True,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = MAX_STEPS,
    **options: Any,
) -> Sampler:
    """The :class:`Sampler` that these arguments of :func:`generate` mean for ``model``; checks all of them.

    Raises:
      ValueError: for anything unknown or out of range, or a condition that the sampler or the model cannot take.
    """
    conditions = {name: options.pop(name) for name in _CONDITIONS if name in options}
    steering, hyper = Steering(**conditions), options
    if not model.image_shape:
        raise ValueError("the model does not know the shape of its images: give from_denoiser an image_shape")
    check_counts(nfe=nfe, max_steps=max_steps)
    nfe = int(nfe)
    check_number("rho", rho, 0, strict=True)
    check_end(t_end, denoise)
    bound = steering.bind(model) if conditions else None
    if sigmas is not None or timesteps is not None:
        grid, nfe = given_times(model.sde, sampler, sigmas, timesteps, hyper, denoise)
        t_end = grid[-1]
    if sampler not in SOLVERS:
        setting = resolve(model, sampler, nfe, grid=grid, rho=rho, **hyper)
        return Sampler(model, setting, _table(setting, bound, model, nfe, t_end, denoise), {}, bound)
    if steering.known is not None or steering.resample > 1:
        raise ValueError(f"known pixels are replaced between steps; the adaptive solver {sampler!r} has none to show")
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
    return Sampler(model, None, None, adaptive, bound)


def check_end(t_end: Any, denoise: Any) -> None:
    """Raise a ``ValueError`` unless ``t_end`` is ``None`` or a time, and ``denoise`` a flag or a last step's name."""
    if t_end is not None:
        check_number("t_end", t_end, 0, 1, strict=True)
    if isinstance(denoise, str):
        check_choice("denoise", denoise, LAST_STEPS)
    else:
        check_flag("denoise", denoise)


_ADAPTIVE = ("solver", "rtol", "atol", "denoise", "max_steps")
_CONDITIONS = tuple(field.name for field in dataclasses.fields(Steering))


def _table(
    setting: Setting, bound: Bound | None, model: Model, nfe: int, t_end: float | None, denoise: bool | str
) -> Tableau:
    """The largest table whose evaluations, those of guidance included, ``nfe`` allows."""
    options: dict[str, Any] = {"t_end": t_end, "denoise": denoise}
    if bound is None:
        return setting.table(model.sde, nfe, **options)
    options |= {"resample": bound.steering.resample, "jump": bound.steering.jump}
    # Guidance at most doubles the evaluations; how much it does depends on where the grid lies.
    for budget in range(nfe, 0, -1):
        table = setting.table(model.sde, budget, **options)
        if bound.evaluations(table) <= nfe:
            return table
    raise AssertionError("a budget below one step has been refused")


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
    """Like :func:`generate`, but returns all K blocks, and the NFE of each sample ``[n]``.

    ``progress`` wraps the iterable of batches, e.g. ``rich.progress.track`` or ``tqdm.tqdm``. Where several processes
    run together, each must call it; each draws its share, and all get all samples.

    Raises:
      ValueError: as :func:`generate`, and for labels, images or measurements that are neither one nor ``n``.
    """
    check_counts(n=n, batch_size=batch_size)
    n, batch_size, seed = int(n), int(batch_size), check_seed(seed)
    check_flag("check", check)
    prepared = prepare(model, sampler, **options)
    if prepared.steering is not None:
        prepared.steering.check(n)
    size = batch_shape(n, batch_size)
    mine = distributed.share(n, size)
    batches = prepared.batches(seed, mine, size)
    parts = []
    for _ in progress(range(mine.start, mine.stop, size)):
        _, state, counts = next(batches)
        parts.append({"counts": counts, **{str(k): leaf for k, leaf in enumerate(state)}})
    everything = distributed.gather_arrays(_joined(parts) if parts else {})
    whole = _joined([theirs for theirs in everything if theirs])
    state = model.sde.state(*(whole[str(k)] for k in range(model.sde.num_blocks)))
    if check:
        prepared.check(state)
    return state, whole["counts"]


def batch_shape(n: int, batch_size: int) -> int:
    """Samples that a program draws at a time where ``n`` are wanted, at most ``batch_size``.

    A power of two up to 8 or a multiple of 8, so that few numbers of samples have a program of their own.
    """
    return min(batch_size, next((size for size in (1, 2, 4) if n <= size), -(-n // 8) * 8))


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def generate(model: Model, sampler: str = "auto", **options: Any) -> np.ndarray:
    """Images from a model, float32 ``[n, H, W, C]`` in [-1, 1].

    Image ``i`` is a function of ``(seed, i)``, whatever ``n``, ``batch_size`` and number of devices. Its noise is
    so to the bit; products of matrices may round differently in batches of another shape.

    Args:
      model: from ``psld_jax.load``.
      sampler: an integrator or a paper acronym, or ``rk23``, ``rk45``, ``tsit5``, ``dopri8``; ``"auto"`` is what was
        tuned for the model, see :func:`resolve`.
      options: ``nfe`` (budget, denoising included), ``n``, ``seed``, ``grid`` (a name or times), ``rho`` (of the power
        and edm grids), ``sigmas`` or ``timesteps`` (as given, in place of grid and budget), ``t_end``, ``denoise``,
        ``batch_size``, ``rtol``, ``atol`` and ``max_steps`` (adaptive solvers), ``check`` (False returns samples that
        are not finite), the sampler's hyper-parameters (``lam``, ``lam_s``,
        ...), and conditions: any field of :class:`psld_jax.Steering`, such as ``label`` and ``classifier``, ``known``
        and ``mask``, ``operator`` and ``measurement``.

    Raises:
      ValueError: for anything unknown or out of range, before anything is compiled; and (``NotFinite``) for samples
        that hold NaN or infinite values.
    """
    return np.clip(generate_states(model, sampler, **options)[0][0], -1.0, 1.0)
