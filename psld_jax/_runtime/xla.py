"""How JAX programs are compiled and kept: options of XLA where its own choices for a CPU cost time, and a cache."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import weakref
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.experimental.xla_metadata import set_xla_metadata

Array = Any

# YNNPACK, to which XLA gives convolutions, takes the gradient to a 3x3 kernel at a quarter of the rate of XLA's own
# code (58 for 224 GFLOP/s with 128 channels on two AVX-512 cores) and the convolution itself at four fifths. It is
# quicker at sums, which it keeps. The order of a program is one that needs little memory: a training step of the 39M
# network 921 MiB for 1,204 (batch 16), in the same time.
_CPU = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}


@functools.cache
def options() -> dict[str, str]:
    """Return ``compiler_options`` for ``jax.jit``: only on a CPU, and only those that this XLA knows."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=_CPU).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # they are experimental: another version may have lost them, and the need
        return {}
    return _CPU


#: Programs that one function of :func:`jit` keeps: those of other networks, operators and shapes. With one more, the
#: one that was not used for the longest time is given back; it is compiled again when it is called again.
MAX_PROGRAMS = 4


class _Kept:
    """The programs of one function by the structure of its arguments, at most :data:`MAX_PROGRAMS`."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make
        self._programs: dict[Any, Any] = {}  # the least recently used first

    def __call__(self, key: Any) -> Any:
        """Return the program for that structure, and make it if it is not kept."""
        program = self._programs.pop(key, None) or self._make()
        self._programs[key] = program
        while len(self._programs) > MAX_PROGRAMS:
            oldest = next(iter(self._programs))
            if oldest not in self._programs:  # a callable in it, that is not frozen, has another hash than it had
                self.give_back()
                return self(key)
            self._programs.pop(oldest).clear_cache()
        return program

    def __contains__(self, key: Any) -> bool:
        return key in self._programs

    def give_back(self) -> None:
        """Give back all programs."""
        programs, self._programs = self._programs, {}
        for program in programs.values():
            program.clear_cache()


def _return_free_memory() -> None:
    """Give memory that a compilation has freed back to the system, where the C library can (glibc).

    A compilation frees some 50 MiB in pieces, which glibc keeps for itself: memory would seem to grow with every one.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


_ALL_KEPT: weakref.WeakValueDictionary[int, _Kept] = weakref.WeakValueDictionary()


Watcher = Callable[[str], contextlib.AbstractContextManager[None]]

_watchers: list[Watcher] = []


@contextlib.contextmanager
def watched(watcher: Watcher) -> Generator[None, None, None]:
    """Call ``watcher`` with the name of every new program of :func:`jit`. It returns a context for the compilation."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.pop()


def jit(fn: Callable[..., Any], what: str = "a program", **kwargs: Any) -> Callable[..., Any]:
    """Return ``jax.jit(fn, **kwargs)`` with :func:`options`, which JAX takes for the outermost program only.

    Within ``jit``, ``grad``, ``vmap`` or ``scan`` it is ``jax.jit`` as it is. Outside, one program is kept for each
    structure and shapes of the arguments, :data:`MAX_PROGRAMS` at most: ``jax.jit`` alone keeps all, and every function
    that was a part of an argument with them. :func:`clear_programs` gives all of them back. ``what`` is the program's
    name for those who wait while it is compiled (:func:`watched`).
    """
    inner = jax.jit(fn, **kwargs)
    # A function of its own each time, since JAX keeps what it has traced by the function.
    kept = _Kept(
        lambda: jax.jit(functools.wraps(fn)(functools.partial(fn)), compiler_options=options(), **kwargs),
    )
    _ALL_KEPT[id(kept)] = kept

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        # What is computed while JAX traces a function belongs to the trace, constants included.
        traced = any(isinstance(leaf, Tracer) for leaf in [*leaves, jnp.add(0, 0)])
        if traced:
            return inner(*args, **kwargs)
        key = structure, tuple(map(_kind, leaves)), jax.config.read("jax_enable_x64")
        compiles = key not in kept
        with _watchers[-1](what) if compiles and _watchers else contextlib.nullcontext():
            out = kept(key)(*args, **kwargs)
        if compiles:
            _return_free_memory()
        return out

    return call


def _kind(leaf: Any) -> Any:
    """Return that part of an argument for which another value needs another program."""
    if isinstance(leaf, (bool, int, float, complex)):
        return type(leaf)
    return (leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf


def clear_programs() -> None:
    """Free all compiled programs that this package keeps. What is called next compiles again."""
    for kept in list(_ALL_KEPT.values()):
        kept.give_back()


def materialise(x: Array) -> Array:
    """Return the array itself, ``[...]``, computed once. On a CPU nothing is fused across it, nor in derivatives.

    XLA fuses what computes an array into everything that uses it. Along a chain of residual blocks, every sum over a
    gradient would compute the gradients of all blocks behind it again; ``lax.optimization_barrier`` alone is dropped
    before fusion on a CPU, a call that must not be inlined stays. It copies nothing.
    """
    return jax.lax.platform_dependent(x, cpu=_apart, default=lambda x: x)


_barrier = jax.jit(jax.lax.optimization_barrier)


def _apart(x: Array) -> Array:
    with set_xla_metadata(inlineable="false"):
        return _barrier(x)
