"""What the guide needs of MkDocs besides its extensions: MathML, links in docstrings, the configuration's fields."""

from __future__ import annotations

import html
import logging
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from ml_collections import ConfigDict

_LOG = logging.getLogger("mkdocs.hooks")

CONFIG = Path(__file__).parent.parent / "configs" / "default.py"
FIELDS = "<!-- the fields of configs/default.py -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table of fields where a page asks for it."""
    return markdown.replace(FIELDS, configuration(CONFIG)) if FIELDS in markdown else markdown


def on_page_content(html_text: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw by themselves: no script, nothing to fetch."""
    for tag, display in (("span", "inline"), ("div", "block")):
        pattern = rf'<{tag} class="arithmatex">\\[(\[](.*?)\\[)\]]</{tag}>'
        html_text = re.sub(
            pattern, lambda m, display=display: convert(html.unescape(m[1]), display=display), html_text, flags=re.S
        )
    return html_text


def configuration(path: Path) -> str:
    """The fields of a configuration as Markdown, a table for each section: name, default, comment at its line."""
    comments, above = {}, []
    for line in map(str.strip, path.read_text().splitlines()):
        if line.startswith("# "):
            above.append(line[2:])
            continue
        if match := re.fullmatch(r"config\.([\w.]+) = .*?(?:  # (.*))?", line):
            comments[match[1]] = " ".join([*above, match[2] or ""]).strip().replace("|", "\\|")
        above = []
    tables: dict[str, list[str]] = {}
    fields, written = _fields(runpy.run_path(str(path))["get_config"]()), list(comments)
    # In the order of the file, which their comments count on; ConfigDict sorts them by name.
    for name, value in sorted(
        fields, key=lambda field: written.index(field[0]) if field[0] in comments else len(written)
    ):
        row = f"| `{name}` | `{value!r}` | {comments.get(name, '')} |"
        tables.setdefault(name.rpartition(".")[0], []).append(row)
    head = ["", "| field | default | meaning |", "|---|---|---|"]
    return "\n".join(line for name, rows in tables.items() for line in [f"## {name or 'General'}", *head, *rows, ""])


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


class Roles(griffe.Extension):
    """The docstrings' ``:func:`name``` as links to where the reference has what they name."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite all docstrings of a package."""
        objects: list[griffe.Object] = [pkg]
        for obj in objects:
            objects += [member for member in obj.members.values() if isinstance(member, griffe.Object)]
            if obj.docstring:
                obj.docstring.value = _ROLE.sub(lambda match, obj=obj: _link(obj, match[1]), obj.docstring.value)


_ROLE = re.compile(r":(?:func|class|meth|mod|attr):`([^`]+)`")


def _link(obj: griffe.Object, name: str) -> str:
    """``name`` as seen from ``obj``, as a link; what is private has no place in the reference."""
    if name.rpartition(".")[2].startswith("_"):
        return f"`{name}`"
    first, _, rest = name.partition(".")
    scope = obj.parent if obj.is_function and obj.parent is not None else obj
    try:
        if first != "psld_jax":
            first = f"{scope.path}.{first}" if first in scope.members else obj.resolve(first)
        path = f"{first}.{rest}" if rest else first
        return f"[`{name}`][{obj.modules_collection[path].canonical_path}]"
    except (KeyError, griffe.NameResolutionError):
        _LOG.warning("%s: its docstring names `%s`, which does not exist", obj.path, name)
        return f"`{name}`"
