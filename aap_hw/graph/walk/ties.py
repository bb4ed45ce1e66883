"""Atoms, which of them are tied (cut together), and which may not be cut and why.

Ties and freezes are only collected while the graph is walked, in arrays; `solve` closes them once at the end,
because a freeze met late reaches every atom that an early tie connected to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aap_hw.graph.walk.labels import IntArray


@dataclass(frozen=True)
class Classes:
    """The ties and freezes, closed.

    Parameters
    ----------
    root
        For each atom, the smallest atom that lives and dies with it: the number of its class.
    reason
        For each atom that is its own root, the position in `reasons` of the first freeze that reached the
        class, or ``len(reasons)`` if none did.
    reasons
        Why, in the order in which the graph was walked.
    """

    root: IntArray
    reason: IntArray
    reasons: tuple[str, ...]


class Ties:
    """Collects atoms, the ties between them, and freezes."""

    def __init__(self) -> None:
        self._count = 0
        self._ties: list[tuple[IntArray, IntArray]] = []
        self._freezes: list[tuple[IntArray, int]] = []
        self._reasons: dict[str, int] = {}
        self._frozen: set[int] = set()

    def new_atoms(self, count: int) -> IntArray:
        """`count` fresh atoms."""
        first = self._count
        self._count += count
        return np.arange(first, self._count, dtype=np.int64)

    def freeze(self, ids: IntArray, reason: str) -> None:
        """Forbid cutting the atoms in `ids` (of any shape) and all that will prove to be tied to them."""
        atoms = np.unique(ids[ids >= 0])
        if atoms.size:
            self._freezes.append((atoms, self._reasons.setdefault(reason, len(self._reasons))))
            self._frozen.update(atoms.tolist())

    def mark(self) -> tuple[int, int]:
        """How much has been collected so far, for `back_to`."""
        return len(self._ties), len(self._freezes)

    def back_to(self, mark: tuple[int, int]) -> None:
        """Forget what was collected since."""
        del self._ties[mark[0] :]
        del self._freezes[mark[1] :]
        self._frozen = {atom for atoms, _ in self._freezes for atom in atoms.tolist()}

    def is_frozen(self, ids: IntArray) -> bool:
        """Whether all of some positions were frozen themselves, not only something that they are tied to."""
        return self._frozen.issuperset(ids[ids >= 0].tolist())

    def tie(self, left: IntArray, right: IntArray, reason: str) -> None:
        """Let `left` and `right`, position by position after broadcasting, be cut only together.

        An atom opposite a position without one is frozen, for `reason`: its partner cannot follow.
        """
        left, right = (side.ravel() for side in np.broadcast_arrays(left, right))
        both = (left >= 0) & (right >= 0)
        if both.any():
            self._ties.append((left[both], right[both]))
        self.freeze(left[right < 0], reason)
        self.freeze(right[left < 0], reason)

    def solve(self) -> Classes:
        """Close the ties (union by smallest atom, with pointer jumping) and spread the freezes."""
        root = np.arange(self._count, dtype=np.int64)
        left = _joined([pair[0] for pair in self._ties])
        right = _joined([pair[1] for pair in self._ties])
        while True:
            low = np.minimum(root[left], root[right])
            high = np.maximum(root[left], root[right])
            if np.array_equal(low, high):
                break
            np.minimum.at(root, high, low)
            while not np.array_equal(root[root], root):
                root = root[root]
        reasons = tuple(self._reasons)
        reason = np.full(self._count, len(reasons), dtype=np.int64)
        for atoms, number in self._freezes:
            np.minimum.at(reason, root[atoms], number)
        return Classes(root, reason, reasons)


def _joined(arrays: Sequence[IntArray]) -> IntArray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
