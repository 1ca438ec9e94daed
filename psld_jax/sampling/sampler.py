"""The prepared sampler: a model with all that is chosen about its sampling, as a function of keys."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psld_jax import blocks
from psld_jax._runtime import distributed, random, xla
from psld_jax._runtime.checks import check_finite, check_flag, check_seed
from psld_jax._runtime.errors import check_callable, check_counts
from psld_jax.build import Model
from psld_jax.conditioning.bound import Bound, Conditions, Evaluations
from psld_jax.integrators.tableau import Tableau
from psld_jax.sampling.adaptive import check_reached, ode_problem, solve_ode
from psld_jax.sampling.loop import run_rows, sample
from psld_jax.sampling.rows import padded, padded_known, padded_pull
from psld_jax.sampling.settings import Setting

Array = Any

#: What an adaptive solver is told.
_ADAPTIVE = ("solver", "rtol", "atol", "denoise", "max_steps")


def batch_shape(n: int, batch_size: int) -> int:
    """Return how many samples a program draws at a time where ``n`` are wanted, at most ``batch_size``.

    A power of two up to 8 or a multiple of 8, so that few numbers of samples have a program of their own.
    """
    return min(batch_size, next((size for size in (1, 2, 4) if n <= size), -(-n // 8) * 8))


def _solve_rows(eps_fn, conditions, rows, count, z_T, keys, arrays):
    """Draw a batch by the rows of a table; return the samples, and the NFE of each."""
    eps_fn = conditions.eps_fn(eps_fn, arrays)
    z = run_rows(eps_fn, rows, count, z_T, keys, None, conditions.known_of(arrays), conditions.pull_of(arrays))
    return z, jnp.full(len(keys), count)


def _solve_adaptively(eps_fn, conditions, problem, z_T, keys, arrays):
    """Draw a batch by an adaptive solver; return the samples, the NFE of each, and the time each has reached."""
    return solve_ode(problem, functools.partial(conditions.eps_fn, eps_fn), z_T, arrays)


_solve_batch = xla.jit(_solve_adaptively, "the adaptive solver")


@functools.partial(xla.jit, what="the sampler for all devices", static_argnames=("work",))
def _on_all_devices(work, shared, own):
    """Run ``work(*shared, *own)`` on every local device, each with its part of the samples."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("data",))
    mine, all_of_it = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    specs = {"in_specs": (all_of_it, mine), "out_specs": mine, "check_vma": False}
    return jax.shard_map(lambda shared, own: work(*shared, *own), mesh=mesh, **specs)(shared, own)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A model with all that is chosen about its sampling: a function of keys; ``prepare`` makes one.

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
        """Draw samples number ``indices [n]`` of ``key``, a state, and the NFE of each, ``[n]``, on all local devices.

        Raises:
          ValueError: for a tolerance that an adaptive solver cannot meet.
        """
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
            eps_fn, known = self.conditions.eps_fn(self.model.eps_fn, arrays), self.conditions.known_of(arrays)
            z = sample(eps_fn, self._running, z_T, keys, known=known, pull=self.conditions.pull_of(arrays))
            counts, reached = jnp.full(len(numbers), self.nfe or 0), []
        if self.table is None:
            check_reached(self._shared[-1], reached[0], counts)
            counts = counts * (1 if self.steering is None else self.steering.evaluations_at_once)
        return jax.tree.map(lambda leaf: leaf[: len(indices)], z), counts[: len(indices)]

    def lowered(self, n: int) -> Any:
        """Lower the program of a batch of ``n``, as ``jax.jit(...).lower`` does, to know its needs without a run."""
        return jax.jit(self.work, compiler_options=xla.options()).lower(*self.arguments(n))

    def arguments(self, n: int) -> tuple[Any, ...]:
        """Return what :attr:`work` takes for samples 0 to ``n - 1`` of seed 0, with arrays ``[n, ...]``."""
        return *self._shared, *self._own(jax.random.key(0), np.arange(n))

    @property
    def work(self) -> Callable[..., Any]:
        """The function that draws a batch, to be traced."""
        return _solve_rows if self.table is not None else _solve_adaptively

    @functools.cached_property
    def conditions(self) -> Conditions:
        """What the program takes of the conditions; ``ValueError`` for one that this sampler cannot take."""
        if self.steering is None:
            return Conditions()
        integrator = None if self.setting is None or self.setting.solver is not None else self.setting.integrator()
        return self.steering.conditions(self.table, integrator)

    @functools.cached_property
    def _running(self) -> Any:
        """Return the table with the changes that the conditions make."""
        assert self.table is not None
        return self.table if self.steering is None else self.steering.running(self.table)

    @functools.cached_property
    def _shared(self) -> tuple[Any, ...]:
        """Return what all devices take: network, conditions, and the table or the solve."""
        known, pull = padded_known(self.conditions.known), padded_pull(self.conditions.pull)
        conditions = dataclasses.replace(self.conditions, known=known, pull=pull)
        eps_fn = blocks.as_pytree(self.model.eps_fn)
        if self.table is not None:
            return eps_fn, conditions, *padded(self._running, jnp.float32)
        a = self.adaptive
        problem = ode_problem(self.model.sde, jnp.float32, a["t_end"], 1.0, **{key: a[key] for key in _ADAPTIVE})
        return eps_fn, conditions, problem

    def _own(self, key: Array, indices: np.ndarray) -> tuple[Any, ...]:
        """Return what samples number ``indices [n]`` have of their own: start, key, and arrays of the conditions."""
        keys = random.sample_keys(key, indices)
        z_T = self.model.sde.prior_sample(keys, (len(indices), *self.model.image_shape))
        if self.steering is None:
            return z_T, keys, {}
        arrays = self.steering.arrays(indices)
        t_start = self.steering.steering.t_start
        if t_start < 1:
            xi = random.normal_like(keys, random.PRIOR_DRAW, z_T)
            z_T = self.model.sde.perturb(jnp.asarray(self.steering.start(indices), z_T[0].dtype), t_start, xi)
        return z_T, keys, arrays

    @property
    def nfe(self) -> int | None:
        """Number of network evaluations of a sample; ``None`` for an adaptive solver."""
        return None if self.table is None else self.evaluations.forward

    @functools.cached_property
    def evaluations(self) -> Evaluations:
        """Evaluations that a sample costs, forward and backward apart.

        Raises:
          ValueError: for an adaptive solver, whose evaluations are known after the run alone.
        """
        if self.table is None:
            raise ValueError("an adaptive solver chooses its evaluations: draw samples, whose NFE are counted")
        return Evaluations(self.table.nfe, 0, 0) if self.steering is None else self.steering.evaluations(self.table)

    def batches(self, seed: int, numbers: range, size: int) -> Iterator[tuple[int, blocks.State, np.ndarray]]:
        """Draw samples of these numbers and ``seed`` in batches; yield the first number and :meth:`batch` of each.

        ``size`` at a time, leaves ``[size, H, W, C]`` and NFE ``[size]``; the last batch fewer.
        """
        for start in range(numbers.start, numbers.stop, size):
            yield start, *self.batch(seed, range(start, min(start + size, numbers.stop)), size)

    def batch(self, seed: int, numbers: range, size: int) -> tuple[blocks.State, np.ndarray]:
        """Draw samples of these numbers; return a state of numpy arrays, and the NFE of each.

        Leaves ``[n, H, W, C]``, NFE ``[n]``. They are filled up to ``size`` with those that follow: one shape, so one
        program and the same bits.
        """
        z, counts = self(jax.random.key(seed), np.arange(numbers.start, numbers.start + size))
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(numbers)], z), np.asarray(counts)[: len(numbers)]

    def states(
        self,
        n: int = 64,
        *,
        seed: int = 0,
        batch_size: int = 256,
        check: bool = True,
        progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    ) -> tuple[blocks.State, np.ndarray]:
        """Draw samples 0 to ``n - 1`` of ``seed``: a state with leaves ``[n, H, W, C]``, and the NFE of each, ``[n]``.

        See :func:`psld_jax.generate_states`.

        Raises:
          ValueError: for counts out of range, conditions that are neither for one nor for ``n`` samples, and
            (``NotFinite``) as :meth:`check`.
        """
        check_counts(n=n, batch_size=batch_size)
        n, batch_size, seed = int(n), int(batch_size), check_seed(seed)
        check_flag("check", check)
        check_callable("progress", progress, "a function of the numbers of the batches, such as tqdm.tqdm")
        if self.steering is not None:
            self.steering.check(n)
        size = batch_shape(n, batch_size)
        mine = distributed.share(n, size)
        batches = self.batches(seed, mine, size)
        parts = []
        for _ in progress(range(mine.start, mine.stop, size)):
            _, state, counts = next(batches)
            parts.append({"counts": counts, **{str(k): leaf for k, leaf in enumerate(state)}})
        everything = distributed.gather_arrays(_joined(parts) if parts else {})
        whole = _joined([theirs for theirs in everything if theirs])
        state = self.model.sde.state(*(whole[str(k)] for k in range(self.model.sde.num_blocks)))
        if check:
            self.check(state)
        return state, whole["counts"]

    def draw(self, seed: int, numbers: range, size: int) -> np.ndarray:
        """Draw the images of :meth:`batch`, float32 ``[n, H, W, C]`` in [-1, 1].

        Raises:
          NotFinite: as :meth:`check`.
        """
        state, _ = self.batch(seed, numbers, size)
        self.check(state)
        return np.clip(state[0], -1, 1)

    def check(self, state: blocks.State) -> None:
        """Check that all of a state, leaves ``[n, ...]``, is finite.

        Raises:
          NotFinite: with sampler, budget and how many samples are not.
        """
        budget = "adaptive" if self.nfe is None else f"{self.nfe} evaluations"
        name = self.adaptive["solver"] if self.setting is None else self.setting.describe()
        hint = (
            "Take more evaluations (nfe), another sampler (auto, predictor_corrector) or a larger t_end, or look at "
            "the weights; in Python check=False returns them as they are"
        )
        chosen = None if self.steering is None else self.steering.steering
        if chosen is not None and chosen.operator is not None and not chosen.integrated:
            # Where the network's x_0 is steep, the gradient is steep squared, and more steps do not help.
            hint = (
                "The pull of the measurement may be too strong for these steps: take a smaller weight, a "
                f"sigma_interval without the largest noise levels, or posterior='conjugate'. {hint}"
            )
        check_finite(f"samples of {name}, {budget}", state, len(state[0]), hint)

    def about(self) -> dict[str, Any]:
        """Return what the samples of a key depend on, besides the model, as JSON can hold it."""
        table = None if self.table is None else {"times": self.table.times.tolist()}
        setting = None if self.setting is None else self.setting.to_json()
        steering = None if self.steering is None else self.steering.about()
        return {"setting": setting, "table": table, "adaptive": self.adaptive, "conditions": steering}


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
