"""A model as a directory: Orbax parameters, configuration, and an index of what came from where.

``config.json``, ``index.json``, and one Orbax directory for each set of weights, ``ema`` or ``online``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import json
import os
import shutil
import textwrap
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from psld_jax._runtime import distributed
from psld_jax._runtime.errors import why
from psld_jax._runtime.journal import check_directory

#: Sets of weights, the one to take by default first.
WEIGHTS = ("ema", "online")

_DELETED = ".deleted"

_CONFIG = "config.json"
_INDEX = "index.json"


@contextlib.contextmanager
def new_directory(output: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A temporary directory beside ``output`` that becomes it at the end, or disappears if anything is raised.

    Raises:
      ValueError: if ``output`` exists and is not an empty directory, unless ``overwrite`` is set and it holds a
        converted checkpoint.
    """
    final = Path(output).absolute()
    check_output(final, overwrite)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (final.with_name(f".{final.name}.{kind}-{uuid.uuid4().hex}") for kind in ("new", "old"))
    try:
        temporary.mkdir()
        yield temporary
        try:
            if final.exists():
                final.rename(old)
            temporary.rename(final)
        except BaseException:
            if old.exists() and not final.exists():
                old.rename(final)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_output(output: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Raise a ``ValueError`` if :func:`new_directory` would refuse that output."""
    output = Path(output)
    check_directory(output.parent, "the directory of the output")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{output} exists already; choose another output directory, or --overwrite")
    if not (output / _INDEX).is_file():
        raise ValueError(f"{output} holds something else than a converted checkpoint: it is not overwritten")


def write_parameters(directory: Path, weights: str, parameters: dict[str, Any]) -> None:
    """Write one set of weights, a nested dict of arrays, below ``directory``."""

    def save() -> None:
        # Weights hardly compress, and compressing them takes more memory than they do.
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
            checkpointer.save((directory / weights).absolute(), args=ocp.args.PyTreeSave(parameters))
        (directory / weights / "commit_success.txt").unlink(missing_ok=True)  # it names this machine's directories

    # Orbax writes in threads of its own, which an interrupt would leave at work while the directory is removed.
    # Leaving the executor waits for them.
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        executor.submit(save).result()


def write_description(directory: Path, config: dict[str, Any], index: dict[str, Any]) -> None:
    """Write the configuration and the index."""
    for name, content in ((_CONFIG, config), (_INDEX, index)):
        (directory / name).write_text(json.dumps(content, indent=1) + "\n")


def read_index(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Read where a converted checkpoint came from: ``source`` (file, SHA-256, ...), and each parameter by its path.

    Raises:
      ValueError: if the directory holds no converted checkpoint.
    """
    index = _read_json(Path(directory), _INDEX)
    if not isinstance(index, dict) or not index.get("parameters"):
        raise ValueError(f"{directory} holds no converted checkpoint: {_INDEX} names no parameters")
    return index


def read_converted(
    directory: str | os.PathLike[str], weights: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the configuration and the parameters of a converted checkpoint.

    Args:
      directory: the converter's output.
      weights: ``"ema"`` or ``"online"``; ``None`` takes the EMA if it is there.

    Returns:
      The configuration as a dict, and the parameters as a nested dict of float32 numpy arrays, as
      ``nnx.to_pure_dict(nnx.state(network))`` has them.

    Raises:
      ValueError: if the directory holds no converted checkpoint, not those weights, or arrays that its index does not
        describe.
    """
    directory = Path(directory).absolute()
    config, index = _read_json(directory, _CONFIG), read_index(directory)
    available = list(index["parameters"])
    chosen = weights or available[0]
    if chosen not in available:
        raise ValueError(f"{directory} holds no {chosen!r} weights; it has {', '.join(available)}")
    described, stored = index["parameters"][chosen], directory / chosen
    skeleton = unflatten((path.split("/"), ocp.RestoreArgs(restore_type=np.ndarray)) for path in described)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(stored, args=ocp.args.PyTreeRestore(restore_args=skeleton))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(textwrap.shorten(f"{stored} is damaged or incomplete: {why(error)}", 800)) from error
    shapes = {path: list(array.shape) for path, array in flatten(tree).items()}
    if shapes != {path: entry["shape"] for path, entry in described.items()}:
        raise ValueError(f"{stored} does not hold what {_INDEX} describes: convert the checkpoint again")
    return config, tree


def flatten(tree: dict[str, Any], separator: str = "/", prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested dict by path, joined with ``separator``."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        result |= flatten(value, separator, name + separator) if isinstance(value, dict) else {name: value}
    return result


def unflatten(items: Iterable[tuple[Sequence[str], Any]]) -> dict[str, Any]:
    """Make a nested dict of ``(path, value)`` pairs, taken one at a time."""
    tree: dict[str, Any] = {}
    for (*branches, leaf), value in items:
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
        node[leaf] = value
    return tree


def _read_json(directory: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((directory / name).read_text())
    except FileNotFoundError:
        missing = f"there is no {name} in it" if directory.is_dir() else "there is no such directory"
        raise ValueError(f"{directory} holds no converted checkpoint: {missing}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory} holds no converted checkpoint ({name}: {why(error)})") from None


class TrainingCheckpoints:
    """The checkpoints of a training run, ``directory/<step>/``: one set of arrays for each item, and ``meta`` (JSON).

    Through Orbax: saved by a thread while training goes on, renamed when complete, and renamed again before it is
    deleted. So a run killed at any moment leaves whole checkpoints. One run at a time has the directory; its processes
    write it together, so all of them must see it.

    Args:
      directory: made if it does not exist.
      keep_last: how many of the latest to keep.
      keep_every: keep those at multiples of so many steps too, forever; 0 for none.
    """

    def __init__(self, directory: str | os.PathLike[str], keep_last: int, keep_every: int = 0):
        self.directory = Path(directory).absolute()
        self._saving: int | None = None  # step of the checkpoint that is being written
        self._lock: IO[str] | None = None
        distributed.first_does(self._take)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep_last,
                keep_period=keep_every or None,
                cleanup_tmp_directories=True,
                todelete_subdir=_DELETED,
            ),
        )

    def _take(self) -> None:
        """Make the directory, and lock it for this run."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = (self.directory / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process trains in {self.directory.parent}; choose another workdir") from None

    def __enter__(self) -> TrainingCheckpoints:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            with contextlib.suppress(Exception):  # it has been raised, or something that matters more
                self._manager.close()
            if self._lock is not None:
                self._lock.close()

    def latest(self) -> int | None:
        """Return the step of the latest checkpoint, or ``None``."""
        return self._manager.latest_step()

    def save(self, step: int, items: dict[str, Any], meta: dict[str, Any]) -> None:
        """Save pytrees of arrays by name. The call returns when they are copied; they are written in the background.

        Raises:
          OSError: if this or the previous checkpoint could not be written; those before it are untouched.
        """
        self.wait()
        args = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
        self._saving = step
        with self._writing():
            if not self._manager.save(step, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta))):
                raise OSError(f"there is a later one, {self.latest()}")

    def wait(self) -> None:
        """Wait until everything is written. Errors are those of :meth:`save`."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        if distributed.is_first():
            shutil.rmtree(self.directory / _DELETED, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # TensorStore reports a full disk as a ValueError
            message = f"the checkpoint {self.directory / str(self._saving)} cannot be written: {error}"
            raise OSError(textwrap.shorten(message, 800)) from error

    def meta(self, step: int) -> dict[str, Any]:
        """Return what was saved as ``meta``; raise a ``ValueError`` if it cannot be read."""
        with _reading(self.directory / str(step)):
            return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        """Restore pytrees by name, with the structure, shapes and shardings of the given ones.

        Raises:
          ValueError: if they cannot be read, or something else was saved.
        """

        def target(tree: Any) -> ocp.args.PyTreeRestore:
            return ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))

        args = {name: target(tree) for name, tree in items.items()}
        with _reading(self.directory / str(step)):
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in items}


@contextlib.contextmanager
def _reading(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        message = (
            f"{directory} is damaged or does not fit the configuration; without it, the one before is taken: {error}"
        )
        raise ValueError(textwrap.shorten(message, 800)) from error  # TensorStore can say it at length


def latest_training(workdir: str | os.PathLike[str]) -> Path | None:
    """Return the latest checkpoint in the work directory of a training run, or ``None``."""
    steps = [path for path in (Path(workdir) / "checkpoints").glob("*") if path.name.isdigit()]
    return max(steps, key=lambda path: int(path.name), default=None)


def choose_weights(directory: Path, weights: str | None = None) -> str:
    """Return the name of the weights to take from a training checkpoint: ``weights``, else the EMA's if there are any.

    Raises:
      ValueError: if it does not hold them.
    """
    available = [name for name in WEIGHTS if (directory / name).is_dir()]
    chosen = weights or next(iter(available), "ema")
    if chosen not in available:
        raise ValueError(f"{directory} holds no {chosen!r} weights; it has {', '.join(available) or 'none'}")
    return chosen


def read_training(directory: Path, weights: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read configuration and parameters from one checkpoint of a training run, as :func:`read_converted` does."""
    chosen = choose_weights(directory, weights)
    handler: Any = ocp.PyTreeCheckpointHandler()
    directory = directory.absolute()
    with _reading(directory), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        shapes = handler.metadata(directory / chosen).tree
        as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        args = {"meta": ocp.args.JsonRestore(), chosen: ocp.args.PyTreeRestore(restore_args=as_arrays)}
        restored = checkpointer.restore(directory, ocp.args.Composite(**args))
        return restored["meta"]["config"], restored[chosen]
