"""How far a loop is: a bar on a terminal, a line now and then elsewhere; and what is compiled."""

import contextlib
import io
import re

import jax.numpy as jnp
import pytest
from rich.console import Console

from psld_jax import build, modes
from psld_jax._runtime import progress, xla


class Clock:
    """Time that goes on as it is told."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, _environ={"TERM": "xterm"})


def test_elsewhere_lines_are_sparse_and_tell_rate_and_time_left(clock):
    out = console(terminal=False)
    for _ in progress.track(range(400), "sampling", out):
        clock.now += 1.0
    lines = out.file.getvalue().splitlines()
    # After 10 s, and then 20, 40, 80 and 160 s later.
    assert [int(re.search(r"sampling: (\d+) of 400", line)[1]) for line in lines] == [10, 30, 70, 150, 310]
    assert lines[0] == "sampling: 10 of 400, 1 a second, 0:06:30 left"


def test_what_is_short_is_not_told(clock):
    out = console(terminal=False)
    assert list(progress.track(iter("abc"), "reading", out)) == ["a", "b", "c"]
    with progress.busy("compiling", out):
        clock.now += 1.0
    assert out.file.getvalue() == ""
    with progress.busy("compiling the sampler", out):
        clock.now += 12.3
    assert out.file.getvalue() == "compiling the sampler: 12.3 s\n"


def test_on_a_terminal_a_bar_has_the_note_and_says_what_is_compiled():
    out = console(terminal=True)
    with progress.Bar(out, "tuning", 3) as bar:
        bar.advance("smallest so far 0.25")
        bar._progress.refresh()
        with progress.busy("compiling the sampler", out):
            bar._progress.refresh()
        for _ in progress.track([1, 2], "inner", out):  # one bar at a time
            pass
    text = out.file.getvalue()
    assert "smallest so far 0.25" in text and "1/3" in text and "compiling the sampler" in text and "inner" not in text
    assert progress.Bar.active == []


def test_a_bar_ends_with_what_stopped_it():
    with pytest.raises(KeyError):
        for _ in progress.track([1], "sampling", console(terminal=True)):
            raise KeyError
    import gc

    gc.collect()  # the generator, and its bar, end here at the latest
    assert progress.Bar.active == []


def test_a_new_program_is_told_by_its_name_once():
    told = []
    square = xla.jit(lambda x: x * x, "a square")

    @contextlib.contextmanager
    def watcher(what):
        told.append(f"{what} begins")
        yield
        told.append(f"{what} ends")

    with xla.watched(watcher):
        square(jnp.ones(3))
        square(jnp.ones(3))
        square(jnp.ones(4))
    square(jnp.ones(5))
    assert told == ["a square begins", "a square ends"] * 2


@pytest.mark.slow
def test_a_mode_tells_what_it_compiles(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SHORT", -1.0)
    xla.clear_programs()
    out = console(terminal=False)
    overrides = {"data.num_points": 20, "sampling.num_samples": 2, "sampler.nfe": 3, "sampler.name": "ddim"}
    modes.run("sample", build.override(build.load_config("digits"), overrides), tmp_path, out)
    assert re.search(r"compiling the sampler: \d+\.\d s", out.file.getvalue())
