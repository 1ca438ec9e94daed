"""A registry of what the modules of a package define, by name. The modules are found; none needs to be listed."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from psld_jax._runtime.errors import check_choice, shown

T = TypeVar("T")


def _again(old: Any, new: Any) -> bool:
    """Tell whether ``new`` is what a cell of a notebook, or a line of a session, defines for a second time."""
    first, second = (getattr(entry, "fn", entry) for entry in (old, new))
    places = [(getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)) for fn in (first, second)]
    return places[0] == places[1] and places[0][0] == "__main__"


class Registry(Generic[T]):
    """A mapping from names to the entries that were registered under them.

    Args:
      what: what the names are of, for messages.
      package: every module of it is imported before a name is looked up.
      check: called with name and entry before one is added; it raises a ``ValueError`` for what cannot be one.
    """

    def __init__(self, what: str, package: str, check: Callable[[str, T], None] = lambda name, entry: None):
        self.what, self.package = what, package
        self.entries: dict[str, T] = {}
        self._check = check

    def add(self, name: str, entry: T) -> None:
        """Give ``entry`` this name. In a notebook, a cell that runs again replaces what it defined before.

        Raises:
          ValueError: if it is no name, or taken, or as ``check`` does.
        """
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"name={shown(name)} of {self.what} must be a text that is not empty")
        if name in self.entries and not _again(self.entries[name], entry):
            raise ValueError(f"{self.what} {name!r} is registered twice")
        self._check(name, entry)
        self.entries[name] = entry

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator that registers what it decorates under this name (:meth:`add`), and returns it unchanged.

        Raises:
          ValueError: when decorating, as :meth:`add` does.
        """

        def decorate(entry: T) -> T:
            self.add(name, entry)
            return entry

        return decorate

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted."""
        self._import()
        return tuple(sorted(self.entries))

    def __getitem__(self, name: str) -> T:
        """Return the entry of that name.

        Raises:
          ValueError: for an unknown one, with the nearest that is known.
        """
        check_choice(self.what, name, self.names())
        return self.entries[name]

    @functools.cache  # noqa: B019 (a registry lives as long as the program)
    def _import(self) -> None:
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            importlib.import_module(f"{self.package}.{module.name}")
