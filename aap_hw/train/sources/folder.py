"""A folder of image files, one sub-folder a class: ImageNet, Tiny-ImageNet, or a user's own pictures.

Small images are decoded once and kept as bytes; large ones are decoded, in threads, each time they are used. Files that
cannot be decoded are named and left out.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from aap_hw.errors import UserError
from aap_hw.train.data import Bytes, LabelledImages, Labels, LazyImages, Normalisation

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"))
# Mean and deviation of ImageNet's pixels, the usual for networks of photographs.
USUAL = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TEST_FOLDERS = ("val", "test")
# What torchvision's recipes do: the shorter side becomes 256 where the network sees 224; a training crop covers 8 to
# 100 % of the area, with sides of 3:4 to 4:3.
SHORTER_SIDE = 256 / 224
CROP_AREA, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
# Images up to this size are kept decoded, if all of them take no more than these bytes.
SMALL_SIDE, MOST_BYTES = 64, 2 << 30
# Of a split's files so many may be broken, or this share.
MOST_BROKEN, MOST_BROKEN_SHARE = 10, 0.01
LOG = logging.getLogger(__name__)


def load_folder(folder: Path, input_shape: tuple[int, int, int]) -> LabelledImages:
    """The images below ``train`` and ``val`` (or ``test``), a sub-folder a class, as large as the network takes them.

    The test images of Tiny-ImageNet may lie as it is published, with their classes in ``val_annotations.txt``.

    Raises
    ------
    UserError
        If a folder is missing or empty, the two splits have different classes, or too many files are broken.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder of images {folder}; name the one that has them with --data")
    inner = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if inner is None or not (folder / "train").is_dir():
        raise UserError(
            f"{folder} needs the folders 'train' and 'val' (or 'test'), each with one sub-folder of images a class"
        )
    names = tuple(sorted(entry.name for entry in os.scandir(folder / "train") if entry.is_dir()))
    if not names:
        raise UserError(
            f"{folder / 'train'} has no sub-folders, and each class needs one; put images without classes into one "
            f"of any name, such as {folder / 'train' / 'all'}"
        )
    train = _files(folder / "train", names)
    annotations = inner / "val_annotations.txt"
    test = _annotated(annotations, names) if annotations.exists() else _files(inner, names)
    size = input_shape[1:]
    small = max(size) <= SMALL_SIDE and (len(train) + len(test)) * 3 * size[0] * size[1] <= MOST_BYTES
    splits = [_split(files, size, small) for files in (train, test)]
    return LabelledImages(*splits[0], *splits[1], names, USUAL)


@dataclass(eq=False)
class FolderImages(LazyImages):
    """Image files, decoded and brought to one size when they are read."""

    files: Sequence[Path]
    size: tuple[int, int]
    broken: set[int] = field(default_factory=set)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array: (N, 3, H, W)."""
        return (len(self.files), 3, *self.size)

    def read(self, indices: NDArray[np.int64], crops: NDArray[np.float64] | None) -> tuple[Bytes, NDArray[np.bool_]]:
        """Decode some images; see `LazyImages.read`."""
        results = np.zeros((len(indices), *self.size, 3), np.uint8)
        good = np.ones(len(indices), bool)

        def decode(position: int) -> None:
            try:
                with Image.open(self.files[indices[position]]) as image:
                    results[position] = self._fitted(image, None if crops is None else crops[position])
            except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError):
                good[position] = False

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(decode, range(len(indices))))
        for index in indices[~good]:
            self._note_broken(int(index))
        return np.ascontiguousarray(results.transpose(0, 3, 1, 2)), good

    def _fitted(self, image: Image.Image, crop: NDArray[np.float64] | None) -> NDArray[np.uint8]:
        height, width = self.size
        # Lets JPEG decode at a half or a quarter of its size where that is still large enough.
        scale = 1.0 if crop is not None else SHORTER_SIDE
        image.draft("RGB", (round(scale * width), round(scale * height)))
        box = _centre(image.size, self.size) if crop is None else _random_crop(image.size, crop)
        fitted = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR, box=box)
        return np.asarray(fitted)

    def _note_broken(self, index: int) -> None:
        if index in self.broken:
            return
        self.broken.add(index)
        LOG.warning("%s cannot be decoded and is left out", self.files[index])
        allowed = max(MOST_BROKEN, int(MOST_BROKEN_SHARE * len(self.files)))
        if len(self.broken) > allowed:
            shown = ", ".join(str(self.files[i]) for i in sorted(self.broken)[:3])
            raise UserError(
                f"more than {allowed} of {len(self.files)} image files cannot be decoded, among them {shown}; "
                "get the data set again, or delete what is broken"
            )


def _centre(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[float, float, float, float]:
    """The middle part of an image that is left if its shorter side is scaled and the rest cut off."""
    width, height = size
    pixels = min(width / wanted[1], height / wanted[0]) / (SHORTER_SIDE if max(wanted) > SMALL_SIDE else 1.0)
    across, down = wanted[1] * pixels, wanted[0] * pixels
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down


def _random_crop(size: tuple[int, int], uniform: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """A part of random area and shape at a random place, from four numbers between 0 and 1."""
    width, height = size
    area, shape, x, y = uniform
    least, most = CROP_AREA
    ratio = np.exp(np.log(CROP_RATIO[0]) + shape * (np.log(CROP_RATIO[1]) - np.log(CROP_RATIO[0])))
    pixels = width * height * (least + area * (most - least))
    across, down = min(width, np.sqrt(pixels * ratio)), min(height, np.sqrt(pixels / ratio))
    left, top = x * (width - across), y * (height - down)
    return left, top, left + across, top + down


def _files(folder: Path, names: Sequence[str]) -> list[tuple[Path, int]]:
    here = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if here != list(names):
        unlike = sorted(set(here) ^ set(names))
        raise UserError(f"{folder} has other classes than the folder 'train': {', '.join(unlike[:5])} is in one only")
    found = []
    for label, name in enumerate(names):
        of_class = [path for path in sorted((folder / name).rglob("*")) if path.suffix.lower() in SUFFIXES]
        if not of_class:
            raise UserError(f"{folder / name} holds no image file (of {', '.join(sorted(SUFFIXES))})")
        found += [(path, label) for path in of_class]
    return found


def _annotated(annotations: Path, names: Sequence[str]) -> list[tuple[Path, int]]:
    """Files in ``images`` beside a list of lines that begin with a file's name and its class."""
    label_of = {name: label for label, name in enumerate(names)}
    found = []
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), start=1):
        file, name, *_ = (*line.split("\t"), "", "")
        if name not in label_of:
            raise UserError(f"{annotations} names the unknown class '{name}' in line {number}")
        found.append((annotations.parent / "images" / file, label_of[name]))
    return found


def _split(files: list[tuple[Path, int]], size: tuple[int, int], small: bool) -> tuple[Bytes | LazyImages, Labels]:
    labels = np.array([label for _, label in files], np.int64)
    images = FolderImages([path for path, _ in files], size)
    if not small:
        return images, labels
    decoded, good = images.read(np.arange(len(files)), None)
    return decoded[good], labels[good]
