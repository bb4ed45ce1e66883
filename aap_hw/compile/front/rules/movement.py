"""Operators that only move values: walks through memory, which become a kernel when something reads the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.families.slow import PLAIN
from aap_hw.compile.front.copies import image_order, strided_copy
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.rules.slow import TYPES
from aap_hw.compile.front.views import NoView, View
from aap_hw.graph import WidthExpr
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import op_name

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


def moved(partition: Partition, node: Node, move: Callable[[View], View], source: Node | None = None) -> None:
    """The value of a node is its first operand, moved. If that is no single walk, the operand is copied first."""
    source = source or Call(node).first
    if node.meta["val"].dtype not in TYPES:
        raise partition.refused(f"{op_name(node)} of numbers of this type has no kernel yet", node)
    try:
        view = move(partition.placement.view_of(source, node))
    except NoView:
        if not partition.placement.is_moved(source) and not partition.placement.is_image(source):
            raise partition.refused(f"{op_name(node)} in this way has no kernel yet", node) from None
        try:
            view = move(partition.placement.plain_view_of(source, node))
        except NoView:
            raise partition.refused(f"{op_name(node)} in this way has no kernel yet", node) from None
    partition.placement.move(node, view)


def part(partition: Partition, node: Node, source: Node, dim: int, places: range) -> None:
    """A range of an axis."""
    start = partition.graph.width_of(source.name, dim, slice(places.start))
    length = partition.graph.width_of(node.name, dim)
    moved(partition, node, lambda view: view.sliced(dim, start, length, len(places), places.step), source)


def side_by_side(
    partition: Partition, node: Node, parts: Sequence[Node], axis: int, *, stack: bool = False, at_any_cost: bool = True
) -> bool:
    """Concatenate values along an axis; each may be moved on the way.

    Returns whether there is a kernel. Without ``at_any_cost`` there is none if groups would have to be fixed for it.
    """
    if any(each.meta["val"].dtype not in TYPES for each in (node, *parts)):
        raise partition.refused(f"{op_name(node)} of numbers of this type has no kernel yet", node)
    parts = [each for each in parts if math.prod(shape_of(each))]
    views = [partition.placement.view_of(each, node) for each in parts]
    if stack:
        views = [replace(view, axes=(*view.axes[:axis], (), *view.axes[axis:])) for view in views]
    contiguous = {view.contiguous_axis for view in views if view.kind == PLAIN}
    is_image = contiguous == {1} and len(shape_of(node)) > 2
    order = image_order(node) if is_image else range(len(shape_of(node)))
    kernel = strided_copy(partition, node.name, node, views, order, axis, at_any_cost=at_any_cost)
    if kernel is not None:
        partition.add(node, kernel, is_image=is_image)
    return kernel is not None


@rule("stack", takes=Takes.ANYTHING)
def stack(partition: Partition, node: Node) -> None:
    """Values side by side along a new axis."""
    call = Call(node)
    side_by_side(partition, node, call["tensors"], call["dim"] % len(shape_of(node)), stack=True)


@rule("select", takes=Takes.ANYTHING)
def select(partition: Partition, node: Node) -> None:
    """One index of an axis."""
    call = Call(node)
    shape = shape_of(call.first)
    dim = call["dim"] % len(shape)
    moved(partition, node, lambda view: view.selected(dim, call["index"] % shape[dim]))


@rule("narrow", takes=Takes.ANYTHING)
def narrow(partition: Partition, node: Node) -> None:
    """A range of an axis, from a start on."""
    call = Call(node)
    dim = call["dim"] % len(shape_of(node))
    length = shape_of(call.first)[dim]
    if not isinstance(call["start"], int):
        raise partition.refused("a piece whose place is computed has no kernel yet", node)
    start = call["start"] % length if call["start"] < 0 else call["start"]
    part(partition, node, call.first, dim, range(start, start + call["length"]))


@rule("flip", takes=Takes.ANYTHING)
def flip(partition: Partition, node: Node) -> None:
    """Axes reversed."""
    call, shape = Call(node), shape_of(node)

    def turned(view: View) -> View:
        for dim in {dim % len(shape) for dim in call["dims"]}:
            length = partition.graph.width_of(node.name, dim)
            last = WidthExpr(length.constant - 1, length.terms)
            view = view.sliced(dim, last, length, shape[dim], -1)
        return view

    moved(partition, node, turned)


@rule("copy", takes=Takes.ANYTHING)
def copy(partition: Partition, node: Node) -> None:
    """A tensor overwritten by another of the same shape takes its value."""
    call = Call(node)
    source = call["src"]
    is_alike = shape_of(source) == shape_of(node) and source.meta["val"].dtype == node.meta["val"].dtype
    if not is_alike or partition.is_parameter(source):
        raise partition.refused(f"{op_name(node)} of other values has no kernel yet", node)
    partition.placement.renamed(node, source, is_image=partition.placement.is_image(source))


@rule("roll", takes=Takes.ANYTHING)
def roll(partition: Partition, node: Node) -> None:
    """Axes rolled."""
    call, shape = Call(node), shape_of(node)
    shifts, dims = ([each] if isinstance(each, int) else list(each) for each in (call["shifts"], call["dims"]))

    def rolled(view: View) -> View:
        for shift, dim in zip(shifts, dims, strict=True):
            view = view.rolled(dim % len(shape), shift, shape[dim])
        return view

    if not dims:
        raise partition.refused("rolling all values as one row has no kernel yet", node)
    moved(partition, node, rolled)


@rule("expand", "expand_as", "broadcast_to", takes=Takes.ANYTHING)
def expand(partition: Partition, node: Node) -> None:
    """Axes of length 1, repeated."""
    expanded(partition, node, Call(node).first)


def expanded(partition: Partition, node: Node, source: Node) -> None:
    """The value of a node is that of another with axes of length 1 repeated."""
    before, after = shape_of(source), shape_of(node)
    new = len(after) - len(before)

    def repeated(view: View) -> View:
        view = replace(view, axes=(*[()] * new, *view.axes))
        for dim, size in enumerate(after):
            if size != ([1] * new + list(before))[dim]:
                view = view.repeated(dim, size, length=partition.graph.width_of(node.name, dim))
        return view

    moved(partition, node, repeated, source)


@rule("repeat", "tile", takes=Takes.ANYTHING)
def repeat(partition: Partition, node: Node) -> None:
    """Axes repeated as a whole."""
    call = Call(node)
    times = list(call["repeats"] if call.name == "repeat" else call["dims"])
    rank = len(shape_of(node))
    times = [*[1] * (rank - len(times)), *times]
    new = rank - len(shape_of(call.first))

    def repeated(view: View) -> View:
        view = replace(view, axes=(*[()] * new, *view.axes))
        for dim, count in enumerate(times):
            view = view.repeated(dim, count)
        return view

    moved(partition, node, repeated)


@rule("repeat_interleave", takes=Takes.ANYTHING)
def repeat_interleave(partition: Partition, node: Node) -> None:
    """Each place of an axis repeated."""
    call = Call(node)
    if not isinstance(call["repeats"], int) or call["dim"] is None:
        raise partition.refused("repeating each value as often as is computed has no kernel yet", node)
    moved(partition, node, lambda view: view.repeated(call["dim"] % len(shape_of(node)), call["repeats"], each=True))


@rule("movedim", "moveaxis", takes=Takes.ANYTHING)
def movedim(partition: Partition, node: Node) -> None:
    """Some axes moved, the others in their order."""
    call, rank = Call(node), len(shape_of(node))
    taken, put = (
        [each % rank for each in ([axes] if isinstance(axes, int) else axes)]
        for axes in (call["source"], call["destination"])
    )
    rest = iter(axis for axis in range(rank) if axis not in taken)
    order = [taken[put.index(place)] if place in put else next(rest) for place in range(rank)]
    moved(partition, node, lambda view: view.permuted(order))


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(partition: Partition, node: Node) -> None:
    """Channels to blocks of pixels, and back."""
    call = Call(node)
    wide = node if call.name == "pixel_shuffle" else call.first
    factor = call["upscale_factor" if wide is node else "downscale_factor"]
    n, channels, height, width = shape_of(wide)
    each = partition.graph.width_of(wide.name, 1)
    rows, columns, block = (WidthExpr(size) for size in (height // factor, width // factor, factor))
    sizes = {"n": n, "c": channels, "h": height // factor, "w": width // factor, "a": factor, "b": factor}
    lengths = {"n": WidthExpr(n), "c": each, "h": rows, "w": columns, "a": block, "b": block}
    blocks, order = ("ncabhw", (0, 1, 4, 2, 5, 3)) if wide is node else ("nchawb", (0, 1, 3, 5, 2, 4))
    made = partition.lengths_of(node)

    def shuffled(view: View) -> View:
        split = view.reshaped([lengths[axis] for axis in blocks], [sizes[axis] for axis in blocks])
        return split.permuted(order).reshaped(made, shape_of(node))

    moved(partition, node, shuffled)
