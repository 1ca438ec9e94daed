"""One page of HTML that holds all it needs: it opens from the disk, and loads nothing from the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from psld_jax._version import __version__
from psld_jax.report._parts import escape

_HERE = Path(__file__).parent

#: The browser itself refuses what would be fetched.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_DIALOG = """<dialog aria-label="Picture at full size"><p></p><div class="picture"><img alt=""></div>
<p><button type="button" data-zoom="1">full size</button> <button type="button" data-zoom="2">twice</button>
<button type="button" data-zoom="4">four times</button> <button type="button" data-close>close</button></p></dialog>"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
      name: its anchor, one word.
      title: its heading.
      content: HTML.
    """

    name: str
    title: str
    content: str


def page(
    title: str, lead: str, sections: list[Section], scripts: Sequence[str] = (), refresh: float | None = None
) -> str:
    """Make the whole page, with style and script inside, so that it needs no other file.

    Args:
      title, lead: text.
      sections: HTML.
      scripts: files of this folder that the part needs beside the common one.
      refresh: seconds after which a browser opens it again; ``None`` for a page that is final.
    """
    links = "".join(f'<li><a href="#{s.name}">{escape(s.title)}</a></li>' for s in sections)
    body = "".join(
        f'<section id="{s.name}" aria-labelledby="{s.name}-title"><h2 id="{s.name}-title">{escape(s.title)}</h2>'
        f"{s.content}</section>"
        for s in sections
    )
    style, *code = ((_HERE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js", *scripts))
    script = "\n".join(code)
    again = "" if refresh is None else f'\n<meta http-equiv="refresh" content="{refresh:g}">'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">{again}
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav></header>
<main>{body}</main>
<footer><p>Written by psld_jax {escape(__version__)}. This file needs no network and no other file.</p></footer>
{_DIALOG}
<script>{script}</script>
</body>
</html>
"""
