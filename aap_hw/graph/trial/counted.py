"""Lengths that the code counts on what a layer reads: ``x.reshape(b, n, 3, heads, c // heads)``, c of the input.

The width of a head is then a share of the width of the embedding, and neither can be cut alone. If channel j of every
head goes together with channel j of every part of the embedding, the code's own arithmetic is right again. That is
tried where a view does not follow by itself, before its channels are frozen. Pieces of a split that are as many as the
channels of the input are cut with these.

The code may also count on another value that it reshapes: attention takes c of the queries and reshapes the values so.

Weights for queries, keys and values may be one matrix, each as wide as what it reads: ``weight.split([c, 2 * c])``. Row
j of each goes with column j, then.

Slices may take a share of what they slice, such as a half: ``x[:, : x.shape[1] // 2]`` is right if channel j of every
share goes together. Those of a split may be of several lengths: ``x.split([self.width, 2 * self.width], 1)``.

Where padding adds channels in a number that no attribute explains, those that it pads can still go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.fx import Node

from aap_hw.graph.groups.groups import Grouping
from aap_hw.graph.groups.widths import width_of_ids
from aap_hw.graph.program.call import Call
from aap_hw.graph.program.source import explain, is_inside, path_of
from aap_hw.graph.trial.surprises import PADS, SPLITS
from aap_hw.graph.walk.labelling import Labelling
from aap_hw.graph.walk.labels import IntArray
from aap_hw.graph.walk.noted import Literal
from aap_hw.graph.walk.rules.spatial import EXTRA

_LAYERS = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
_COUNTED = "is reshaped to lengths that are counted on other channels"
_EQUAL = "is reshaped to a length that other channels have, too"
_SHARED = "is taken apart at shares of its length"


def tie_to_what_is_read(labelling: Labelling, grouping: Grouping, views: Sequence[Node]) -> bool:
    """Tie the channels of views and splits to those that the layers before them read; whether there is any to tie."""
    found = False
    for literal in labelling.literals:
        is_split = Call(literal.node).name in SPLITS - {"slice"}
        if literal.node not in views or (literal.dim is None and not is_split) or literal.node in labelling.whole_heads:
            continue
        for number, ids in literal.counts:
            read = _read_before(labelling, literal.node, number)
            if read is not None and width_of_ids(read, grouping).terms and (read.size == number or not is_split):
                labelling.ties.tie(read.reshape(-1, number), ids[None], explain(_COUNTED, literal.node))
                found = True
    return found


def tie_equal_lengths(labelling: Labelling, grouping: Grouping, views: Sequence[Node], nearest: bool) -> bool:
    """Tie the channels of views to those of others in the same module that are as many; whether there are any.

    To those of the ``nearest`` view before alone, or to all. What cannot be cut is not counted on with fewer channels.
    """
    found = False
    lengths = [each for each in labelling.literals if each.dim is not None and each.node not in labelling.whole_heads]
    for literal in (each for each in lengths if each.node in views):
        ((number, ids),) = literal.counts
        width, beside = width_of_ids(ids, grouping), list[Literal]()
        for other in (each for each in lengths if each.node not in views):
            ((count, others),) = other.counts
            is_beside = count == number and path_of(other.node) == path_of(literal.node)
            if is_beside and width != (counted := width_of_ids(others, grouping)) and counted.terms:
                beside.append(other)
        if nearest:
            before = [each for each in beside if each.node < literal.node]
            several = {width_of_ids(each.counts[0][1], grouping) for each in beside}
            beside = [max(before, key=lambda each: each.node)] if before and len(several) > 1 else []
        for other in beside:
            labelling.ties.tie(ids, other.counts[0][1], explain(_EQUAL, literal.node))
            found = True
    return found


def tie_pieces_to_columns(labelling: Labelling, splits: Sequence[Node]) -> bool:
    """Tie the rows of a matrix that a split takes apart to its columns, if pieces are as long; whether any are."""
    found = False
    for literal in labelling.literals:
        if literal.node in splits and isinstance(columns := labelling.across.get(literal.node), tuple):
            read = columns[0].ids.ravel()
            for number, ids in literal.counts:
                if number % read.size == 0:
                    labelling.ties.tie(ids.reshape(-1, read.size), read[None], explain(_COUNTED, literal.node))
                    found = True
    return found


def tie_equal_parts(labelling: Labelling, pieces: Sequence[Node]) -> bool:
    """Tie the shares of what slices and splits take apart, if all numbers are multiples of one; whether any is."""
    found = False
    for literal in labelling.literals:
        call = Call(literal.node)
        if literal.node not in pieces or call.name not in SPLITS or not literal.counts:
            continue
        ids = labelling.of(call.first).ids.ravel()
        share = math.gcd(ids.size, *(number for number, _ in literal.counts))
        if 1 < share < ids.size:
            parts = ids.reshape(-1, share)
            labelling.ties.tie(parts, parts[:1], explain(_SHARED, literal.node))
            found = True
    return found


def keep_padding(labelling: Labelling, pads: Sequence[Node]) -> bool:
    """Freeze the channels that padding adds, and not those that it pads; whether there are any."""
    found = False
    for literal in labelling.literals:
        if literal.node in pads and Call(literal.node).name in PADS:
            for _, ids in literal.counts:
                labelling.ties.freeze(ids, explain(EXTRA, literal.node))
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
