"""What the guide needs of MkDocs besides its extensions: MathML, links in docstrings, the configuration's fields."""

from __future__ import annotations

import html
import logging
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert

_LOG = logging.getLogger("mkdocs.hooks")

CONFIG = Path(__file__).parent.parent / "configs" / "default.py"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table of fields where a page asks for it."""
    return markdown.replace("[[configuration]]", configuration(CONFIG.read_text()))


def on_page_content(html_text: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw by themselves: no script, nothing to fetch."""
    for tag, display in (("span", "inline"), ("div", "block")):
        pattern = rf'<{tag} class="arithmatex">\\[(\[](.*?)\\[)\]]</{tag}>'
        html_text = re.sub(
            pattern, lambda m, display=display: convert(html.unescape(m[1]), display=display), html_text, flags=re.S
        )
    return html_text


def configuration(source: str) -> str:
    """The fields of ``configs/default.py`` as Markdown, a table for each section: name, default, comment."""
    sections: dict[str, list[str]] = {"config": []}
    above: list[str] = []
    for line in source.splitlines():
        line = line.strip()
        if line.startswith("# "):
            above.append(line[2:])
            continue
        match = re.fullmatch(r"config\.([\w.]+) = (.*?)(?:  # (.*))?", line)
        if match:
            name, value, comment = match.groups()
            section, _, _ = name.rpartition(".")
            text = " ".join([*above, comment or ""]).strip()
            if value == "ConfigDict()":
                sections.setdefault(f"config.{name}", [])
            else:
                key = f"config.{section}" if section else "config"
                sections[key].append(f"| `{name}` | `{value}` | {text.replace('|', chr(92) + '|')} |")
        above = []
    parts = []
    for name, rows in sections.items():
        parts += [f"## {name}", "", "| field | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


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
