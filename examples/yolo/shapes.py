"""Draw images of shapes with their boxes, in the layout that ultralytics trains on, to try the example with.

    python examples/yolo/shapes.py FOLDER [--images 200] [--side 160]

FOLDER then holds ``images/{train,val}``, ``labels/{train,val}`` and ``data.yaml``. They are the same for each call.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

NAMES = ("square", "disc", "cross")


def drawn(random: np.random.Generator, side: int) -> tuple[Image.Image, list[str]]:
    """An image of one to four shapes on noise, and a line for each: class, centre and size as shares of the image."""
    image = Image.fromarray(random.integers(60, 140, (side, side, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(image)
    lines = []
    for _ in range(random.integers(1, 5)):
        kind, half = int(random.integers(len(NAMES))), int(random.integers(side // 12, side // 5))
        x, y = (int(each) for each in random.integers(half, side - half, 2))
        red, green, blue = (int(each) for each in random.choice([0, 40, 200, 255], 3))
        corners, colour, arm = (x - half, y - half, x + half, y + half), (red, green, blue), half // 3
        if NAMES[kind] == "square":
            pen.rectangle(corners, colour)
        elif NAMES[kind] == "disc":
            pen.ellipse(corners, colour)
        else:
            pen.rectangle((x - arm, y - half, x + arm, y + half), colour)
            pen.rectangle((x - half, y - arm, x + half, y + arm), colour)
        size = 2 * half / side
        lines.append(f"{kind} {x / side:.5f} {y / side:.5f} {size:.5f} {size:.5f}")
    return image, lines


def write(folder: Path, images: int, side: int) -> None:
    """So many images to train on, and a quarter as many to judge by."""
    random = np.random.default_rng(0)
    for split, count in {"train": images, "val": max(1, images // 4)}.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, lines = drawn(random, side)
            image.save(folder / "images" / split / f"{number:04}.png")
            (folder / "labels" / split / f"{number:04}.txt").write_text("\n".join(lines) + "\n")
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(NAMES))
    where = f"path: {folder.resolve()}\ntrain: images/train\nval: images/val\n"
    (folder / "data.yaml").write_text(f"{where}names:\n{names}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--side", type=int, default=160)
    given = parser.parse_args()
    write(given.folder, given.images, given.side)
