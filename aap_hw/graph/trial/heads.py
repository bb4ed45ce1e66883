"""Whole heads of attention instead of widths of heads, wherever the model's code follows.

One view takes the channels of a layer apart into heads and widths, and a cut of one leaves the other whole: cutting
both would make lengths that are products of two widths, which neither a kernel's key nor a plan knows. So a block is
cut in one of the two ways. Where whole heads would be frozen, its widths may still be cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch.fx import Node

from aap_hw.graph.program.source import path_of
from aap_hw.graph.trial.surprises import Settled
from aap_hw.graph.walk.labelling import Labelling
from aap_hw.graph.walk.places import Place
from aap_hw.graph.walk.views_of_heads import heads_axes

_TIED = "has heads that can only be cut together"


@dataclass(frozen=True)
class WholeHeads:
    """Where whole heads can be cut.

    Parameters
    ----------
    axes
        Places of the views that take heads apart, each with the axis of its heads.
    left
        Why the heads of some modules cannot be cut, by the module's path.
    """

    axes: Mapping[Place, int]
    left: Mapping[str, str]


def with_whole_heads(
    walked: Callable[[Mapping[Place, int]], Labelling], settled: Callable[[Labelling], Settled]
) -> tuple[Labelling, Settled, WholeHeads]:
    """A labelled program whose whole heads can be cut, its groups, and where its heads are.

    Parameters
    ----------
    walked
        Labels the program, given the places of views of which whole heads are to be cut.
    settled
        Finds the groups of a labelled program.
    """
    plain, left = walked({}), dict[str, str]()
    axes = heads_axes(plain)
    while axes:
        labelling = walked(axes)
        found = settled(labelling)
        lost = _frozen(labelling, found)
        if not lost:
            return labelling, found, WholeHeads(axes, left)
        left |= {path_of(view): reason for view, reason in lost.items()}
        places = {labelling.place(view) for view in lost}
        axes = {place: axis for place, axis in axes.items() if place not in places}
    return plain, settled(plain), WholeHeads({}, left)


def _frozen(labelling: Labelling, settled: Settled) -> dict[Node, str]:
    """Views whose whole heads cannot be cut, each with the reason."""
    lost: dict[Node, str] = {}
    for view, ids in labelling.whole_heads.items():
        for number in np.unique(np.where(ids >= 0, settled.grouping.member[ids], -1)).tolist():
            group = settled.grouping.groups[number] if number >= 0 else None
            if group is None or group.frozen is not None or group.width < 2:
                lost[view] = group.frozen if group is not None and group.frozen is not None else _TIED
    return lost
