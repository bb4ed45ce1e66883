"""Labels among named arrays: numbers of classes, and what the classes are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aap_hw.errors import UserError
from aap_hw.train.checks import one_number_each
from aap_hw.train.data import Labels

# More are not numbers of classes but of something else.
MOST_CLASSES = 1 << 20


def class_numbers(labels: np.ndarray[Any, Any], what: str) -> Labels:
    """Labels (N,) or (N, 1) as (N,); UserError if they are no whole numbers, ``what`` being their name in it."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{what} is {labels.dtype.name} of shape {labels.shape}; {one_number_each(labels)}")
    return labels.astype(np.int64)


def names_of(arrays: Mapping[str, Any], labels: Sequence[Labels], where: object) -> tuple[str, ...]:
    """The array ``class_names`` if there is one, else the numbers of as many classes as the labels tell."""
    if "class_names" in arrays:
        return tuple(map(str, np.ravel(arrays["class_names"])))
    return _numbered(np.concatenate(labels), where)


def _numbered(labels: Labels, where: object) -> tuple[str, ...]:
    least, most = int(labels.min(initial=0)), int(labels.max(initial=0))
    if len(labels) and labels.min() > 0:
        raise UserError(
            f"the labels of {where} run from {labels.min()} to {most} and none is 0; number classes from 0, such as "
            "labels - 1, or name all of them in 'class_names'"
        )
    if least < 0 or most >= MOST_CLASSES:
        raise UserError(f"the labels of {where} run from {least} to {most}; number classes from 0, one after the other")
    return tuple(map(str, range(most + 1)))
