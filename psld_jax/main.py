"""Command line: ``python -m psld_jax.main --config configs/NAME.py --mode MODE --workdir DIR``.

Every field of a configuration can be set: ``--config.sampler.name=reduced_oba --config.sampler.nfe=50``; what they mean
is in ``configs/default.py``. ``--mode list`` shows samplers, configurations, networks and data sets.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags
from rich.console import Console

from psld_jax import build, modes
from psld_jax.modes.listing import list_choices
from psld_jax.watch import Diverged

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, e.g. configs/digits.py.")
_HELP = "What to do. " + " ".join(f"{name}: {text}." for name, text in modes.SUMMARIES.items())
_MODE = flags.DEFINE_enum("mode", "sample", list(modes.SUMMARIES), _HELP)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for the results; made if it does not exist.")


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags; an override that the configuration refuses ends with one line that names the nearest field."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        try:
            build.check_overrides(argv)
        except ValueError as better:
            sys.exit(f"error: {better}")
        sys.exit(f"error: {error}")


def _quiet() -> None:
    """Leave out what Orbax tells: every array read, and for a full disk what became of each of its threads."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    warnings.filterwarnings("ignore", "coroutine", RuntimeWarning)


def main(argv: list[str]) -> None:
    """Dispatch to the mode; bad input ends with one line on stderr and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if not flags.FLAGS["verbosity"].present:
        _quiet()
    if _MODE.value == "list":
        list_choices(Console(markup=False))
        return
    missing = [f"--{flag.name}" for flag in (_CONFIG, _WORKDIR) if flag.value is None]
    if missing:
        sys.exit(f"error: {' and '.join(missing)} must be given; --mode list shows what there is, --help the modes")
    try:
        modes.run(_MODE.value, _CONFIG.value, Path(str(_WORKDIR.value)), Console(markup=False, soft_wrap=True))
    except (ValueError, Diverged, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
