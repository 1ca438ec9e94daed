"""Work on many devices and processes: one mesh over all of them, and the few messages that processes exchange.

The same code runs in one process, which is JAX's default and needs no setup. Training is one program on the devices of
all processes. Samples need nothing of each other, so each process draws its part on its own devices.
"""

from __future__ import annotations

import collections
import io
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from psld_jax._runtime.errors import why

Array = Any
T = TypeVar("T")

#: Seconds after which a process that says nothing is taken for dead, and that one which ends waits for the others.
_HEARTBEAT, _SHUTDOWN = 30, 10

#: Arrays with fewer numbers are not split: what they take is little, and talking about them costs as much as for more.
SPLIT_FROM = 2**16


def start(coordinator: str, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the other processes. Call it before anything is computed.

    Args:
      coordinator: ``HOST:PORT`` of process 0, the same for all; ``"auto"`` if SLURM, Open MPI or a TPU tells it.
      num_processes, process_id: how many there are, and which this is, from 0; not for ``"auto"``.

    Raises:
      ValueError: for numbers that are missing or out of range, or if the processes do not find each other.
    """
    told: dict[str, Any] = {}
    if coordinator != "auto":
        if ":" not in coordinator:
            raise ValueError(f"coordinator={coordinator!r} must be HOST:PORT of process 0, or auto")
        if num_processes is None or process_id is None or not 0 <= process_id < num_processes:
            raise ValueError(
                f"num_processes={num_processes} and process_id={process_id} must say how many processes there are, "
                f"and which of them this is, from 0"
            )
        told = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    elif num_processes is not None or process_id is not None:
        raise ValueError("coordinator=auto takes num_processes and process_id from the cluster: leave them out")
    try:
        jax.distributed.initialize(
            **told, heartbeat_timeout_seconds=_HEARTBEAT, shutdown_timeout_seconds=_SHUTDOWN, initialization_timeout=120
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the processes of coordinator={coordinator!r} do not find each other: {why(error)}"
        ) from error


def count() -> int:
    """Return how many processes there are."""
    return jax.process_count()


def is_first() -> bool:
    """Tell whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def share(n: int, size: int = 1) -> range:
    """Return this process's part of ``range(n)``: contiguous, in whole groups of ``size`` (the last may be short)."""
    groups, index = -(-n // size), jax.process_index()
    first, last = (groups * i // count() * size for i in (index, index + 1))
    return range(min(first, n), min(last, n))


def gather(content: bytes) -> list[bytes]:
    """Return what each process says, in their order. Every process must call it."""
    if count() == 1:
        return [content]
    sizes = multihost_utils.process_allgather(np.array(len(content), np.int32))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    everything = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]) for row, size in zip(everything, sizes, strict=True)]


def gather_arrays(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return the numpy arrays of each process by name, to the bit; of any shapes. Names may differ."""
    if count() == 1:
        return [arrays]
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType] (names are free)
    return [dict(np.load(io.BytesIO(part), allow_pickle=False)) for part in gather(content.getvalue())]


def first_does(action: Callable[[], None]) -> None:
    """Run ``action`` in the first process while the others wait. If it cannot be done, all of them raise.

    Raises:
      ValueError, OSError: in the first process, as ``action`` raised it; in the others a ``ValueError`` with its text.
    """
    problem: ValueError | OSError | None = None
    try:
        if is_first():
            action()
    except (ValueError, OSError) as error:
        problem = error
    told = gather(str(problem or "").encode())[0].decode()
    if told:
        raise problem or ValueError(told)


class Devices:
    """A mesh of all devices of all processes. Batches are split over it; the state is on each device, or split too.

    Args:
      split_state: split large arrays of the state (parameters, their averages, the optimiser's), each along its
        longest axis that the number of devices divides: memory for them falls with the number of devices, and every
        step gathers the parameters (fully sharded data parallelism; Rajbhandari et al., 2020, ZeRO).
    """

    def __init__(self, split_state: bool = False):
        # By process, so that the part of a batch that a process has lies together.
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        self.mesh = jax.sharding.Mesh(np.array(devices), ("data",))
        self.split = NamedSharding(self.mesh, PartitionSpec("data"))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.count, self._split_state = self.mesh.size, split_state

    def place(self, tree: T) -> T:
        """Put this process's part of a batch on the devices."""
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self.split, leaf), tree)

    def place_whole(self, tree: T) -> T:
        """Put a batch that every process has as a whole on the devices."""
        return jax.tree.map(lambda leaf: _placed(leaf, self.split), tree)

    def place_state(self, tree: T) -> T:
        """Put a state that every process has as a whole on the devices."""
        return jax.tree.map(_placed, tree, self.state_shardings(tree))

    def state_shardings(self, tree: Any) -> Any:
        """Return how each array of a state lies on the devices."""
        return jax.tree.map(lambda leaf: NamedSharding(self.mesh, self._spec(leaf.shape)), tree)

    def _spec(self, shape: tuple[int, ...]) -> PartitionSpec:
        axes = [axis for axis, size in enumerate(shape) if size % self.count == 0]
        if not self._split_state or not axes or np.prod(shape) < SPLIT_FROM:
            return PartitionSpec()
        longest = max(axes, key=lambda axis: shape[axis])
        return PartitionSpec(*(None,) * longest, "data")

    def gather(self, tree: T) -> T:
        """Put the whole of split arrays on each device, inside of a program."""
        return jax.lax.with_sharding_constraint(tree, self.replicated) if self._split_state else tree

    def fetch(self, tree: T) -> T:
        """Return the whole of split arrays as numpy arrays, in every process."""
        return jax.device_get(jax.jit(lambda t: t, out_shardings=self.replicated)(tree) if self._split_state else tree)


def _placed(leaf: Array, sharding: NamedSharding) -> jax.Array:
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


class Agreement:
    """Tells all processes the largest number that any of them gave: at once in one process, else two calls later.

    Every process must call it equally often. What was said two calls ago has been computed by now, so nobody waits.
    """

    def __init__(self, devices: Devices):
        self._devices, self._said = devices, collections.deque[Array]()
        self._largest = jax.jit(jnp.max, out_shardings=devices.replicated)

    def __call__(self, number: int) -> int:
        if count() == 1:
            return number
        mine = np.full(jax.local_device_count(), number, np.int32)
        self._said.append(self._largest(self._devices.place(mine)))
        return int(self._said.popleft()) if len(self._said) > 2 else 0
