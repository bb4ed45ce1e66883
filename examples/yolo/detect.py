"""Find objects in pictures with the bundle of a YOLO. On the device it needs Pillow and what the bundle's run.py does.

    python detect.py BUNDLE PICTURE... [--names square,disc,cross]

The network of the bundle decodes boxes itself: what comes out is (1, 4 + classes, places), a box and a score of each
class at each place. Choosing among them is left to this file, as it depends on what you want to do with them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

GREY = (114, 114, 114)


@dataclass(frozen=True)
class Found:
    """An object: its class, the score of 0 to 1, and left, top, right and bottom of its box in pixels."""

    number: int
    score: float
    box: tuple[float, float, float, float]


def prepared(picture: Image.Image, height: int, width: int) -> tuple[np.ndarray, float, int, int]:
    """The network's input (3, H, W) of 0 to 1, as ultralytics makes it; and the picture's scale, left and top in it."""
    scale = min(height / picture.height, width / picture.width)
    resized = picture.convert("RGB").resize(
        (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR
    )
    left, top = (width - resized.width) // 2, (height - resized.height) // 2
    padded = Image.new("RGB", (width, height), GREY)
    padded.paste(resized, (left, top))
    return np.asarray(padded, np.float32).transpose(2, 0, 1) / 255, scale, left, top


def chosen(output: np.ndarray, least_score: float, most_overlap: float) -> list[Found]:
    """The best boxes of an output (4 + classes, places): no two of a class overlap by more than that, best first."""
    x, y, width, height = output[:4]
    boxes = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
    scores, numbers = output[4:].max(axis=0), output[4:].argmax(axis=0)
    found: list[Found] = []
    for place in np.argsort(-scores, kind="stable"):
        if scores[place] < least_score:
            break
        left, top, right, bottom = (float(each) for each in boxes[place])
        candidate = Found(int(numbers[place]), float(scores[place]), (left, top, right, bottom))
        if all(other.number != candidate.number or overlap(other, candidate) <= most_overlap for other in found):
            found.append(candidate)
    return found


def overlap(one: Found, other: Found) -> float:
    """Intersection over union of two boxes."""
    sides = zip(one.box, other.box, strict=True)
    left, top, right, bottom = (pick(pair) for pick, pair in zip((max, max, min, min), sides, strict=True))
    shared = max(0.0, right - left) * max(0.0, bottom - top)
    areas = [(each.box[2] - each.box[0]) * (each.box[3] - each.box[1]) for each in (one, other)]
    return shared / max(sum(areas) - shared, 1e-9)


def runner(bundle: Path) -> ModuleType:
    """The ``run.py`` that the bundle brings along."""
    found = importlib.util.spec_from_file_location("run", bundle / "run.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def detect(bundle: Path, pictures: list[Path], least_score: float, most_overlap: float) -> list[list[Found]]:
    """What is in each picture, in its own pixels."""
    model = runner(bundle).Model(bundle)
    (shape,) = (each["shape"] for each in json.loads((bundle / "manifest.json").read_text())["inputs"])
    answers = []
    for path in pictures:
        with Image.open(path) as picture:
            image, scale, left, top = prepared(picture, *shape[-2:])
        moved = []
        for each in chosen(model(image[None])[0], least_score, most_overlap):
            corners = (np.array(each.box) - [left, top, left, top]) / scale
            x1, y1, x2, y2 = (float(corner) for corner in corners)
            moved.append(Found(each.number, each.score, (x1, y1, x2, y2)))
        answers.append(moved)
    return answers


def main() -> None:
    """Print what is in each picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--names", default="", help="of the classes, with commas between them")
    parser.add_argument("--least-score", type=float, default=0.25)
    parser.add_argument("--most-overlap", type=float, default=0.7, help="of two boxes of a class")
    given = parser.parse_args()
    names = dict(enumerate(given.names.split(","))) if given.names else {}
    answers = detect(given.bundle, given.pictures, given.least_score, given.most_overlap)
    for path, found in zip(given.pictures, answers, strict=True):
        for each in found:
            left, top, right, bottom = (round(corner) for corner in each.box)
            name = names.get(each.number, str(each.number))
            print(f"{path}: {name} {each.score:.2f}, from {left},{top} to {right},{bottom}")
        if not found:
            print(f"{path}: nothing")


if __name__ == "__main__":
    main()
