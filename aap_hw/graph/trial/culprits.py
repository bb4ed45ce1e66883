"""Which channel group a surprise comes from, when no channel at the place of the surprise can be cut.

``y.view(n, x.shape[1], h, w)`` counts the channels of x where y is reshaped. Such a group is found by cutting only some
groups, those nearest to the surprise: one, then two, four and so on, then by halves. The last of the fewest groups that
surprise is to blame, and freezes alone. So do the channels that the same lines of code handle in other blocks of the
network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from torch.fx import Node

from aap_hw.graph.groups.groups import Grouping
from aap_hw.graph.program.source import explain, is_inside, own_frames, path_of
from aap_hw.graph.trial.surprises import Settled, Surprise, Trials
from aap_hw.graph.walk.labelling import Labelling
from aap_hw.graph.walk.labels import IntArray

_COUNTED = "is counted where the model computes something else once it is cut"


def freeze_culprit(labelling: Labelling, settled: Settled, trials: Trials, surprise: Surprise) -> None:
    """Find a group whose cut surprises, and freeze it, and what its place handles elsewhere."""
    grouping = settled.grouping
    near = (number for node in _outwards(surprise.nodes) for number in _free(labelling, grouping, node))
    others = [n for n, group in enumerate(grouping.groups) if group.frozen is None and group.width > 1]
    order = list(dict.fromkeys([*near, *others]))
    names = [grouping.groups[number].name for number in order]
    least, most = 0, 1  # nothing surprises with the first `least` groups, something does with `most`
    while most < len(names):
        if found := trials.first_surprise(settled, names[:most]):
            surprise = found
            break
        least, most = most, 2 * most
    most = min(most, len(names))
    while most - least > 1:
        middle = (least + most) // 2
        if found := trials.first_surprise(settled, names[:middle]):
            most, surprise = middle, found
        else:
            least = middle
    named = next((node for node in surprise.nodes if node in labelling.doubtful), surprise.nodes[0])
    culprit, reason = order[most - 1], explain(_COUNTED, named)
    labelling.ties.freeze(np.flatnonzero(grouping.member == culprit), reason)
    for like in _read_alike(labelling, grouping, culprit, named):
        labelling.ties.freeze(_ids(labelling, like), reason)


def _read_alike(labelling: Labelling, grouping: Grouping, culprit: int, surprising: Node) -> Iterator[Node]:
    """What the module of a surprise reads of the culprit, in all modules that do the same."""
    for reader in _outwards([surprising]):
        if not is_inside(reader, surprising):
            continue
        for place, source in enumerate(reader.all_input_nodes):
            if _free(labelling, grouping, source) == [culprit]:
                yield from (node.all_input_nodes[place] for node in labelling.labels if _is_like(node, reader))
                return


def _is_like(node: Node, other: Node) -> bool:
    """Whether two nodes are the same call in two modules of a kind."""
    return (
        node.target == other.target
        and list(own_frames(node)) == list(own_frames(other))
        and re.sub(r"\d+", "*", path_of(node)) == re.sub(r"\d+", "*", path_of(other))
        and len(node.all_input_nodes) == len(other.all_input_nodes)
    )


def _outwards(nodes: Sequence[Node]) -> Iterator[Node]:
    """All nodes of a program, the nearest to the given ones first."""
    seen, waiting = dict.fromkeys(nodes), list(nodes)
    for node in waiting:
        yield node
        for near in (*node.all_input_nodes, *node.users):
            if near not in seen:
                seen[near] = None
                waiting.append(near)


def _free(labelling: Labelling, grouping: Grouping, node: Node) -> list[int]:
    """The groups of a node's channels that can be cut and have a channel to spare."""
    ids = _ids(labelling, node)
    found = dict.fromkeys(grouping.member[ids[ids >= 0]].tolist())
    return [n for n in found if n >= 0 and grouping.groups[n].frozen is None and grouping.groups[n].width > 1]


def _ids(labelling: Labelling, node: Node) -> IntArray:
    parts = labelling.all_labels(node) if node in labelling.labels else ()
    arrays = [labels.ids.ravel() for part in parts for labels in part]
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
