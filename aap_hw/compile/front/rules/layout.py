"""Operators that move pixels: flattening and subsampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.front.rules.channels import emit_slice, shuffle_at
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.graph.call import Call, shape_of
from aap_hw.graph.source import op_name

if TYPE_CHECKING:
    from aap_hw.compile.front.partition import Partition


@rule("flatten", "view", "reshape", "_unsafe_view", "unflatten", "squeeze", "unsqueeze", takes=Takes.ANYTHING)
def reshape(partition: Partition, node: Node) -> None:
    """Nothing to do for what lies in PyTorch's order; an image as a vector, or the beginning of a channel shuffle."""
    image = Call(node).first
    before, after = shape_of(image), shape_of(node)
    if (shuffle := shuffle_at(partition, node, image)) is not None:
        partition.absorb(*shuffle.nodes)
        inputs = [partition.value_of(image, node)]
        partition.emit(shuffle.last, "channel_shuffle", image, inputs, groups=shuffle.groups)
    elif partition.is_plain(image):
        partition.renamed(node, image, is_image=False)
    elif len(after) > 2 and before[:2] == after[:2]:
        partition.renamed(node, image, is_image=True)
    elif len(after) != 2 or len(before) != 4 or before[0] != after[0]:
        raise partition.refused(f"reshaping {before} to {after} has no kernel yet", node)
    else:
        partition.emit(node, "flatten", image, [partition.value_of(image, node)])


@rule("permute", "transpose", takes=Takes.ANYTHING)
def permute(partition: Partition, node: Node) -> None:
    """Axes in an order in which they lie already: to channels last and back, nothing moves."""
    call, rank = Call(node), len(shape_of(node))
    order = list(range(rank))
    if call.name == "permute":
        order = [dim % rank for dim in call["dims"]]
    else:
        left, right = call["dim0"] % rank, call["dim1"] % rank
        order[left], order[right] = right, left
    if order == [0, *range(2, rank), 1] and partition.is_image(call.first):
        partition.renamed(node, call.first, is_image=False)
    elif order == [0, rank - 1, *range(1, rank - 1)] and partition.is_rows(call.first):
        partition.renamed(node, call.first, is_image=True)
    else:
        raise partition.refused(f"{op_name(node)} in this order has no kernel yet", node)


@rule("slice")
def subsample(partition: Partition, node: Node) -> None:
    """Every so many rows and columns, or the first or last channels."""
    image = Call(node).first
    chain = [node]
    while (follower := partition.next_alone(chain[-1])) is not None and Call(follower).name == "slice":
        chain.append(follower)
    if len(chain) == 1 and (side := _side(node)):
        emit_slice(partition, node, image, side)
        return
    steps = {2: 1, 3: 1}
    for link in chain:
        call = Call(link)
        shape = shape_of(call.first)
        dim, start, step = call["dim"] % len(shape), call["start"] or 0, call["step"]
        full = call["end"] is None or call["end"] >= shape[dim]
        if len(shape) != 4 or start != 0 or not full or (dim not in steps and step != 1):
            raise partition.refused("this slice has no kernel yet", link)
        if dim in steps:
            steps[dim] *= step
    partition.absorb(*chain)
    partition.emit(chain[-1], "subsample", image, [partition.value_of(image, node)], stride=(steps[2], steps[3]))


def _side(node: Node) -> str | None:
    """Whether a slice takes the first or the last channels, or something else."""
    call = Call(node)
    shape = shape_of(call.first)
    if call["dim"] % len(shape) != 1 or call["step"] != 1 or len(shape) not in (2, 4):
        return None
    if not call["start"]:
        return "first"
    return "last" if call["end"] is None or call["end"] >= shape[1] else None
