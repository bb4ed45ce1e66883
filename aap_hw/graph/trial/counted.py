"""Views whose lengths the code counts on what a layer reads: ``x.reshape(b, n, 3, heads, c // heads)``, c of the input.

The width of a head is then a share of the width of the embedding, and neither can be cut alone. If channel j of every
head goes together with channel j of every part of the embedding, the code's own arithmetic is right again. That is
tried where a view does not follow by itself, before its channels are frozen.

So are slices that take a share of what they slice, such as a half: ``x[:, : x.shape[1] // 2]`` is right if channel j of
every share goes together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.fx import Node

from aap_hw.graph.groups.groups import Grouping
from aap_hw.graph.groups.widths import width_of_ids
from aap_hw.graph.program.call import Call
from aap_hw.graph.program.source import explain, is_inside
from aap_hw.graph.walk.labelling import Labelling
from aap_hw.graph.walk.labels import IntArray

_LAYERS = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
_COUNTED = "is reshaped to lengths that are counted on other channels"
_SHARED = "is taken apart at shares of its length"


def tie_to_what_is_read(labelling: Labelling, grouping: Grouping, views: Sequence[Node]) -> bool:
    """Tie the channels of views to those that the layers before them read; whether there is anything to tie."""
    found = False
    for literal in labelling.literals:
        if literal.node in views and literal.dim is not None and literal.node not in labelling.whole_heads:
            ((number, ids),) = literal.counts
            read = _read_before(labelling, literal.node, number)
            if read is not None and width_of_ids(read, grouping).terms:
                labelling.partition.tie(read.reshape(-1, number), ids[None], explain(_COUNTED, literal.node))
                found = True
    return found


def tie_equal_parts(labelling: Labelling, slices: Sequence[Node]) -> bool:
    """Tie the shares of what slices take apart, if they begin and end at multiples of one; whether there are any."""
    found = False
    for literal in labelling.literals:
        call = Call(literal.node)
        if literal.node not in slices or call.name != "slice" or not literal.counts:
            continue
        ids = labelling.of(call.first).ids.ravel()
        share = math.gcd(ids.size, *(number for number, _ in literal.counts))
        if 1 < share < ids.size:
            parts = ids.reshape(-1, share)
            labelling.partition.tie(parts, parts[:1], explain(_SHARED, literal.node))
            found = True
    return found


def _read_before(labelling: Labelling, view: Node, number: int) -> IntArray | None:
    """Channels that one of the nearest layers before a view reads, if they are as many as a number or a multiple.

    Only layers inside of the module whose code the view is in: it counts on what it reads itself.
    """
    waiting, seen = [view], {view}
    for node in waiting:
        call = Call(node)
        if not is_inside(node, view):
            continue
        if call.name in _LAYERS:
            labels = labelling.of(call["input"])
            ids = labels.ids.ravel()
            if len(labels.dims) == 1 and ids.size % number == 0:
                return ids
            continue
        for source in node.all_input_nodes:
            if source not in seen and source.op == "call_function":
                seen.add(source)
                waiting.append(source)
    return None
