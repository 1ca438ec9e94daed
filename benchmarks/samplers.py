"""Groups ``samplers``, ``linear`` and ``recompile``: what a sampler costs beyond the evaluations of its network."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

import psld_jax as pj
from benchmarks import measure
from benchmarks.network import evaluation
from benchmarks.networks import load_config
from psld_jax import build
from psld_jax._runtime import xla
from psld_jax.integrators.tableau import Tableau

_COMPILATION = "/jax/core/compile/backend_compile_duration"
#: Samplers that ``--small`` runs: one with noise, one with a history.
_FEW = ("reduced_oba", "predictor_corrector")


def samplers(options: measure.Options) -> Iterator[dict[str, Any]]:
    """Overhead of every table-driven sampler: its seconds over NFE times those of the bare network, less 1 is what
    the sampler itself takes. With the shipped MNIST network, and that of ``cifar10`` if it is among the configurations.
    """
    for model, nfe, batch in (("mnist", 20, 16), ("cifar10", 10, 1)):
        if model in options.configs:
            eps_fn, sde, z = _model(model, 2 if options.small else batch, options.small)
            for name in _FEW if options.small else pj.integrators.available():
                table = _table(name, sde, 6 if options.small else nfe)
                case = {"model": model, "sampler": name, "nfe": table.nfe, "batch": len(z[0])}
                yield {"case": case, **overhead(eps_fn, table, z, options.rounds)}


def linear(options: measure.Options) -> Iterator[dict[str, Any]]:
    """Seconds and temporary memory of ROBA on the MNIST network, for growing budgets and growing batches."""
    budgets, batches = ((3, 6), (2, 4)) if options.small else ((5, 10, 20, 40, 80), (1, 2, 4, 8, 16, 32))
    middle = (budgets[len(budgets) // 2], batches[len(batches) // 2])
    cases = {(nfe, middle[1]): None for nfe in budgets} | {(middle[0], batch): None for batch in batches}
    programs, facts = {}, {}
    for nfe, batch in cases:
        eps_fn, sde, z = _model("mnist", batch, options.small)
        table = _table("reduced_oba", sde, nfe)
        sample = functools.partial(_sample, table)
        program, facts[nfe, batch] = measure.compiled(sample, eps_fn, z, jax.random.key(2))
        programs[nfe, batch] = functools.partial(program, eps_fn, z, jax.random.key(2))
    for (nfe, batch), times in measure.by_turns(programs, options.rounds).items():
        yield {
            "case": {"nfe": nfe, "batch": batch},
            "seconds": measure.spread(times),
            "seconds_per_image_and_evaluation": measure.spread(times / (nfe * batch)),
            **facts[nfe, batch],
        }


#: Samplers and budgets of ``recompile``, in the order in which they run.
_TABLES = (
    *(("exponential_multistep", 10), ("exponential_multistep", 20), ("predictor_corrector", 20), ("reduced_oba", 20)),
    *(("reduced_velocity_verlet", 21), ("euler_maruyama", 50), ("ddim", 5), ("ancestral", 8), ("lambda_ddim_ii", 35)),
)


def recompile(options: measure.Options) -> Iterator[dict[str, Any]]:
    """What another sampler costs: seconds of the first and second call, compilations, and memory after each.

    With the shipped MNIST network, a batch of 8. The first row has the compilation of the one program.
    """
    name = "digits" if options.small else "mnist"
    model = pj.load(name)
    for sampler, nfe in _TABLES[:3] if options.small else _TABLES:
        draw = functools.partial(pj.generate, model, sampler, nfe=nfe, n=8, grid="quadratic")
        times: list[float] = []
        compilations = _compilations(lambda draw=draw, times=times: times.append(measure.seconds(draw)))
        yield {
            "case": {"model": name, "sampler": sampler, "nfe": nfe},
            "first_call": times[0],
            "second_call": measure.seconds(draw),
            "compilations": compilations,
            "resident_mebibytes": measure.resident(),
        }


def _model(name: str, batch: int, small: bool) -> tuple[Any, Any, Any]:
    """``eps_fn``, SDE and a state of the prior: the shipped network for ``mnist``, else the configuration's."""
    if name == "mnist" and not small:
        model = pj.load("mnist")
        return model.eps_fn, model.sde, model.sde.prior_sample(jax.random.key(1), (batch, *model.image_shape))
    config = load_config(name, small)
    eps_fn, z, _ = evaluation(config, batch)
    return eps_fn, build.build_sde(config), z


def _table(name: str, sde: Any, nfe: int) -> Tableau:
    return pj.Setting(name).table(sde, nfe)


def _sample(table: Tableau, eps_fn: Any, z: Any, key: Any) -> Any:
    return pj.sample(eps_fn, table, z, key)


@xla.jit
def _bare(eps_fn: Any, z: Any, t: Any) -> Any:
    return eps_fn(z, t)


def overhead(eps_fn: Any, table: Tableau, z: Any, rounds: int) -> dict[str, Any]:
    """Seconds of the sampler and of as many bare evaluations one after the other, and their ratio."""
    t, key = jnp.float32(0.5), jax.random.key(2)

    def evaluations() -> Any:
        out = z
        for _ in range(table.nfe):
            out = _bare(eps_fn, out, t)
        return out

    programs = {"sampler": lambda: pj.sample(eps_fn, table, z, key), "network": evaluations}
    times = measure.by_turns(programs, rounds)
    return {
        "seconds": measure.spread(times["sampler"]),
        "network_seconds": measure.spread(times["network"] / table.nfe),
        "overhead": measure.spread(times["sampler"] / times["network"]),
    }


def _compilations(run: measure.Program) -> int:
    """Programs that XLA compiles while ``run`` runs."""
    seen = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.block_until_ready(run())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return seen.count(_COMPILATION)
