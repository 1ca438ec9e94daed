"""Command line: ``python -m convert --checkpoint FILE_OR_DIRECTORY --output DIR``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console

from psld_jax._runtime.progress import track

from .conversion import convert
from .ncsnpp import WEIGHTS
from .origins import origins
from .written import KINDS, write


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m psld_jax.convert",
        description="Convert a checkpoint of another library to JAX, without running anything in it.",
    )
    parser.add_argument("--checkpoint", required=True, help="file or directory; its origin is recognised")
    parser.add_argument("--config", default="", help="configuration, e.g. cifar10, for what the file does not hold")
    parser.add_argument("--origin", default="", help=f"origin of the file, if it is not clear: {', '.join(origins())}")
    parser.add_argument("--to", choices=tuple(KINDS), help="write the weights of a network for that library instead")
    parser.add_argument("--output", required=True, help="directory to make")
    parser.add_argument("--weights", choices=WEIGHTS, help="default: ema; online for a classifier, which has no EMA")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier conversion")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="overrides")
    return parser


def _write(options: dict[str, Any]) -> int:
    """Run ``--to``."""
    unused = [name for name in ("config", "origin", "overrides") if options[name]]
    if unused:
        raise ValueError(f"--to writes what is saved: it takes no --{unused[0].replace('overrides', 'set')}")
    names = ("checkpoint", "to", "output", "weights", "overwrite")
    shapes = write(**{name: options[name] for name in names})
    print(f"{len(shapes)} tensors of {options['checkpoint']} with the names of {options['to']} in {options['output']}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 for what is wrong with the input, 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    console = Console(stderr=True)

    def progress(items: Iterable[Any], label: str) -> Iterable[Any]:
        return track(items, label, console)

    options = vars(arguments)
    try:
        for name in ("checkpoint", "output"):
            if not options[name].strip():
                raise ValueError(f"--{name} is empty: it must name a file or directory")
        if arguments.to is not None:
            return _write(options)
        index = convert(**{name: value for name, value in options.items() if name != "to"}, progress=progress)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    print(f"{arguments.checkpoint} is of {index['source']['origin']}")
    print("".join(f"  {note}\n" for note in index["notes"]), end="")
    counts = ", ".join(f"{len(network)} parameters ({name})" for name, network in index["parameters"].items())
    print(f"{counts} from {arguments.checkpoint} (sha256 {index['source']['sha256']}) in {arguments.output}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the temporary directory is removed then too
    sys.exit(main())
