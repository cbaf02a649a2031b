"""Write a small data set of pictures for examples/images_cnn.yaml, one folder for each class.

python examples/patterns.py patterns
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 48
CLASSES = ("checks", "columns", "rows")


def picture(name: str, rng: np.random.Generator) -> Image.Image:
    """Return a pattern of random colours, width and shift."""
    stripes = (np.arange(SIDE) + rng.integers(SIDE)) // rng.integers(4, 9) % 2
    flat = np.zeros(SIDE, int)
    down, across = {"checks": (stripes, stripes), "columns": (flat, stripes), "rows": (stripes, flat)}[name]
    colours = np.stack([rng.integers(0, 120, 3), rng.integers(120, 256, 3)])
    return Image.fromarray(colours[down[:, None] ^ across].astype(np.uint8))


def write(folder: Path, number: int = 60, seed: int = 0) -> None:
    """Write `number` JPEG files of each class."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            picture(name, rng).save(folder / name / f"{i}.jpg", quality=90)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
