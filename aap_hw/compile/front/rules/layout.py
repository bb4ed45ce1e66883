"""Operators that change how the axes of a value are read: shapes, orders, slices. Most need no kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.front.rules.channels import emit_slice, shuffle_at
from aap_hw.compile.front.rules.movement import moved, part
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import op_name

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


@rule("flatten", "view", "reshape", "_unsafe_view", "unflatten", "squeeze", "unsqueeze", takes=Takes.ANYTHING)
@rule("view_as", "reshape_as", takes=Takes.ANYTHING)
def reshape(partition: Partition, node: Node) -> None:
    """A new shape: no kernel for values in PyTorch's order; images as vectors, and channel shuffles, have one."""
    image = Call(node).first
    before, after = shape_of(image), shape_of(node)
    if image.meta["val"].dtype != node.meta["val"].dtype:
        raise partition.refused(f"{op_name(node)} of the bits of numbers has no kernel yet", node)
    is_image, is_moved = partition.placement.is_image(image), partition.placement.is_moved(image)
    if (shuffle := shuffle_at(partition, node, image)) is not None:
        partition.absorb(*shuffle.nodes)
        inputs = [partition.placement.value_of(image, node)]
        partition.emit(shuffle.last, "channel_shuffle", image, inputs, groups=shuffle.groups)
    elif partition.placement.is_plain(image) and not is_moved:
        partition.placement.renamed(node, image, is_image=False)
    elif len(after) > 2 and before[:2] == after[:2] and is_image and not is_moved:
        partition.placement.renamed(node, image, is_image=True)
    elif len(after) == 2 and len(before) == 4 and before[0] == after[0] and is_image and not is_moved:
        partition.emit(node, "flatten", image, [partition.placement.value_of(image, node)])
    else:
        lengths = partition.lengths_of(node)
        moved(partition, node, lambda view: view.reshaped(lengths, after))


@rule("permute", "transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "mH", takes=Takes.ANYTHING)
def permute(partition: Partition, node: Node) -> None:
    """Another order of axes: no kernel for channels last and back, as images lie so already."""
    call, rank = Call(node), len(shape_of(node))
    order = list(range(rank))
    if call.name == "permute":
        order = [dim % rank for dim in call["dims"]]
    elif call.name in ("t", "numpy_T"):
        order = order[::-1]
    elif call.name in ("mT", "mH"):
        order[-2:] = order[:-3:-1]
    else:
        axes = ("axis0", "axis1") if call.name == "swapaxes" else ("dim0", "dim1")
        left, right = (call[axis] % rank for axis in axes)
        order[left], order[right] = right, left
    is_moved = partition.placement.is_moved(call.first)
    if order == [0, *range(2, rank), 1] and partition.placement.is_image(call.first) and not is_moved:
        partition.placement.renamed(node, call.first, is_image=False)
    elif order == [0, rank - 1, *range(1, rank - 1)] and partition.placement.is_rows(call.first) and not is_moved:
        partition.placement.renamed(node, call.first, is_image=True)
    else:
        moved(partition, node, lambda view: view.permuted(order))


@rule("slice", takes=Takes.ANYTHING)
def piece(partition: Partition, node: Node) -> None:
    """Every n-th row and column of an image, its first or last channels, or any other slice."""
    image = Call(node).first
    if not partition.placement.is_moved(image) and (partition.placement.is_image(image) or len(shape_of(image)) == 2):
        if side := _side(node):
            emit_slice(partition, node, image, side)
            return
        if chain := _subsampling(partition, node):
            steps = dict.fromkeys(range(4), 1)
            for link in chain:
                steps[Call(link)["dim"] % 4] *= Call(link)["step"]
            partition.absorb(*chain)
            stride = steps[2], steps[3]
            partition.emit(chain[-1], "subsample", image, [partition.placement.value_of(image, node)], stride=stride)
            return
    call = Call(node)
    dim = call["dim"] % len(shape_of(node))
    places = range(shape_of(image)[dim])[slice(call["start"], call["end"], call["step"])]
    part(partition, node, image, dim, places)


def _subsampling(partition: Partition, node: Node) -> list[Node]:
    """This slice and those behind it, while they take every n-th row or column of the whole image."""
    chain = [node]
    while (follower := partition.next_alone(chain[-1])) is not None and Call(follower).name == "slice":
        chain.append(follower)
    for link in chain:
        call = Call(link)
        shape = shape_of(call.first)
        full = call["end"] is None or call["end"] >= shape[call["dim"] % len(shape)]
        is_pixels = len(shape) == 4 and (call["dim"] % 4 > 1 or call["step"] == 1)
        if not is_pixels or call["start"] or not full:
            return []
    return chain


def _side(node: Node) -> str | None:
    """``first`` or ``last`` if a slice takes these channels, else empty."""
    call = Call(node)
    shape = shape_of(call.first)
    if call["dim"] % len(shape) != 1 or call["step"] != 1 or len(shape) not in (2, 4):
        return None
    if not call["start"]:
        return "first"
    return "last" if call["end"] is None or call["end"] >= shape[1] else None
