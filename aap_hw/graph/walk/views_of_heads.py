"""Which axis of a view is that of attention's heads: the products that follow keep it apart on both sides.

A layer's channels are taken apart into (queries, keys and values; heads; width of a head). Of these axes, cutting the
last shortens every head and cutting the heads leaves fewer of them. Both are right, but a view follows only one of the
two. Names say nothing of which axis is which: it is followed through the program, by the same rules as channels are.
"""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from aap_hw.graph.program.call import is_tensor, shape_of
from aap_hw.graph.walk.labelling import Labelling
from aap_hw.graph.walk.labels import IntArray, Labels
from aap_hw.graph.walk.notes import Notes
from aap_hw.graph.walk.places import Place
from aap_hw.graph.walk.rules import Result


def heads_axes(labelling: Labelling) -> dict[Place, int]:
    """Places of views that take heads apart, each with the axis of its heads; nothing of heads is labelled yet."""
    found = {}
    for view, axes in labelling.splits.items():
        heads = [axis for axis in axes if _Followed(labelling, view, axis).is_of_heads]
        if len(heads) == 1:
            found[labelling.place(view)] = heads[0]
    return found


class _Followed(Labelling):
    """A walk that follows one axis of one value, from there to the first product of two computed tensors.

    Attributes
    ----------
    is_of_heads : whether both sides of that product have the axis, and what it makes, too.
    """

    def __init__(self, labelling: Labelling, start: Node, axis: int) -> None:
        vars(self).update(vars(labelling))
        Notes.__init__(self)  # the labelling keeps its own
        self._heads = {}
        rank, size = len(shape_of(start)), shape_of(start)[axis]
        atoms = self.ties.new_atoms(size)
        self.labels = _Unlabelled({start: Labels.along(rank, axis, atoms)})
        nodes = list(labelling.labels)
        for node in nodes[nodes.index(start) + 1 :]:
            if self.side_by_side or self.ties.is_frozen(atoms):
                break
            if any(self._is_reached(source, atoms) for source in node.all_input_nodes):
                self.labels[node] = self._visit(node)
        self.is_of_heads = bool(self.side_by_side) and bool(np.isin(self.side_by_side[0], atoms).all())

    def _is_reached(self, node: Node, atoms: IntArray) -> bool:
        result = self.labels.get(node)
        parts = result if isinstance(result, tuple) else (result,)
        return any(isinstance(each, Labels) and np.isin(each.ids, atoms).any() for each in parts)


class _Unlabelled(dict[Node, Result]):
    """Labels of nodes of which most have none."""

    def __missing__(self, node: Node) -> Result:
        return Labels.none(len(shape_of(node))) if is_tensor(node) else None
