"""Images that the network ``emoji`` was trained on: python benchmarks/emoji.py SOURCE OUTPUT [SIZE]

``SOURCE`` is the directory of the package ``emoji-datasource-google`` of the npm registry (16.0.0), with ``emoji.json``
and ``img/google/64``: Noto's emoji, Apache 2.0. Those without skin tones are put on white, made ``SIZE`` pixels wide
(16), and written to ``OUTPUT``, with a directory for each category: what ``configs/emoji.py`` trains on as
``config.data.path``.

``python benchmarks/emoji.py PICTURE.png`` draws samples of the network, a row for each category.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

import psld_jax as pj

#: By label: the alphabetical order of the directories.
CATEGORIES = ("activities", "animals", "flags", "food", "objects", "people", "smileys", "symbols", "travel")

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


def draw(path: str, columns: int = 16, nfe: int = 20, guidance: float = 2.0) -> None:
    """Draw ``columns`` samples of each category, with the same noise in a column."""
    model = pj.load("emoji")
    figure, axes = plt.subplots(len(CATEGORIES), columns, figsize=(columns * 0.62, len(CATEGORIES) * 0.62))
    for row, name in enumerate(CATEGORIES):
        images = pj.generate(model, nfe=nfe, n=columns, seed=0, batch_size=columns, label=row, guidance=guidance)
        for axis, image in zip(axes[row], (images + 1) / 2, strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
            axis.set_frame_on(False)
        axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.subplots_adjust(left=0.12, right=0.995, top=0.99, bottom=0.01, wspace=0.08, hspace=0.08)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if any(word.startswith("-") for word in sys.argv[1:]):
        sys.exit(__doc__)
    if len(sys.argv) == 2:
        draw(sys.argv[1])
    elif len(sys.argv) in (3, 4):
        print(f"{render(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))} images in {sys.argv[2]}")
    else:
        sys.exit(__doc__)
