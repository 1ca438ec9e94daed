"""Images for the network ``emoji``: python benchmarks/emoji.py SOURCE OUTPUT [SIZE]

``SOURCE`` is the directory of the package ``emoji-datasource-google`` of the npm registry (16.0.0), with ``emoji.json``
and ``img/google/64``: Noto's emoji, Apache 2.0. Those without skin tones are put on white, made ``SIZE`` pixels wide
(16), and written to ``OUTPUT``, with a directory for each category: what ``configs/emoji.py`` trains on as
``config.data.path``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

#: Skin tones and other parts that are no emoji of their own.
_LEFT_OUT = "Component"


def render(source: Path, output: Path, size: int = 16) -> int:
    """Write the images; return how many."""
    known = json.loads((source / "emoji.json").read_text(encoding="utf-8"))
    chosen = [emoji for emoji in known if emoji["has_img_google"] and emoji["category"] != _LEFT_OUT]
    for emoji in chosen:
        with Image.open(source / "img" / "google" / "64" / emoji["image"], formats=("PNG",)) as file:
            image = file.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        place = output / emoji["category"].lower().replace(" & ", "_").replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        white.convert("RGB").resize((size, size), Image.Resampling.LANCZOS).save(place / emoji["image"])
    return len(chosen)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    print(f"{render(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))} images in {sys.argv[2]}")
