"""Windows of images and of other axes as axes of their own, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from aap_hw.compile.families.slow import PLAIN
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.rules.movement import moved
from aap_hw.compile.front.rules.padding import padding_of
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.views import NoView, View
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import WidthExpr
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import op_name

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


@rule("unfold", takes=Takes.ANYTHING)
def windows(partition: Partition, node: Node) -> None:
    """Windows along an axis, as a new axis."""
    call, shape = Call(node), shape_of(node)
    dim = call["dimension"] % (len(shape) - 1)
    moved(partition, node, lambda view: view.windows(dim, shape[dim], call["size"], call["step"]))


@dataclass(frozen=True)
class Window:
    """Windows along an axis: their size, the step from one to the next, and that within them."""

    size: int
    step: int
    dilation: int


def padded_windows(
    partition: Partition, node: Node, image: Node, windows: Sequence[Window], sides: Sequence[tuple[int, int]]
) -> View:
    """Windows (N, C, KH, KW, rows, columns) of an image, or of a line as one row, with zeros around it."""
    n, channels, *size = shape_of(image)
    size, sides = [1, *size][-2:], [(0, 0), *sides][-2:]
    if any(map(any, sides)):
        width, value = partition.graph.width_of(image.name), partition.placement.value_of(image, node)
        key = KernelKey.make("pad", size, n, **padding_of(sides))
        padded = partition.add_inner(Kernel(f"{node.name}_padded", key, (value,), (width, width)))
        size = [extent + sum(each) for extent, each in zip(size, sides, strict=True)]
        lengths = [WidthExpr(n), width, *map(WidthExpr, size)]
        view = View.of(padded, lengths, (n, channels, *size), (0, 2, 3, 1), PLAIN)
    else:
        view = partition.placement.view_of(image, node)
        view = replace(view, axes=(*view.axes[:2], *([()] * (4 - len(view.axes))), *view.axes[2:]))
    for axis, (window, extent) in enumerate(zip(windows, size, strict=True), start=2):
        count = (extent - window.dilation * (window.size - 1) - 1) // window.step + 1
        if extent > 1:
            view = view.windows(axis, count, window.size, window.step, window.dilation)
        else:
            view = replace(view, axes=(*view.axes, ()))
    return view.permuted((0, 1, 4, 5, 2, 3))


@rule("im2col", takes=Takes.ANYTHING)
def patches(partition: Partition, node: Node) -> None:
    """Windows of an image as columns (N, C*KH*KW, windows), with zeros around the image first."""
    call = Call(node)
    image = call.first
    if image.meta["val"].dtype != torch.float32 or len(shape_of(image)) != 4:
        raise partition.refused(f"{op_name(node)} of these values has no kernel yet", node)
    numbers = zip(call["kernel_size"], call["stride"], call["dilation"], strict=True)
    sides = [(each, each) for each in call["padding"]]
    try:
        view = padded_windows(partition, node, image, [Window(*each) for each in numbers], sides)
        view = view.reshaped(partition.lengths_of(node), shape_of(node))
    except NoView:
        raise partition.refused(f"{op_name(node)} of a value that is moved so has no kernel yet", node) from None
    partition.placement.move(node, view)


@rule("col2im", takes=Takes.ANYTHING)
def unpatched(partition: Partition, node: Node) -> None:
    """Columns (N, C*KH*KW, windows) back to an image where no windows overlap or are apart."""
    call, shape = Call(node), shape_of(node)
    window = list(call["kernel_size"])
    is_tiled = list(call["stride"]) == window and not any(call["padding"]) and set(call["dilation"]) == {1}
    if not is_tiled or len(shape) != 4 or any(size % each for size, each in zip(shape[2:], window, strict=True)):
        raise partition.refused("windows that overlap have no kernel yet that adds them up", node)
    made, counts = partition.lengths_of(node), [size // each for size, each in zip(shape[2:], window, strict=True)]
    inner = [*map(WidthExpr, (*window, *counts))]

    def tiled(view: View) -> View:
        split = view.reshaped([*made[:2], *inner], (*shape[:2], *window, *counts))
        return split.permuted((0, 1, 4, 2, 5, 3)).reshaped(made, shape)

    moved(partition, node, tiled)
