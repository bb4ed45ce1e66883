"""Samples of any shape: arrays that are ready for a network, one for each of its inputs, and made-up samples.

Arrays are used as they are: nothing is resized, normalised or augmented. How they are named in files is in
`aap_hw.train.sources.arrays`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aap_hw.errors import UserError
from aap_hw.graph.program.inputs import Tensors
from aap_hw.inputs import Input, Inputs
from aap_hw.train.samples import Indices, Samples, Split, positions

Array = npt.NDArray[Any]
# Kernels pass whole numbers on as float32, which holds all of them up to this size.
MOST_WHOLE = 1 << 24
# Made-up samples of each split: more than are ever needed.
MADE = 512


@dataclass(frozen=True, eq=False)
class ArraySamples(Samples):
    """Samples that are in memory.

    Attributes
    ----------
    train, test : an array for each input, with the samples along the first axis; see `fitted`. ``val``, too, if there
        is a split for validation.
    train_labels, test_labels, val_labels : class numbers of shape (n,), if there are any.
    """

    train: tuple[Array, ...]
    test: tuple[Array, ...]
    train_labels: npt.NDArray[np.int64] | None = None
    test_labels: npt.NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    val: tuple[Array, ...] | None = None
    val_labels: npt.NDArray[np.int64] | None = None

    @property
    def has_validation(self) -> bool:
        """Whether there are samples for validation."""
        return self.val is not None

    def count(self, split: Split) -> int:
        """Number of samples of a split."""
        return len(self.arrays(split)[0])

    def stored(self, split: Split, indices: Indices) -> tuple[Tensors, torch.Tensor]:
        """Some samples, and their labels; zeros where there are none."""
        arrays, labels = self.arrays(split), self._labels(split)
        chosen = positions(indices, len(arrays[0]))
        found = np.zeros(len(chosen), np.int64) if labels is None else labels[chosen]
        return tuple(torch.from_numpy(array[chosen]) for array in arrays), torch.from_numpy(found)

    def prepared(self, stored: Tensors, inputs: Inputs) -> Tensors:
        """The samples as they are."""
        return stored

    def limited(self, limit: int) -> ArraySamples:
        """At most so many samples of each split, spread over it."""
        kept: dict[str, Any] = {}
        for split in self.splits:
            chosen, labels = self.spread(split, limit), self._labels(split)
            kept[split] = tuple(array[chosen] for array in self.arrays(split))
            kept[f"{split}_labels"] = None if labels is None else labels[chosen]
        return replace(self, **kept)

    def arrays(self, split: Split) -> tuple[Array, ...]:
        """The arrays of a split, one for each input."""
        if split == "val":
            assert self.val is not None
            return self.val
        return self.train if split == "train" else self.test

    def _labels(self, split: Split) -> npt.NDArray[np.int64] | None:
        if split == "val":
            return self.val_labels
        return self.train_labels if split == "train" else self.test_labels


@dataclass(frozen=True, eq=False)
class MadeSamples(Samples):
    """Random samples, always the same and without classes; ``ceilings`` as of `Inputs.random`."""

    made_of: Inputs
    ceilings: Sequence[int] | None = None

    def count(self, split: Split) -> int:
        """Number of samples of a split."""
        return MADE

    def stored(self, split: Split, indices: Indices) -> tuple[Tensors, torch.Tensor]:
        """Some samples, each by its own seed."""
        chosen = positions(indices, MADE) + (MADE if split == "test" else 0)
        samples = [self.made_of.random(1, int(seed), self.ceilings) for seed in chosen]
        return tuple(map(torch.cat, zip(*samples, strict=True))), torch.zeros(len(chosen), dtype=torch.int64)

    def prepared(self, stored: Tensors, inputs: Inputs) -> Tensors:
        """The samples as they are."""
        return stored


def fitted(array: Array, one: Input, what: str) -> Array:
    """An array of samples (n, ...) in the shape and type of an input; axes of length one are added or removed.

    Raises
    ------
    UserError : the array, called ``what`` in the sentence, holds something else.
    """
    if array.ndim == 0 or not len(array):
        raise UserError(f"{what} holds no samples; its first axis counts them")
    if array.shape[1:] != one.shape:
        if [extent for extent in array.shape[1:] if extent > 1] != [extent for extent in one.shape if extent > 1]:
            shape = "x".join(map(str, array.shape[1:])) or "one number"
            last = array.ndim > 2 and (array.shape[-1], *array.shape[1:-1]) == one.shape
            raise UserError(
                f"{what} holds samples of {shape}, and the network takes {one.text}"
                f"{'; put the channels before the other axes' if last else ''}"
            )
        array = array.reshape(len(array), *one.shape)
    return _real(array, what) if one.is_float else _whole(array, one, what)


def _real(array: Array, what: str) -> Array:
    if array.dtype.kind not in "fiub":
        raise UserError(f"{what} is of type {array.dtype}, and the network takes float32")
    values = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{what} holds infinite or NaN values; leave those samples out")
    return values


def _whole(array: Array, one: Input, what: str) -> Array:
    if array.dtype.kind not in "iub":
        raise UserError(f"{what} is of type {array.dtype}, and the network takes {one.dtype}")
    limits = (0, 1) if one.dtype == "bool" else (torch.iinfo(one.tensor_type).min, torch.iinfo(one.tensor_type).max)
    least, most = max(limits[0], -MOST_WHOLE), min(limits[1], MOST_WHOLE)
    if not least <= int(array.min()) <= int(array.max()) <= most:
        raise UserError(
            f"{what} holds values from {array.min()} to {array.max()}, and what a compiled network takes as "
            f"{one.dtype} lies between {least} and {most}"
        )
    return np.ascontiguousarray(array, one.dtype)
