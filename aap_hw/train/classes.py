"""Which of a network's classes the classes of some images are, told by the names of their folders.

ImageNet's folders are called by WordNet's numbers, in whose order networks tell the classes apart. A part of them, such
as Imagenette, keeps their places.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from aap_hw.errors import UserError
from aap_hw.train.data import LabelledImages

_WORDNET = re.compile(r"n\d{8}")


def as_classes_of(images: LabelledImages, classes: Sequence[str], folders: Sequence[str]) -> LabelledImages:
    """The images, labelled as a network labels them if their classes are some of its own; else as they are.

    Parameters
    ----------
    classes
        What the network's outputs are called, in order.
    folders
        For each of these what a folder of its pictures may be called; empty if unknown.

    Raises
    ------
    UserError : they are some of ImageNet's classes and it is not known which.
    """
    names = images.class_names
    are_numbers = all(map(_WORDNET.fullmatch, names))
    if are_numbers and not folders and len(classes) == 1000:
        if len(names) < len(classes):
            raise UserError(
                f"the images are of {len(names)} of ImageNet's 1000 classes, and which they are is known to timm only; "
                "install it with: pip install 'aap-hw[timm]'"
            )
        folders = sorted(names)
    for known in (folders, classes):
        places = {name: place for place, name in enumerate(known)}
        once = {name for name, count in Counter(known).items() if count == 1}
        if len(known) == len(classes) and once.issuperset(names):
            numbers = np.array([places[name] for name in names], np.int64)
            return replace(
                images,
                train_labels=numbers[images.train_labels],
                test_labels=numbers[images.test_labels],
                val_labels=None if images.val_labels is None else numbers[images.val_labels],
                class_names=tuple(classes),
            )
    return images
