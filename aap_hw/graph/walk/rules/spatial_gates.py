"""Whether a mean or maximum over channels only helps to make a gate of the places of these very channels.

As in CBAM (arXiv 1807.06521, section 3.2): ``x * conv(cat([x.mean(1, True), x.amax(1, True)], 1)).sigmoid()``. What is
reduced must go through a convolution, and then be multiplied with what it was taken of; all that is in between has one
value for each place, or one for each statistic. A statistic that is read by anything else may say something about each
channel, such as which of some classes is meant, and is left alone.
"""

from __future__ import annotations

from torch.fx import Node

from aap_hw.graph.program.call import SAME_NUMBERS, Call, is_tensor, shape_of
from aap_hw.graph.walk.rules.statistics import plain

_STATISTICS = frozenset({"amax", "amin", "max", "mean", "min"})
_LAYERS = frozenset({"conv1d", "conv2d", "conv3d"})
_SAME = SAME_NUMBERS | {"clone", "contiguous", "dropout"}
_PASSES = frozenset({"batch_norm", "cat", "concat", "concatenate", "pad", "stack", "unsqueeze"})


def is_of_gate(call: Call) -> bool:
    """Whether the result of a reduction is only used to gate what was reduced."""
    if call.name not in _STATISTICS:
        return False
    source, gates = plain(call.first), False
    behind = {call.node: False}  # whether a convolution lies before a value
    waiting = [call.node]
    for node in waiting:
        for user in node.users:
            reader = Call(user)
            if behind[node] and reader.name == "mul" and _other(reader, node) is source:
                gates = True
            elif user.op != "call_function" or not is_tensor(user) or not _passes(reader, node):
                return False
            elif user not in behind:
                behind[user] = behind[node] or reader.name in _LAYERS
                waiting.append(user)
    return gates


def _passes(reader: Call, node: Node) -> bool:
    """Whether an operator hands on a statistic, or what a layer makes of it."""
    if reader.name == "getitem":  # of ``torch.max``: where the maximum is must not be asked
        return reader["index"] == 0 or not reader.node.users
    if reader.name in _LAYERS:
        return reader.names_of(node) == ["input"]
    if reader.pointwise or reader.name in _SAME:
        return is_tensor(node) and reader.out_shape == shape_of(node)
    return reader.name in _PASSES and "weight" not in reader.names_of(node)


def _other(product: Call, node: Node) -> Node | None:
    """What a node is multiplied with."""
    others = [each for each in product.tensors if each is not node]
    return plain(others[0]) if len(others) == 1 else None
