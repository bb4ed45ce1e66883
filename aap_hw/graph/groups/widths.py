"""How long the axes of the graph's tensors are, as a function of the widths of the channel groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aap_hw.graph.groups.groups import Grouping
from aap_hw.graph.walk.labels import IntArray, Labels


@dataclass(frozen=True)
class WidthExpr:
    """A length: `constant` plus multiples of group widths.

    Parameters
    ----------
    constant
        The part that no cut changes; channels of frozen groups count here.
    terms
        Pairs of a group's name and how often each of its channels counts: 1 for a plain channel axis, H·W
        after C×H×W was flattened, one pair per group after a concatenation.

    Examples
    --------
    >>> WidthExpr(3, (("features.0", 49),)).at({"features.0": 10})
    493
    """

    constant: int
    terms: tuple[tuple[str, int], ...] = ()

    def at(self, widths: Mapping[str, int]) -> int:
        """The length where every group in `terms` has the width given in `widths`."""
        return self.constant + sum(multiplicity * widths[name] for name, multiplicity in self.terms)


def width_along(
    labels: Sequence[Labels], dim: int, size: int, grouping: Grouping, part: slice = slice(None)
) -> WidthExpr:
    """Length of the axis `dim`, now `size` long, of a tensor, or of a part of it, by all labels that the tensor has."""
    fixed = WidthExpr(len(range(size)[part]))
    along = next((each for each in labels if dim in each.dims), None)
    if along is None:
        return fixed
    rows = np.moveaxis(along.ids, dim, 0).reshape(size, -1)
    channel = np.where(rows >= 0, grouping.rank[rows], -1)
    group = np.where(rows >= 0, grouping.member[rows], -1)
    if (group != group[:, :1]).any() or (channel != channel[:, :1]).any():
        # Channels are spread over several axes and this is one that keeps its length: each of its positions
        # holds all the channels of some group, and no group is ever cut to nothing.
        return fixed
    return width_of_ids(rows[part, 0], grouping)


def width_of_ids(ids: IntArray, grouping: Grouping) -> WidthExpr:
    """Number of positions in `ids` that are left, as a function of the widths of their groups."""
    member = np.where(ids >= 0, grouping.member[ids], -1)
    constant = 0
    terms: list[tuple[str, int]] = []
    for number in dict.fromkeys(member.tolist()):
        count = int((member == number).sum())
        group = grouping.groups[number] if number >= 0 else None
        if group is None or group.frozen is not None:
            constant += count
        else:
            multiplicity, rest = divmod(count, group.width)
            assert rest == 0, f"channels of {group.name} occur unequally often"
            terms.append((group.name, multiplicity))
    return WidthExpr(constant, tuple(terms))
