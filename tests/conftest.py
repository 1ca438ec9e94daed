"""Tests run in float64 where they ask for it: the network side is exercised in float32 explicitly."""

import os
import resource
import sys
import zlib

# Before numpy and scipy are loaded, and for the processes that tests start: of the threads that they keep for matrices
# of a few rows, each takes a core from the other tests while it waits. A diffusion's exponentials took 16 times longer.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import jax
import numpy as np
import pytest

import psld_jax as pj
from psld_jax._runtime import xla

# These tests compile more than they run, so LLVM does not spend its time on fast code. Set XLA_FLAGS, also to nothing,
# to test the code that users get, as ``make test-all`` does.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Tests come in random order, so that a program would be given back before its next use.
MAX_PROGRAMS, xla.MAX_PROGRAMS = xla.MAX_PROGRAMS, 64
jax.config.update("jax_enable_x64", True)
# Compilation makes the first example slow, and a busy machine any: time is no property of these. The default run is
# the same each time; the slow fuzzing draws anew.
hypothesis.settings.register_profile("psld_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("psld_jax")


def pytest_sessionfinish(session):
    """A worker tells what it took."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["usage"] = usage()


def usage():
    """Peak resident memory of this process in GB, and its CPU time with that of the processes it started, in s."""
    own, started = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB here
    return own.ru_maxrss * unit / 1e9, sum(use.ru_utime + use.ru_stime for use in (own, started))


USAGE = []


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Of pytest-xdist: a worker has ended."""
    USAGE.append(getattr(node, "workeroutput", {}).get("usage", (0.0, 0.0)))


def pytest_terminal_summary(terminalreporter, config):
    """One line: a worker may take 2.5 GB, and all together 8 minutes of CPU time. And the seed of the order."""
    memory, seconds = zip(*(USAGE or [usage()]), strict=True)
    peaks = ", ".join(f"{peak:.2f}" for peak in memory)
    terminalreporter.write_line(f"peak memory of each worker: {peaks} GB; CPU time {sum(seconds):.0f} s")
    if config.getoption("randomly_seed", None) is not None:
        terminalreporter.write_line(f"to repeat this order: --randomly-seed={config.getoption('randomly_seed')}")


@pytest.fixture(scope="module", autouse=True)
def programs():
    """What a module compiled is given back with its last test; until then all of it is kept, in whatever order."""
    yield
    xla.clear_programs()
    jax.clear_caches()


@pytest.fixture
def few_programs(monkeypatch):
    """As many are kept as outside of tests; none to begin with. Returns their number."""
    monkeypatch.setattr(xla, "MAX_PROGRAMS", MAX_PROGRAMS)
    xla.clear_programs()
    return MAX_PROGRAMS


@pytest.fixture
def rng(request):
    """A generator of the test's own: its numbers depend on the test's name, and not on which tests ran before."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def key(request):
    """The same for ``jax.random``."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def digits_model():
    """The embedded digits with their exact score."""
    return pj.load("digits")


@pytest.fixture(scope="session")
def few_digits():
    """The same of the first 200 of them: a ninth of the work, where it does not matter what they look like."""
    return pj.load("digits", {"data.num_points": 200})
