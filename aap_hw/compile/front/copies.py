"""Kernels that copy values into another order of axes, one value or several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.families.slow import PLAIN, WEIGHT
from aap_hw.compile.front.lengths import TooManyWidths, combination, length_text, product, settled
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.views import ONE, View
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph.program.call import shape_of
from aap_hw.graph.program.source import explain, op_name, quoted

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


def image_order(node: Node) -> list[int]:
    """The axes of (N, C, ...) in the order in which an image lies in memory."""
    return [*range(min(len(shape_of(node)), 1)), *range(2, len(shape_of(node))), *range(1, len(shape_of(node)))[:1]]


def strided_copy(
    partition: Partition,
    name: str,
    node: Node,
    views: Sequence[View],
    order: Sequence[int],
    axis: int | None = None,
    *,
    at_any_cost: bool = True,
) -> Kernel | None:
    """The kernel that copies views into the value of a node, with its axes in some order in memory.

    Several views are concatenated along ``axis``. If a key cannot follow the widths of some groups, these are fixed;
    without ``at_any_cost`` there is no kernel then.
    """
    try:
        return _kernel(partition, name, node, views, order, axis)
    except TooManyWidths as problem:
        if not at_any_cost:
            return None
        partition.fix(problem.groups, explain("moves a value in a way that depends on more widths", node))
        return _kernel(partition, name, node, views, order, axis)


def value_or_copy(partition: Partition, tensor: Node, reader: Node) -> str:
    """Name of a value in PyTorch's order of axes; of a constant, which is no value, that of a copy that is one."""
    if not partition.is_parameter(tensor):
        return partition.placement.value_in_order(tensor, reader)
    return copied(partition, f"{reader.name}_{tensor.name}", tensor, partition.placement.view_of(tensor, reader))


def copied(partition: Partition, name: str, tensor: Node, view: View) -> str:
    """Add the kernel that copies a view of a tensor in the order of its axes, unless there is one; returns its name."""
    if partition.has_kernel(name):
        return name
    kernel = strided_copy(partition, name, tensor, [view], range(len(view.axes)))
    assert kernel is not None
    return partition.add_inner(kernel)


def _kernel(
    partition: Partition, name: str, node: Node, views: Sequence[View], order: Sequence[int], axis: int | None
) -> Kernel:
    fixed = partition.fixed_widths
    lengths = partition.lengths_of(node)
    varying = [length for length in lengths if length.terms]
    if len(varying) > 1:
        raise TooManyWidths(*varying)
    made = varying[0] if varying else ONE
    widths = [settled(view.width, fixed) for view in views]
    read = next((w for w in widths if w.terms and combination(w, [made]) is None), made)
    rows = ONE
    if axis is not None:
        rows = reduce(product, [lengths[dim] for dim in order[: list(order).index(axis)]], ONE)
    row_text = length_text(rows, read, made)
    key = KernelKey.make(
        "strided_copy",
        (),
        partition.batch,
        parts="".join(view.text(order, read, made, fixed) for view in views),
        rows=row_text if len(views) > 1 and row_text != "1" else "",
    )
    return Kernel(
        name,
        key,
        tuple(view.name for view in views if view.kind == PLAIN),
        (read, made),
        constants=tuple(view.name for view in views if view.kind != PLAIN),
        learned=tuple(view.name for view in views if view.kind == WEIGHT),
        source=op_name(node) + quoted(node),
    )
