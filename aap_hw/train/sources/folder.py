"""A folder of picture files, one sub-folder a class: ImageNet, Tiny-ImageNet, or a user's own pictures.

Small images are decoded once and kept as bytes; large ones are decoded, in threads, each time they are used. Files that
cannot be decoded are named and left out. Which files there are is found out by `layout`, what they show by `picture`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aap_hw.errors import UserError
from aap_hw.train.data import Bytes, InputShape, LabelledImages, Labels, LazyImages, Normalisation, SomeImages
from aap_hw.train.preparation import Preparation
from aap_hw.train.sources.layout import SplitFiles, find_splits, shown
from aap_hw.train.sources.picture import SMALL_SIDE, Unreadable, read_picture

# Mean and deviation of ImageNet's pixels, the usual for networks of photographs, and their means over the colours.
USUAL = {1: Normalisation((0.449,), (0.226,)), 3: Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
# Images up to `SMALL_SIDE` are kept decoded, if all of them take no more than these bytes.
MOST_BYTES = 2 << 30
# Of a split's files so many may be broken or, of many, this share; of few at most a quarter.
MOST_BROKEN, MOST_BROKEN_SHARE, MOST_BROKEN_OF_FEW = 10, 0.01, 0.25
# Pictures that differ by less than this from black or from white, all of them, are hardly meant to.
DARK = 16
# Pictures that are decoded together to see whether they can be.
AT_A_TIME = 256
Images = Bytes | LazyImages
LOG = logging.getLogger(__name__)


def load_folder(folder: Path, input_shape: InputShape, how: Preparation | None = None) -> LabelledImages:
    """The images below ``train`` and ``val`` (or ``test``, or both), a sub-folder a class, as the network takes them.

    With ``how`` they are prepared as those that published weights were evaluated on.

    The validation images of Tiny-ImageNet may lie as it is published, with their classes in ``val_annotations.txt``.

    Raises
    ------
    UserError : a folder is missing or empty, the two splits have different classes, too many files are broken, a class
        has no picture that can be read, or the network takes neither grey nor colour.
    """
    channels, *size = input_shape
    if channels not in USUAL:
        raise UserError(
            f"the pictures of a folder are grey or in colour and the network takes {channels} channels; give images of "
            "as many as npz:FILE or by a function of yours"
        )
    names, splits = find_splits(folder)
    count = sum(len(each.files) for each in splits.values())
    small = max(size) <= SMALL_SIDE and count * int(np.prod(input_shape)) <= MOST_BYTES
    read = {split: _split(each, names, input_shape, small, how) for split, each in splits.items()}
    none: tuple[None, None] = (None, None)
    val_images, val_labels = read.get("val", none)
    return LabelledImages(*read["train"], *read["test"], names, USUAL[channels], val_images, val_labels)


@dataclass(eq=False)
class FolderImages(LazyImages):
    """Picture files, decoded and brought to one size when they are read."""

    files: Sequence[Path]
    input_shape: InputShape
    how: Preparation | None = None
    broken: dict[int, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array: (N, C, H, W)."""
        return (len(self.files), *self.input_shape)

    def read(self, indices: NDArray[np.int64], crops: NDArray[np.float64] | None) -> tuple[Bytes, NDArray[np.bool_]]:
        """Decode some images; see `LazyImages.read`."""
        channels, height, width = self.input_shape
        results = np.zeros((len(indices), height, width, channels), np.uint8)
        good = np.ones(len(indices), bool)
        broken: dict[int, str] = {}

        def decode(position: int) -> None:
            index, crop = int(indices[position]), None if crops is None else crops[position]
            try:
                results[position] = read_picture(self.files[index], channels, (height, width), crop, self.how)
            except Unreadable as problem:
                good[position] = False
                broken[index] = str(problem)

        with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
            # Pillow warns of large pictures, which are no news, and of damage, which is said below if it matters.
            warnings.simplefilter("ignore")
            list(pool.map(decode, range(len(indices))))
        self._note(broken)
        return np.ascontiguousarray(results.transpose(0, 3, 1, 2)), good

    def _note(self, broken: dict[int, str]) -> None:
        new = sorted(broken.keys() - self.broken.keys())
        if not new:
            return
        self.broken |= broken
        few = min(MOST_BROKEN, int(MOST_BROKEN_OF_FEW * len(self.files)))
        allowed = max(few, int(MOST_BROKEN_SHARE * len(self.files)))
        if len(self.broken) > allowed:
            raise UserError(
                f"more than {allowed} of {len(self.files)} image files cannot be decoded, among them "
                f"{self.named(sorted(self.broken))}; replace or delete them"
            )
        LOG.warning("%s cannot be decoded and %s left out", self.named(new), "is" if len(new) == 1 else "are")

    def named(self, indices: Sequence[int]) -> str:
        """The first few of some broken files, each with what is wrong with it."""
        few = ", ".join(f"{shown(self.files[index])} ({self.broken[index]})" for index in indices[:3])
        return f"{few} and {len(indices) - 3} more" if len(indices) > 3 else few


def _split(
    split: SplitFiles, names: Sequence[str], input_shape: InputShape, small: bool, how: Preparation | None
) -> tuple[Images, Labels]:
    images, labels = FolderImages(split.files, input_shape, how), np.array(split.labels, np.int64)
    decoded: list[Bytes] = []
    good = np.ones(len(labels), bool)
    for some in [np.arange(len(labels))] if small else _first_of_each(good, labels):
        pictures, good[some] = images.read(some, None)
        decoded.append(pictures[good[some]])
    for label in np.setdiff1d(labels, labels[good]):
        files = np.flatnonzero(labels == label).tolist()
        raise UserError(
            f"not one picture of '{shown(names[label])}' in {shown(split.place)} can be decoded: "
            f"{images.named(files)}; replace them"
        )
    _check_light(split, decoded)
    kept = decoded[0] if small else images if good.all() else SomeImages(images, np.flatnonzero(good))
    return kept, labels[good]


def _first_of_each(good: NDArray[np.bool_], labels: Labels) -> Iterator[NDArray[np.int64]]:
    """Positions to try, some at a time, until one of each class is good; who tries them notes which are."""
    left = set(labels.tolist())
    while left:
        classes, first = np.unique(np.where(good, labels, -1), return_index=True)
        tried = np.array([at for label, at in zip(classes.tolist(), first, strict=True) if label in left], np.int64)
        if not len(tried):
            return
        for start in range(0, len(tried), AT_A_TIME):
            yield tried[start : start + AT_A_TIME]
        left -= set(labels[tried[good[tried]]].tolist())


def _check_light(split: SplitFiles, images: Sequence[Bytes]) -> None:
    """Say so where all pictures look alike: 12 bits kept in 16, or zeros and ones kept as bytes."""
    least = min(int(some.min()) for some in images if len(some))
    most = max(int(some.max()) for some in images if len(some))
    if most < DARK or least > 255 - DARK:
        LOG.warning(
            "%s: all pictures are nearly %s, with values from %d to %d of 255; if they should not be, save them with "
            "the whole range of their type",
            shown(split.place),
            "black" if most < DARK else "white",
            least,
            most,
        )
