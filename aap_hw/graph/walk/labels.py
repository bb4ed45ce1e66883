"""Labels: which channel atom each position of a tensor belongs to.

An *atom* is one position along one axis of one parameter or buffer, numbered across the whole network.
Labels say, for one tensor of the graph, along which axes channels run and which atom sits at each position.
What labels mean (which atoms must be cut together, which may not be cut) is decided in `ties`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

NO_ATOM = -1
"""A position that is there but that nothing can remove, for example a channel of the input image."""


@dataclass(frozen=True)
class Labels:
    """The atoms of one tensor.

    Parameters
    ----------
    ids
        Atom numbers, of the tensor's rank: as long as the tensor along `dims`, of length 1 along every other
        axis. `NO_ATOM` marks positions that cannot be removed.
    dims
        The axes along which channels run. An axis of length 1 can be in it: a group of one channel.
    """

    ids: IntArray
    dims: frozenset[int]

    @staticmethod
    def none(rank: int) -> Labels:
        """Labels of a tensor of which no axis carries channels."""
        return Labels(np.full((1,) * rank, NO_ATOM, dtype=np.int64), frozenset())

    @staticmethod
    def along(rank: int, dim: int, ids: IntArray) -> Labels:
        """Labels of a tensor whose only channel axis is `dim`."""
        shape = [1] * rank
        shape[dim] = ids.size
        return Labels(ids.reshape(shape), frozenset((dim,)))

    @property
    def rank(self) -> int:
        """Number of axes of the tensor."""
        return self.ids.ndim

    def without(self, dim: int) -> Labels:
        """The same labels where `dim`, which must have length 1, is no longer a channel axis."""
        dims = self.dims - {dim}
        return Labels(self.ids, dims) if dims else Labels.none(self.rank)

    def repeated(self, dim: int, times: int) -> Labels:
        """The same labels with each position of an axis so many times in a row."""
        return Labels(np.repeat(self.ids, times, dim), self.dims) if dim in self.dims else self

    def with_rank(self, rank: int) -> Labels:
        """The same labels with axes of length 1 put in front, as broadcasting does."""
        extra = rank - self.rank
        ids = self.ids.reshape((1,) * extra + self.ids.shape)
        return Labels(ids, frozenset(dim + extra for dim in self.dims))


def parts_of(result: Labels | tuple[Labels, ...] | None) -> tuple[Labels, ...]:
    """The labels of each tensor that a node yields."""
    return result if isinstance(result, tuple) else () if result is None else (result,)
