"""Equal networks, every sampler at its best: python -m benchmarks.laboratory digits|mnist --output DIRECTORY [--help]

Trains the same small network, with the same steps and seeds, for several diffusions; tunes samplers for each, on
held-out images and noises of their own; and takes the Frechet distances of many samples. A killed run goes on where it
was. The hours that it will take are measured and printed first; ``--hours`` prints them and ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import measure
from benchmarks.laboratory_hours import hours
from benchmarks.laboratory_networks import BUDGETS, DATA, LEARNING, NETWORKS, SAMPLERS, Laboratory, Options
from psld_jax import integrators
from psld_jax._runtime.errors import check_counts, unknown
from psld_jax.sampling.solver import LEARNED


def parse(arguments: Sequence[str] | None) -> Any:
    """The command line, checked: options, the directory, and whether hours alone are wanted."""
    parser = measure.Parser("python -m benchmarks.laboratory", description=__doc__)
    parser.add_argument("data", choices=DATA, help="digits: embedded | mnist: --path has the four IDX files")
    parser.add_argument("--path", default="", help="directory of MNIST")
    parser.add_argument("--image-size", type=int, help="of MNIST (14)")
    parser.add_argument("--width", type=int, default=16, help="channels of the network at the full size (16)")
    parser.add_argument("--output", required=True, help="directory of everything; the same one goes on")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3, help="of weights and training (3)")
    parser.add_argument("--steps", type=int, default=20_000, help="of training (20000)")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), help=", ".join(SAMPLERS))
    parser.add_argument("--nfe", nargs="+", type=int, default=list(BUDGETS), help=f"budgets {BUDGETS}")
    parser.add_argument("--samples", type=int, default=10_000, help="of a cell (10000)")
    parser.add_argument("--sample-seeds", type=int, default=3, help="cells of a sampler and budget (3)")
    parser.add_argument("--final-samples", type=int, default=10_000, help="of the best sampler of a budget (10000)")
    parser.add_argument("--final-seeds", type=int, default=3, help="cells of the best sampler (3)")
    parser.add_argument("--batch", type=int, default=250, help="samples at a time (250)")
    parser.add_argument("--tune-samples", type=int, default=128, help="0: nothing is tuned (128)")
    parser.add_argument(
        "--learn-samples", type=int, default=768, help="a multiple of 64, for the sampler learned (768)"
    )
    parser.add_argument("--hours", action="store_true", help="print the hours that it takes, and end")
    parser.add_argument("--small", action="store_true", help="one network, one seed, 500 samples: minutes")
    chosen = parser.parse_args(arguments)
    fixed, epochs, _ = DATA[chosen.data]
    if chosen.small:
        chosen.networks, chosen.seeds, chosen.steps = chosen.networks[:1], 1, 100
        chosen.samplers, chosen.nfe = ["ddim", "reduced_oba", "predictor_corrector", LEARNED], [5, 10]
        chosen.samples, chosen.sample_seeds, chosen.tune_samples, chosen.learn_samples = 500, 2, 16, 64
        chosen.final_samples, chosen.final_seeds = 500, 2
    try:
        counts = {
            name: getattr(chosen, name) for name in ("seeds", "steps", "sample_seeds", "final_seeds", "batch", "width")
        }
        check_counts(**counts, **{f"nfe[{i}]": budget for i, budget in enumerate(chosen.nfe)})
        # The covariance of fewer than two samples is none.
        check_counts(2, samples=chosen.samples, final_samples=chosen.final_samples)
        if chosen.tune_samples:
            check_counts(8, tune_samples=chosen.tune_samples)
        part = LEARNING["batch_size"]
        if chosen.learn_samples < part or chosen.learn_samples % part:
            raise ValueError(f"learn-samples={chosen.learn_samples} must be a multiple of {part}, {part} or more")
        for name in chosen.networks:
            if name not in NETWORKS:
                raise unknown("network", name, NETWORKS)
        if chosen.data == "digits" and (chosen.path or chosen.image_size):
            raise ValueError("the digits are embedded, 8 x 8 pixels: leave out --path and --image-size")
        if chosen.data == "mnist" and not chosen.path:
            raise ValueError("mnist needs --path, the directory with the four IDX files")
        size = chosen.image_size or fixed["model.image_size"]
        check_counts(8, **{"image-size": size})
        samplers = tuple(name if name == LEARNED else integrators.get(name).name for name in chosen.samplers)
    except ValueError as error:
        parser.error(str(error))
    chosen.options = Options(
        data=chosen.data,
        path=chosen.path,
        image_size=size,
        width=chosen.width,
        networks=tuple(chosen.networks),
        seeds=chosen.seeds,
        steps=chosen.steps,
        samplers=samplers,
        budgets=tuple(sorted(set(chosen.nfe))),
        sample_seeds=chosen.sample_seeds,
        samples=chosen.samples,
        final_seeds=chosen.final_seeds,
        final_samples=chosen.final_samples,
        batch=chosen.batch,
        tune_samples=chosen.tune_samples,
        learn_samples=chosen.learn_samples,
        iterations=1 if chosen.small else 12,
        candidates=4 if chosen.small else 24,
        gradient_steps=0 if chosen.small else 20,
        judge_epochs=2 if chosen.small else epochs,
    )
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Say what it takes, and do it."""
    chosen, console = parse(arguments), Console(width=150)
    laboratory = Laboratory(Path(chosen.output), chosen.options, console)
    left = hours(laboratory)
    parts = ", ".join(f"{part} {value:.3g}" for part, value in left.items())
    console.print(f"about {sum(left.values()):.3g} hours are left on this machine: {parts}", markup=False)
    if not chosen.hours:
        laboratory.run()


if __name__ == "__main__":
    main()
