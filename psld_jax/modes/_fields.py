"""Error messages that name the field of the configuration in place of the argument of a function."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Generator
from typing import Any

from psld_jax._runtime.errors import why
from psld_jax.checkpoints.directory import flatten
from psld_jax.models import families

#: Sections that every mode may read, those first whose fields most messages are of; a mode's own comes before them.
_SECTIONS = ("sampler", "sampling", "steer", "data", "model", "sde", "train")
_OWN = {"sample": "sampling", "export": "model"}
#: Arguments that have another name than their field.
_ARGUMENTS = {"n": "num_samples"}
# An argument and what follows, unless it is a part of a longer name, a flag or a text.
_ARGUMENT = re.compile(r"(?<![\w.'\"\-])([a-z]\w*)=")
# The representation of an object, whose own arguments are no fields: PSLD(gamma=0.01).
_OBJECT = re.compile(r"\w\([^()]*\)")
_UNKNOWN = re.compile(r"unknown (?!config)([\w ]+?) '([^']*)'")


@contextlib.contextmanager
def named_in_full(config: Any, mode: str) -> Generator[None, None, None]:
    """Raise the ``ValueError`` of the code inside again, with ``config.sampler.nfe=0`` where it says ``nfe=0``."""
    try:
        yield
    except ValueError as error:
        # Of another library's errors only what helps; of our own, nothing is left out.
        raise ValueError(in_full(str(error) if "\n" in str(error) else why(error), config, mode)) from error


def in_full(message: str, config: Any, mode: str) -> str:
    """Rewrite ``message`` with the full path of each field that it names, or whose value it calls unknown.

    Where fields of several sections have that name, it is the one that has the value in the message; of several, that
    of the mode's own section. What is not in use is named last.
    """
    own = _OWN.get(mode, mode)
    order = (own, *_SECTIONS)
    values = flatten(json.loads(config.to_json()), separator=".")
    # model.edm and model.unet2d describe networks of these names. The one that is opened may be either.
    others = tuple(f"model.{name}." for name in families.available() if name != config.model.name)
    known = [name for name in values if config.model.name == "saved" or not name.startswith(others)]
    fields = sorted(known, key=lambda name: order.index(s) if (s := name.partition(".")[0]) in order else len(order))
    objects = [match.span() for match in _OBJECT.finditer(message)]

    def full(match: re.Match[str]) -> str:
        name = _ARGUMENTS.get(match[1], match[1])
        found = [field for field in fields if field.rpartition(".")[2] == name]
        if not found or any(start < match.start() < end for start, end in objects):
            return match[0]
        found = [field for field in found if not _is_idle(field, values, others)] or found
        same = [field for field in found if _is_next(values[field], message[match.end() :])]
        field = f"config.{(same or found)[0]}"
        return f"{field}=" if name == match[1] else f"{field}: {match[0]}"

    def with_field(match: re.Match[str]) -> str:
        found = [field for field in fields if match[2] and _holds(values[field], match[2])]
        return f"{match[0]} (config.{found[0]})" if found else match[0]

    return _UNKNOWN.sub(with_field, _ARGUMENT.sub(full, message), count=1)


def _is_idle(field: str, values: dict[str, Any], others: tuple[str, ...]) -> bool:
    """Tell whether it is an option of ``others``, families of networks, or a hyper-parameter that nobody set."""
    return field.startswith(others) or (field.startswith("sampler.hyper.") and values[field] is None)


def _is_next(value: Any, text: str) -> bool:
    """Tell whether ``text`` begins with the value, as messages write it, and not with a longer one."""
    value = tuple(value) if isinstance(value, list) else value
    return any(re.match(rf"{re.escape(written)}(?!\w|\.\d)", text) for written in (repr(value), str(value)))


def _holds(value: Any, name: str) -> bool:
    return value == name or (isinstance(value, list) and name in value)
