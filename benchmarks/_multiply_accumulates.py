"""Where a network's multiply-accumulates are: how many each operator does, and in which channel groups.

They are those of products: convolutions, linear layers, products of matrices, attention and recurrent layers.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils.flop_counter import FlopCounterMode

from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.call import Call, is_tensor, shape_of

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@dataclass(frozen=True)
class Share:
    """How a network's multiply-accumulates divide.

    Attributes
    ----------
    cuttable : share in layers that make or read channels of a group that can be cut.
    frozen : shares of the others, by why their channels cannot be cut.
    """

    cuttable: float
    frozen: dict[str, float]


def share_in_groups(graph: ChannelGraph) -> Share:
    """How the multiply-accumulates of a traced network divide among its groups."""
    counts = multiply_accumulates(graph.program)
    total = max(1, sum(counts.values()))
    frozen: Counter[str] = Counter()
    for node, count in counts.items():
        names = dict.fromkeys(name for each in (node, *node.all_input_nodes) for name in graph.groups_at(each.name))
        reasons = [graph.group(name).frozen for name in names]
        if None not in reasons:
            frozen[str(reasons[0]) if reasons else "reads and makes no channels that were followed"] += count
    by_reason = {reason: count / total for reason, count in frozen.most_common()}
    return Share(1 - sum(frozen.values()) / total, by_reason)


def multiply_accumulates(program: ExportedProgram) -> dict[Node, int]:
    """The multiply-accumulates of each node of a program that does any."""
    counts = {node: _of(node) for node in program.graph.nodes if node.op == "call_function"}
    return {node: count for node, count in counts.items() if count}


def _of(node: Node) -> int:
    call = Call(node)
    if call.name == "scaled_dot_product_attention":
        *batch, queries, read = shape_of(call["query"])
        keys, made = shape_of(call["value"])[-2:]
        return math.prod(batch) * queries * keys * (read + made)
    if call.name in _RECURRENT:
        shape = shape_of(call["input"])
        return math.prod(shape[:-1]) * sum(math.prod(shape_of(each)) for each in call["params"] if _is_matrix(each))
    if call.pointwise or not call.tensors:
        return 0
    mode = call.tensors[0].meta["val"].fake_mode
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), _value)
    with mode, FlopCounterMode(display=False) as counter, torch.no_grad():
        node.target(*args, **kwargs)  # type: ignore[operator]
    return int(counter.get_total_flops() // 2)


def _is_matrix(node: Any) -> bool:
    return is_tensor(node) and len(shape_of(node)) == 2


def _value(node: Node) -> Any:
    return node.meta["val"]
