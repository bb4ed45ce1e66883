"""Operators that bring values along an axis in their order, pick some by their numbers, or add them up one by one."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from aap_hw.compile.families.slow import PLAIN
from aap_hw.compile.front.copies import value_or_copy
from aap_hw.compile.front.lengths import NoLength, TooManyWidths, product
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.operands import NOWHERE, Lengths
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.rules.slow import TYPES
from aap_hw.compile.front.views import ONE, View
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import op_name, quoted

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


@rule("cumsum", takes=Takes.ANYTHING)
def cumsum(partition: Partition, node: Node) -> None:
    """Running sums."""
    before, after = Call(node).first.meta["val"].dtype, Call(node)["dtype"]
    if after not in (None, before, torch.float32) and (before == torch.float32 or after != torch.int64):
        raise partition.refused(f"{op_name(node)} that converts what it adds up has no kernel yet", node)
    kernel = _along(partition, node, node.name, "cumsum", Call(node)["dim"])
    partition.add(node, kernel, is_image=False)


@rule("argsort", takes=Takes.ANYTHING)
def argsort(partition: Partition, node: Node) -> None:
    """The places of values in their order."""
    call = Call(node)
    kernel = _places(partition, node, node.name, call["dim"], is_descending=bool(call["descending"]))
    partition.add(node, kernel, is_image=False)


@rule("sort", "topk", takes=Takes.ANYTHING)
def sort(partition: Partition, node: Node) -> None:
    """Values in their order, and their places: of the first ones, or of all."""
    call = Call(node)
    dim = call["dim"] % max(1, len(shape_of(call.first)))
    is_descending = bool(call["largest"] if call.name == "topk" else call["descending"])
    count = call["k"] if call.name == "topk" else None
    places = _places(partition, node, f"{node.name}_places", dim, is_descending=is_descending, count=count)
    partition.add_inner(places)
    for user in node.users:
        partition.absorb(user)
        name = places.name
        if Call(user)["index"] == 0:
            taken = shape_of(user)[dim] if shape_of(user) else 1
            values = _along(partition, node, f"{node.name}_values", "take_along", dim, (places.name,), taken=taken)
            name = partition.add_inner(values)
        lengths = partition.lengths_of(user)
        partition.placement.move(user, View.of(name, lengths, shape_of(user), range(len(lengths)), PLAIN))


@rule("gather", takes=Takes.ANYTHING)
def gather(partition: Partition, node: Node) -> None:
    """Values of each row by numbers of their own, or of whole rows where all of a row have one number."""
    call = Call(node)
    table, index, rank = call["self"], call["index"], len(shape_of(node))
    if rank < 1 or partition.is_parameter(index):
        raise partition.refused(f"{op_name(node)} by constants has no kernel yet", node)
    dim = call["dim"] % rank
    if any(shape_of(table)[axis] != shape_of(index)[axis] for axis in range(rank) if axis != dim):
        raise partition.refused(f"{op_name(node)} of some rows has no kernel yet", node)
    first = partition.placement.view_of(index, node)
    behind = [loop for axis in first.axes[dim + 1 :] for loop in axis]
    for axis in range(dim + 1, rank):
        first = first.with_axis(axis, ())
    # The numbers of a row may be copies of one.
    by_row = bool(behind) and all(loop.stride == NOWHERE for loop in behind) and first.is_everything(range(rank))
    numbers = first.name if by_row else partition.placement.value_in_order(index, node)
    each, taken = "row" if by_row else "", shape_of(index)[dim]
    kernel = _along(partition, node, node.name, "take_along", dim, (numbers,), taken=taken, each=each)
    partition.add(node, kernel, is_image=False)


def _places(
    partition: Partition, node: Node, name: str, dim: int, *, is_descending: bool, count: int | None = None
) -> Kernel:
    order = "descending" if is_descending else ""
    return _along(partition, node, name, "argsort", dim, count="" if count is None else count, order=order)


def _check_types(partition: Partition, node: Node, image: Node) -> None:
    if image.meta["val"].dtype not in TYPES:
        raise partition.refused(f"{op_name(node)} of these values has no kernel yet", node)


def _along(
    partition: Partition, node: Node, name: str, op: str, dim: int, others: tuple[str, ...] = (), **attributes: object
) -> Kernel:
    """A kernel along one axis of the first operand of a node, which lies in PyTorch's order of axes."""
    image = Call(node).first
    rank = len(shape_of(image))
    _check_types(partition, node, image)
    if not rank:
        raise partition.refused(f"{op_name(node)} of one value has no kernel yet", node)
    dim %= rank
    lengths = partition.lengths_of(image)
    parts = lengths[:dim], [lengths[dim]], lengths[dim + 1 :]
    try:
        axes = dict(zip("abc", (reduce(product, part, ONE) for part in parts), strict=True))
        made = Lengths.of(partition, 1, axes, made="abc" if op == "cumsum" else "ac")
        text = made.shape
    except (NoLength, TooManyWidths) as problem:
        raise partition.refused(f"{op_name(node)} that can be cut in several ways has no kernel yet", node) from problem
    if op != "cumsum" and lengths[dim].terms:
        raise partition.refused(f"{op_name(node)} along an axis that can be cut has no kernel yet", node)
    key = KernelKey.make(op, (), shape_of(image)[0], shape=text, **attributes)
    read = value_or_copy(partition, image, node), *others
    return Kernel(name, key, read, (made.read, made.made), source=op_name(node) + quoted(node))
