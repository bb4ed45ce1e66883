"""Samples of a network's inputs, in two or three splits: to train and rank filters with, to choose by, and to test.

Only the interface that training and pruning need is here. Pictures are in `aap_hw.train.data`, arrays of any shape and
made-up samples in `aap_hw.train.arrays`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from aap_hw.errors import UserError
from aap_hw.graph.program.inputs import Tensors
from aap_hw.inputs import Inputs

Split = Literal["train", "val", "test"]
Indices = torch.Tensor | npt.NDArray[np.integer] | list[int] | range | slice


class Samples(ABC):
    """A training and a test set of samples, and perhaps a third one for validation.

    Attributes
    ----------
    class_names : one name a class; empty if the samples have no labels.
    """

    class_names: tuple[str, ...] = ()

    @abstractmethod
    def count(self, split: Split) -> int:
        """Number of samples of a split."""

    @abstractmethod
    def stored(self, split: Split, indices: Indices) -> tuple[Tensors, torch.Tensor]:
        """Some samples as they are stored, (n, ...) for each input, and their labels (n,) as int64.

        Samples that cannot be read are left out.
        """

    @abstractmethod
    def prepared(self, stored: Tensors, inputs: Inputs) -> Tensors:
        """Stored samples as a network takes them, (n, ...) for each input, on the device that they are on.

        Raises
        ------
        UserError : the network takes something else.
        """

    @property
    def has_validation(self) -> bool:
        """Whether there is a split for validation, so that the test split decides nothing."""
        return False

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that there are."""
        return ("train", "val", "test") if self.has_validation else ("train", "test")

    @property
    def chosen_by(self) -> Split:
        """The split whose accuracy decides: which round is kept, and whether it is good enough."""
        return "val" if self.has_validation else "test"

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def crops_are_random(self) -> bool:
        """Whether training takes random parts of the samples when it reads them, instead of shifting them."""
        return False

    def inputs(self, split: Split, inputs: Inputs, indices: Indices | None = None) -> Tensors:
        """The samples at `indices` (None: the whole split) as a network takes them.

        Raises
        ------
        UserError : none of them can be read, or the network takes something else.
        """
        stored, labels = self.stored(split, slice(None) if indices is None else indices)
        if not len(labels):
            raise UserError(f"none of the {split} images that are needed can be read; get them again")
        return tuple(each.contiguous() for each in self.prepared(stored, inputs))

    def spread(self, split: Split, count: int) -> npt.NDArray[np.int64]:
        """Positions of `count` samples (at most all of the split), evenly spaced over its order.

        Of samples in class order, such as the embedded ones, this is the same number of each class, or nearly.

        Raises
        ------
        UserError : `count` is not positive.
        """
        if count < 1:
            raise UserError(f"{count} samples were asked for; ask for at least 1")
        total = self.count(split)
        count = min(count, total)
        return np.arange(count, dtype=np.int64) * total // count


def positions(indices: Indices, count: int) -> npt.NDArray[np.int64]:
    """Positions (n,) among ``count`` samples that indices stand for."""
    if isinstance(indices, slice):
        indices = range(*indices.indices(count))
    return np.asarray(indices, dtype=np.int64)
