"""The cases of :mod:`benchmarks.accelerator`: every group gives names, and a function that measures."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

import psld_jax as pj
from benchmarks import measure
from benchmarks.network import evaluation, training
from benchmarks.networks import load_config, random_network
from benchmarks.samplers import overhead
from psld_jax import assets, blocks, build, metrics
from psld_jax._runtime.journal import Journal
from psld_jax.evaluation import evaluate

Cases = Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]

#: 39, 56 and 98 million parameters.
NETWORKS = ("cifar10", "cifar10_55m", "cifar10_sota")
#: The first is measured for all networks before the next begins, since time may end.
BATCHES = (256, 64, 512, 128)
DTYPES = ("float32", "bfloat16")
TRAINING_BATCH = 128

#: Largest differences of results, relative to the largest number of the CPU's. In float32 products two orders of
#: summation differ by some 1e-6 a layer, and there are fifty. Where the device is left to choose, it may round
#: factors to ten bits (TF32), 5e-4 a product. A sampler adds up the differences of its evaluations, and a gradient's
#: norm those of all weights.
TOLERANCES = {
    ("network", "highest"): 1e-4,
    ("network", "default"): 2e-2,
    ("sampler", "highest"): 2e-3,
    ("sampler", "default"): 1e-1,
    ("loss", "highest"): 1e-3,
    ("loss", "default"): 2e-2,
}

#: What the table of MNIST holds; budgets in the order of what they tell.
SAMPLERS = (
    *("auto", "predictor_corrector", "ancestral", "conjugate_symplectic_euler", "reduced_oba", "lambda_ddim_ii"),
    *("euler_maruyama", "sscs"),
)
BUDGETS = (10, 20, 5, 50, 8, 6)


@dataclasses.dataclass(frozen=True)
class Options:
    """Where files go, rounds of a timing, samples of a cell, and whether networks are tiny."""

    directory: Path
    rounds: int
    samples: int
    small: bool


def agreement(options: Options) -> Cases:
    """Networks, samplers and losses on the device and on the CPU of the same machine, from the same numbers."""
    for precision in ("highest",) if options.small else ("highest", "default"):
        for name in ("mnist",) if options.small else ("mnist", "cifar10"):
            config = load_config(name, options.small, dropout=0.0)
            for what, results in (("network", _prediction), ("loss", _loss)):
                about = {"what": what, "of": name, "precision": precision}
                yield about, functools.partial(_compared, functools.partial(results, config), what, precision)
        for sampler in ("reduced_oba",) if options.small else ("predictor_corrector", "reduced_oba", "ancestral"):
            about = {"what": "sampler", "of": sampler, "precision": precision}
            results = functools.partial(_samples, sampler, options.small)
            yield about, functools.partial(_compared, results, "sampler", precision)


def _compared(results: Callable[[], Any], what: str, precision: str) -> dict[str, Any]:
    """Largest difference between what the device and the CPU give, relative to the largest number."""
    with jax.default_matmul_precision(precision):
        with jax.default_device(jax.devices("cpu")[0]):
            expected = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(results())]
        found = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(results())]
    scale = max(float(np.max(np.abs(leaf))) for leaf in expected)
    difference = max(float(np.max(np.abs(a - b))) for a, b in zip(found, expected, strict=True)) / scale
    tolerance = TOLERANCES[what, precision]
    return {"difference": difference, "tolerance": tolerance, "equal": difference <= tolerance}


def _prediction(config: Any) -> Any:
    arguments = evaluation(config, 2)
    return jax.jit(lambda f, z, t: f(z, t))(*arguments)


def _loss(config: Any) -> Any:
    step, _ = training(config, 2)
    metrics_of_step = step()
    return [metrics_of_step["loss"], metrics_of_step["grad_norm"]]


def _samples(sampler: str, small: bool) -> Any:
    model = _shipped(small)
    table = pj.Setting(sampler).table(model.sde, 5 if small else 10)
    z = model.sde.prior_sample(jax.random.key(1), (4, *model.image_shape))
    # A copy: arrays that were made elsewhere would stay there.
    eps_fn = jax.tree.map(np.asarray, blocks.as_pytree(model.eps_fn))
    return pj.sample(jax.device_put(eps_fn), table, z, jax.random.key(2))


@functools.cache
def _shipped(small: bool) -> Any:
    """The network for MNIST, or the exact score of a few digits."""
    return pj.load("digits", {"data.num_points": 16}) if small else pj.load("mnist")


def throughput(options: Options) -> Cases:
    """Samples a second of ten evaluations, overhead over bare ones, memory; and PyTorch's evaluations beside them."""
    for batch in (2,) if options.small else BATCHES:
        for name in NETWORKS[:1] if options.small else NETWORKS:
            for dtype in DTYPES[:1] if options.small else DTYPES:
                about = {"network": name, "dtype": dtype, "batch": batch}
                yield {"side": "jax", **about}, functools.partial(_throughput, name, dtype, batch, options)
                if importlib.util.find_spec("torch") is not None and batch == BATCHES[0]:
                    for side in ("eager", "compiled"):
                        run = functools.partial(_torch, side, name, dtype, batch, options)
                        yield {"side": f"torch, {side}", **about}, run


def _throughput(name: str, dtype: str, batch: int, options: Options) -> dict[str, Any]:
    config = load_config(name, options.small, dtype=dtype, dropout=0.0)
    eps_fn, z, _ = evaluation(config, batch)
    table = pj.Setting("predictor_corrector").table(build.build_sde(config), 3 if options.small else 10)
    times = overhead(eps_fn, table, z, options.rounds)
    return {
        "samples_per_second": batch / times["seconds"]["median"],
        "seconds_per_evaluation": times["network_seconds"],
        "overhead": times["overhead"],
        "nfe": table.nfe,
        **_peak(),
    }


def _peak() -> dict[str, float]:
    """The most memory that the device has held since the process began; nothing where it does not say."""
    stats = jax.devices()[0].memory_stats() or {}
    return {"peak_mib_so_far": stats["peak_bytes_in_use"] / measure.MEBI} if "peak_bytes_in_use" in stats else {}


def _torch(side: str, name: str, dtype: str, batch: int, options: Options) -> dict[str, Any]:
    """Seconds of an evaluation in PyTorch, on its CUDA device if it has one."""
    import torch

    from benchmarks.torch_ncsnpp import from_flax

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != jax.default_backend().replace("gpu", "cuda"):
        raise RuntimeError(f"PyTorch here has {device} only, and JAX runs on {jax.default_backend()}")
    torch.set_float32_matmul_precision("high")  # TF32 where it is, as JAX does unless told otherwise
    config = load_config(name, options.small, dropout=0.0)
    net = from_flax(random_network(config)).eval().to(device, memory_format=torch.channels_last)
    net = torch.compile(net) if side == "compiled" else net
    size, rng = config.model.image_size, np.random.default_rng(0)
    images = torch.from_numpy(rng.standard_normal((batch, config.model.in_ch, size, size), np.float32))
    images = images.to(device, memory_format=torch.channels_last)
    t = torch.full((batch,), 0.5, device=device)

    def evaluate_once() -> np.ndarray:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            # A number of the result on the host is there when all of it is.
            return net(images, t)[:1, :1, :1, :1].float().cpu().numpy()

    times = measure.by_turns({"run": evaluate_once}, options.rounds)["run"]
    peak = {"peak_mib_so_far": torch.cuda.max_memory_allocated() / measure.MEBI} if device == "cuda" else {}
    return {"seconds_per_evaluation": measure.spread(times), **peak}


def train_steps(options: Options) -> Cases:
    """Whole steps of training: loss, gradient, clipping, Adam and EMA."""
    for name in NETWORKS[:1] if options.small else NETWORKS:
        for dtype in DTYPES[:1] if options.small else DTYPES[::-1]:
            batch = 2 if options.small else TRAINING_BATCH
            yield (
                {"network": name, "dtype": dtype, "batch": batch},
                functools.partial(_training, name, dtype, batch, options),
            )


def _training(name: str, dtype: str, batch: int, options: Options) -> dict[str, Any]:
    step, facts = training(load_config(name, options.small, dtype=dtype), batch)
    times = measure.by_turns({"run": step}, options.rounds)["run"]
    middle = float(np.median(times))
    return {
        "steps_per_second": 1 / middle,
        "seconds": measure.spread(times),
        "compile_seconds": facts["compile_seconds"],
        "gflop_per_second": float(facts["gflop"]) / middle,
        **_peak(),
    }


def compilation(options: Options) -> Cases:
    """Seconds to compile an evaluation and a step of training, and to take them from those that were kept."""
    for name in NETWORKS[:1]:
        config = load_config(name, options.small, dropout=0.0)
        batch = 2 if options.small else 64
        for what, facts in (("evaluation", _evaluation_facts), ("training step", _training_facts)):
            compiled = functools.partial(facts, config, batch)
            yield {"network": name, "program": what}, functools.partial(_first_and_kept, compiled)


def _evaluation_facts(config: Any, batch: int) -> dict[str, float]:
    return measure.compiled(lambda f, z, t: f(z, t), *evaluation(config, batch))[1]


def _training_facts(config: Any, batch: int) -> dict[str, float]:
    return training(config, batch)[1]


def _first_and_kept(compiled: Callable[[], dict[str, float]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory, _kept_in(directory):
        first = compiled()
        if not any(Path(directory).iterdir()):
            raise RuntimeError("the program was not kept: this backend keeps none")
        # What lives in the process is dropped: as a new one, it has the directory alone.
        jax.clear_caches()
        kept = compiled()
    return {
        "trace_seconds": first["trace_seconds"],
        "first_seconds": first["compile_seconds"],
        "kept_seconds": kept["compile_seconds"],
    }


@contextlib.contextmanager
def _kept_in(directory: str) -> Iterator[None]:
    """Compiled programs are kept in the directory, all of them."""
    values = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": directory,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def mnist(options: Options) -> Cases:
    """Distances of many samples by the shipped network; a directory that holds cells is gone on with."""
    samplers, budgets = (SAMPLERS[1:2], (5,)) if options.small else (SAMPLERS, BUDGETS)
    for budget in budgets:
        for sampler in samplers:
            about = {"sampler": sampler, "budget": budget, "samples": options.samples}
            yield about, functools.partial(_cell, sampler, budget, options)


def _cell(sampler: str, budget: int, options: Options) -> dict[str, Any]:
    model, features, law = _judged()
    about = {"network": model.fingerprint, "features": features.name}
    (cell,) = evaluate.evaluate(
        evaluate.jobs(model, (sampler,), (budget,), (), build.sampler_options(model.config)),
        law,
        features=features,
        num_samples=options.samples,
        batch_size=min(options.samples, 8 if options.small else 1000),
        journal=Journal(options.directory / "mnist.jsonl", about, "the table of MNIST"),
    )
    return {
        "nfe": cell.nfe,
        "distance": cell.distance,
        "not_finite": cell.not_finite,
        "samples_per_second": options.samples / cell.seconds,
        "setting": str(cell.setting),
    }


@functools.cache
def _judged() -> tuple[Any, metrics.Features, metrics.Gaussian]:
    features = metrics.features("mnist")
    return pj.load("mnist"), features, metrics.read_statistics(assets.statistics("mnist"), 64)


#: Functions from options to cases, by group.
GROUPS: dict[str, Callable[[Options], Cases]] = {
    "agreement": agreement,
    "throughput": throughput,
    "training": train_steps,
    "compilation": compilation,
    "mnist": mnist,
}
