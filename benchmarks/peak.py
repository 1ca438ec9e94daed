"""Peak memory of one side of the groups ``torch_...``: ``python -m benchmarks.peak SIDE KIND CONFIG BATCH [--small]``.

Prints MiB while the program runs, and while it is built, compiled and run for the first time; beyond what the process
held when everything was imported, JAX and PyTorch on both sides.
"""

from __future__ import annotations

from benchmarks import measure
from benchmarks.networks import CONFIGS, EDM_CONFIGS, load_config
from benchmarks.torch_baseline import KINDS, SIDES


def main() -> None:
    parser = measure.Parser("python -m benchmarks.peak")
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("config", choices=CONFIGS + EDM_CONFIGS)
    parser.add_argument("batch", type=int)
    parser.add_argument("--small", action="store_true")
    chosen = parser.parse_args()
    imported = measure.peak()
    program = KINDS[chosen.kind](chosen.side, load_config(chosen.config, chosen.small, dropout=0.0), chosen.batch)
    measure.seconds(program)
    building = measure.peak()
    measure.forget_peak()
    for _ in range(2):
        measure.seconds(program)
    print(measure.peak() - imported, building - imported)


if __name__ == "__main__":
    main()
