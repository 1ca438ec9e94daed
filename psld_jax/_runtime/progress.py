"""Progress of long loops: a bar with rate and time left on a terminal, and a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

#: Seconds until the first line that goes to no terminal; each next one takes twice as long, up to the second number.
_FIRST, _LONGEST = 10.0, 600.0

#: What lasts less is not told.
SHORT = 2.0


def duration(seconds: float) -> str:
    """Write seconds as hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


class Bar:
    """A context for a loop of known or unknown length, which shows how far the loop is.

    Args:
      console: where it is shown.
      description: what is done.
      total: how many items there are; ``None`` if that is not known.
    """

    #: Those that are shown, the innermost last.
    active: list[Bar] = []

    def __init__(self, console: Console, description: str, total: int | None = None):
        self._console, self._description, self._total = console, description, total
        self._done, self._note, self._start = 0, "", time.perf_counter()
        self._next, self._wait = self._start + _FIRST, _FIRST
        # Rich draws one bar at a time.
        self._drawn = console.is_terminal and not console.quiet and not any(bar._drawn for bar in Bar.active)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._progress.add_task(description, total=total, text="")

    def __enter__(self) -> Bar:
        if self._drawn:
            self._progress.start()
        Bar.active.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        Bar.active.remove(self)
        if self._drawn:
            self._progress.stop()

    def advance(self, note: str | None = None) -> None:
        """Count one more item as done, and show ``note`` beside the numbers from now on."""
        self._done += 1
        self._note = self._note if note is None else note
        seconds = time.perf_counter() - self._start
        text = ", ".join(filter(None, (self._note, _rate(self._done, seconds))))
        if self._drawn:
            self._progress.update(self._task, completed=self._done, text=text)
        elif not self._console.is_terminal and time.perf_counter() >= self._next:
            of = "" if self._total is None else f" of {self._total}"
            left = (
                "" if self._total is None else f", {duration((self._total - self._done) * seconds / self._done)} left"
            )
            self._console.print(f"{self._description}: {self._done}{of}, {text}{left}")
            self._wait = min(2 * self._wait, _LONGEST)
            self._next = time.perf_counter() + self._wait

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """Go through the items. Each one counts as done when the next one is asked for."""
        for item in items:
            yield item
            self.advance()

    def describe(self, text: str) -> None:
        """Show ``text`` in place of the description. The empty text brings the description back."""
        if self._drawn:
            self._progress.update(self._task, description=text or self._description)


def _rate(count: int, seconds: float) -> str:
    if seconds <= 0:
        return ""
    rate = count / seconds
    return f"{rate:.3g} a second" if rate >= 1 else f"{1 / rate:.3g} s each"


def track(items: Iterable[T], description: str, console: Console, total: int | None = None) -> Iterator[T]:
    """Go through ``items`` with a :class:`Bar`, which is as long as they are if they have a length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(console, description, total) as bar:
        yield from bar.each(items)


@contextlib.contextmanager
def busy(description: str, console: Console) -> Iterator[None]:
    """Show what is done while nothing can be counted: at once on a terminal, afterwards elsewhere."""
    start = time.perf_counter()
    shown = next((bar for bar in reversed(Bar.active) if bar._drawn), None)
    if shown is not None:
        shown.describe(description)
        try:
            yield
        finally:
            shown.describe("")
    elif console.is_terminal and not console.quiet:
        with console.status(description):
            yield
    else:
        yield
        if (seconds := time.perf_counter() - start) > SHORT:
            console.print(f"{description}: {seconds:.1f} s")
