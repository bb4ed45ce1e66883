"""Convolutions whose filters the network computes: a product of these with the windows of the image.

The windows are copied, as many values as the filters have for each pixel that is made, which is too much work for
depthwise ones: these have no kernel. What is made lies in PyTorch's order of axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.families.slow import PLAIN
from aap_hw.compile.front.copies import strided_copy
from aap_hw.compile.front.lengths import NoLength, TooManyWidths, product, quotient
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.operands import Groups, Lengths, Operand, operand_of
from aap_hw.compile.front.rules import fused
from aap_hw.compile.front.rules.padding import sides_of
from aap_hw.compile.front.rules.pooling import two
from aap_hw.compile.front.rules.windows import Window, padded_windows
from aap_hw.compile.front.views import NoView, View
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import WidthExpr
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import op_name, quoted

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


# The axes of a product, (N, groups, rows, columns), among those of what is multiplied.
LEFT: Groups = ([], [0], [1], [2])
RIGHT: Groups = ([0], [1], [2], [3])


def by_computed_filters(partition: Partition, node: Node) -> None:
    """Add the kernels of a convolution of images, or of lines, by filters that are no parameters."""
    call, made = Call(node), shape_of(node)
    image, filters, groups = call["input"], call["weight"], call["groups"]
    axes, (count, _, *size) = len(made) - 2, shape_of(filters)
    kernel, stride, dilation = two(size, 1, axes), two(call["stride"], 1, axes), two(call["dilation"], 1, axes)
    windows = [Window(*numbers) for numbers in zip(kernel, stride, dilation, strict=True)]
    sides = sides_of(call["padding"], kernel, dilation, axes)
    name = node.name if call["bias"] is None else f"{node.name}_product"
    batch, channels, graph = made[0], shape_of(image)[1], partition.graph
    area, pixels = WidthExpr(math.prod(size)), WidthExpr(math.prod(made[2:]))
    if 1 < groups == channels:
        raise partition.refused(f"{op_name(node)} by computed filters of one channel each has no kernel yet", node)
    try:
        apart = WidthExpr(groups)
        rows = WidthExpr(count // groups) if groups > 1 else graph.width_of(filters.name, 0)
        inner = product(quotient(graph.width_of(image.name), apart), area)
        lengths = Lengths.of(partition, batch, {"h": apart, "m": rows, "k": inner, "n": pixels}, "hmn")
        of_filters = groups, count // groups, channels // groups * area.constant
        columns = f"{node.name}_columns"
        view = padded_windows(partition, node, image, windows, sides)
        copy = strided_copy(partition, columns, image, [view], range(6), at_any_cost=False)
        if copy is None:
            raise NoView
        sizes = batch, groups, of_filters[2], pixels.constant
        right = View.of(columns, [WidthExpr(batch), apart, inner, pixels], sizes, range(4), PLAIN)
        operands = _filters(partition, node, [apart, rows, inner], of_filters), operand_of(right, RIGHT)
        walks = {"left": lengths.walk(operands[0], "hmk"), "right": lengths.walk(operands[1], "hkn")}
        view = View.of(name, partition.lengths_of(node), made, range(len(made)), PLAIN)
    except (NoLength, NoView, TooManyWidths) as problem:
        raise partition.refused(f"{op_name(node)} by computed filters has no kernel for these yet", node) from problem
    partition.add_inner(copy)
    key = KernelKey.make("matmul", (), batch, shape=lengths.shape, **walks)
    read, source = (operands[0].name, columns), op_name(node) + quoted(node)
    result = Kernel(name, key, read, (lengths.read, lengths.made), source=source)
    if call["bias"] is None:
        partition.add_moved(node, result, view)
    else:
        partition.add_inner(result)
        fused.add(partition, node, fused.sum_of(partition, node, name, 1.0, call["bias"], 1.0, behind=axes))


def _filters(partition: Partition, node: Node, lengths: Sequence[WidthExpr], sizes: tuple[int, ...]) -> Operand:
    """The filters as matrices (groups, rows, values of a window), copied into PyTorch's order first if need be."""
    filters, placement = Call(node)["weight"], partition.placement
    try:
        return operand_of(placement.view_of(filters, node).reshaped(lengths, sizes), LEFT)
    except NoView:
        return operand_of(placement.plain_view_of(filters, node).reshaped(lengths, sizes), LEFT)
