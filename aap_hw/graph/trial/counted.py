"""Views whose lengths the code counts on what a layer reads: ``x.reshape(b, n, 3, heads, c // heads)``, c of the input.

The width of a head is then a share of the width of the embedding, and neither can be cut alone. If channel j of every
head goes together with channel j of every part of the embedding, the code's own arithmetic is right again. That is
tried where a view does not follow by itself, before its channels are frozen.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from aap_hw.graph.groups.groups import Grouping
from aap_hw.graph.groups.widths import width_of_ids
from aap_hw.graph.program.call import Call
from aap_hw.graph.program.source import explain, module_of, path_of
from aap_hw.graph.walk.labelling import Labelling
from aap_hw.graph.walk.labels import IntArray

_LAYERS = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
_COUNTED = "is reshaped to lengths that are counted on other channels"


def tie_to_what_is_read(labelling: Labelling, grouping: Grouping, views: Sequence[Node]) -> bool:
    """Tie the channels of views to those that the layers before them read; whether there is anything to tie."""
    found = False
    for literal in labelling.literals:
        if literal.node in views and literal.dim is not None:
            ((number, ids),) = literal.counts
            read = _read_before(labelling, literal.node, number)
            if read is not None and width_of_ids(read, grouping).terms:
                labelling.partition.tie(read.reshape(-1, number), ids[None], explain(_COUNTED, literal.node))
                found = True
    return found


def _read_before(labelling: Labelling, view: Node, number: int) -> IntArray | None:
    """Channels that one of the nearest layers before a view reads, if they are as many as a number or a multiple.

    Only layers inside of the module whose code the view is in: it counts on what it reads itself.
    """
    inside, waiting, seen = module_of(view), [view], {view}
    for node in waiting:
        call = Call(node)
        if not f"{path_of(node)}.".startswith(f"{inside}."):
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
