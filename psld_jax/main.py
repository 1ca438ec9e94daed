"""Command line: ``python -m psld_jax.main --config configs/NAME.py --mode MODE --workdir DIR``.

A configuration says which model, data and sampler; a mode, what to do with them. Samples of the network that ships:

    python -m psld_jax.main --config configs/saved.py --config.model.checkpoint=mnist --workdir runs/first

Any field of a configuration can be set; configs/default.py has them all, and what they mean. Another sampler and budget
(--mode list has the names), many samples as files, conditions:

    --config.sampler.name=ROBA --config.sampler.nfe=50
    --config.sampling.num_samples=50000 --config.sampling.save=png
    --config.steer.labels="(3,)" --config.steer.classifier=mnist_clf

A model of your own is the directory it was trained in. What is stopped or killed goes on with the same command:

    python -m psld_jax.main --config configs/mnist.py --config.data.path=DIR --mode train --workdir runs/own
    python -m psld_jax.main --config configs/saved.py --config.model.checkpoint=runs/own --mode tune --workdir runs/a
    python -m psld_jax.main --config configs/saved.py --config.model.checkpoint=runs/own --mode sample --workdir runs/b

psld-jax is the same command, from any directory. A configuration that ships has a name: psld-jax --config saved.

python -m psld_jax.convert makes such a directory of a PyTorch checkpoint. --dry_run with any of these prints what would
run, its evaluations and memory, and does nothing. Bad input ends with one line and exit status 1; Ctrl-C with 130.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import textwrap
import warnings
from pathlib import Path

import jax
import platformdirs
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags
from rich.console import Console

from psld_jax import build, modes
from psld_jax._runtime import distributed
from psld_jax._runtime.errors import why
from psld_jax.modes._fields import named_in_full
from psld_jax.modes.dry_run import dry_run
from psld_jax.modes.listing import list_choices
from psld_jax.training.watch import Diverged

#: Columns of a table that goes to no terminal.
_WIDE = 240

#: Of compiled programs, the least recently used of which go.
_CACHE_BYTES = 4 * 2**30

#: Exit status after Ctrl-C, by convention 128 and the number of the signal.
_INTERRUPTED = 130

#: What Python and absl say of a value, and what is meant.
_FLAG_KINDS = {
    "invalid literal for int": "a whole number",
    "could not convert string to float": "a number",
    "Non-boolean argument": "True or False",
}

_SMALLER = "Take fewer images at a time (batch_size), or a smaller network; --dry_run tells the memory of a run"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration: the name of one that ships, e.g. digits, or a file."
)
_HELP = "What to do. " + " ".join(f"{name}: {text}." for name, text in modes.SUMMARIES.items())
_MODE = flags.DEFINE_enum("mode", "sample", list(modes.SUMMARIES), _HELP)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "For one of several processes: HOST:PORT of the first; auto under SLURM, Open MPI or on a TPU."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the configuration, evaluations and memory of the run; do nothing."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for the results; made if it does not exist.")


def _plain_terminal() -> None:
    """Let a terminal, or a file, that has ASCII only show ``?`` for a letter that it lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags; an override that the configuration refuses ends with one line that names the nearest field."""
    _plain_terminal()
    try:
        argv = _with_paths(argv)
    except ValueError as error:
        sys.exit(f"error: {error}")
    try:
        return flags.FLAGS(_last_of_each(argv))
    except flags.Error as error:
        sys.exit(f"error: {_flag(why(error))}; --help shows the flags")
    except SystemExit:
        sys.exit(0)  # absl has shown the help that was asked for, and would end with 1
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        try:
            build.check_overrides(argv)
        except ValueError as better:
            sys.exit(f"error: {better}")
        sys.exit(f"error: {why(error)}")


def _with_paths(argv: list[str]) -> list[str]:
    """Replace the name of a configuration in the arguments by its file, since ml_collections knows no names.

    ``ValueError`` for what is neither, where ml_collections would tell it in four lines, later.
    """
    argv = list(argv)
    for i, argument in enumerate(argv):
        given = re.match(r"(--?config=)(.*)", argument, re.DOTALL)
        if given:
            argv[i] = given[1] + _path(given[2])
        elif i and argv[i - 1] in ("--config", "-config"):
            argv[i] = _path(argument)
    return argv


def _path(config: str) -> str:
    if not config.strip():
        raise ValueError("--config is empty: it must name a configuration, e.g. digits, or a file of your own")
    file, colon, argument = ("", "", "") if config.startswith("pj:") else config.partition(":")
    return f"{build.find_config(file or config)}{colon}{argument}"


def _flag(message: str) -> str:
    """Return what absl says of a flag's value, without Python's own words for it."""
    match = re.fullmatch(r"flag --([\w.]+)=(.*?): (.*)", message, re.DOTALL)
    told = [kind for words, kind in _FLAG_KINDS.items() if match is not None and words in match[3]]
    return f"--{match[1]}={match[2]!r} must be {told[0]}" if match is not None and told else message


def _last_of_each(argv: list[str]) -> list[str]:
    """Return the arguments without a field of the configuration that is set again later.

    ml_collections joins the values of a tuple that is set twice; for every other field the last one counts.
    """
    kept, seen = [], set()
    for i in range(len(argv) - 1, 0, -1):
        name, equals, _ = argv[i].partition("=")
        if re.fullmatch(r"--?config\.[\w.]+", name):
            if name.lstrip("-") in seen:
                if not equals and kept and not kept[-1].startswith("-"):
                    kept.pop()  # its value, an argument of its own
                continue
            seen.add(name.lstrip("-"))
        kept.append(argv[i])
    return [*argv[:1], *reversed(kept)]


def _quiet() -> None:
    """Silence Orbax, which logs every array read, and for a full disk the end of each of its threads."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    warnings.filterwarnings("ignore", "coroutine", RuntimeWarning)
    # A compiled program that the disk has no room for is compiled again by the next run.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache", UserWarning)


def _keep_programs() -> None:
    """Keep compiled programs for the next run, unless JAX has been told where (JAX_COMPILATION_CACHE_DIR) or not to."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(platformdirs.user_cache_path("psld_jax") / "programs"))
        jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
        # Hundreds of small ones cost as much as a large one.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def main(argv: list[str]) -> None:
    """Dispatch to the mode; bad input ends with one line on stderr and exit status 1 (``SystemExit``)."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if not flags.FLAGS["verbosity"].present:
        _quiet()
    _plain_terminal()
    if _MODE.value == "list":
        # Into a file or another program, where nobody has a width in mind, rows are as long as they are.
        list_choices(Console(markup=False, width=None if sys.stdout.isatty() else _WIDE))
        return
    needed = (_CONFIG,) if _DRY_RUN.value else (_CONFIG, _WORKDIR)
    missing = [
        f"--{flag.name}"
        for flag in needed
        if flag.value is None or (isinstance(flag.value, str) and not flag.value.strip())
    ]
    if missing:
        told = "--mode list shows what there is, --help the modes"
        sys.exit(f"error: {' and '.join(missing)} must be given, and not empty; {told}")
    _keep_programs()
    try:
        if _COORDINATOR.value:
            # Before they know of each other: where one ends first, the other has no time to say why.
            if _MODE.value not in modes.TOGETHER:
                several = ", ".join(modes.TOGETHER)
                raise ValueError(f"--mode {_MODE.value} runs in one process: --coordinator is for {several}")
            distributed.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        elif (_PROCESSES.value, _PROCESS.value) != (None, None):
            raise ValueError("--num_processes and --process_id need --coordinator=HOST:PORT")
        console = Console(markup=False, soft_wrap=True, quiet=not distributed.is_first())
        if _DRY_RUN.value:
            with named_in_full(_CONFIG.value, _MODE.value):
                dry_run(_MODE.value, _CONFIG.value, console)
        else:
            modes.run(_MODE.value, _CONFIG.value, Path(str(_WORKDIR.value)), console)
    except (ValueError, Diverged, OSError) as error:
        _fail(why(error))
    except KeyboardInterrupt:
        _leave("interrupted: the same command goes on from what has been saved", _INTERRUPTED)
    except MemoryError as error:
        _fail(f"there is not enough memory: {why(error)}. {_SMALLER}")
    except jax.errors.JaxRuntimeError as error:
        if distributed.count() == 1:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            _fail(f"the device has not enough memory: {textwrap.shorten(why(error), 200)}. {_SMALLER}")
        _fail(
            f"{textwrap.shorten(str(error), 300)}\nOne of the {distributed.count()} processes has ended, or cannot be "
            "reached: see what the others say. The same commands go on from what has been saved"
        )


def _fail(message: str) -> None:
    """End with one line on stderr and exit status 1."""
    if not _COORDINATOR.value:
        sys.exit(f"error: {message}")
    _leave(f"error: {message}", 1)


def _leave(line: str, status: int) -> None:
    """End with this line on stderr and this exit status."""
    print(line, file=sys.stderr, flush=True)
    if _COORDINATOR.value:
        # An orderly end would wait for the other processes; this one tells them by being gone.
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
