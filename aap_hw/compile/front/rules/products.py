"""Products of values that the network computes: of matrices, and attention, also where it is written out.

Operands are read where they lie, so transposes, splits and permutations of heads before them cost nothing. The result
of attention lies query by query, so that joining its heads needs no kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.families.products import MASKS
from aap_hw.compile.families.slow import PLAIN
from aap_hw.compile.front.aliases import writes_in_place
from aap_hw.compile.front.lengths import NoLength, TooManyWidths, product
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.operands import Einsum, Factors, Groups, Lengths, Operand, images_of, is_walk, matrices
from aap_hw.compile.front.rules import fused
from aap_hw.compile.front.rules.elementwise import with_activation
from aap_hw.compile.front.rules.linear import add_linear, is_layer
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.rules.steps import is_of_channels
from aap_hw.compile.front.rules.weighted import Layer, is_residual
from aap_hw.compile.front.rules.writtenout import Attention, Mask, attention_at
from aap_hw.compile.front.views import ONE, NoView, View
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import WidthExpr
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import op_name, quoted

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition

# What is added to the product, and what is multiplied.
_SUMS = {"addmm": ("self", "mat1", "mat2"), "baddbmm": ("self", "batch1", "batch2")}


@rule("matmul", "bmm", "mm", "mv", "dot", takes=Takes.ANYTHING)
def matmul(partition: Partition, node: Node) -> None:
    """A product of matrices, the whole of the attention that begins with it, or a linear layer written by hand."""
    if _attends(partition, node):
        return
    left, right = [each for each in node.args if isinstance(each, Node)]
    if is_layer(partition, node, left, right):
        add_linear(partition, node, Layer(left, right, is_turned=True))
    else:
        add_product(partition, node, left, right)


@rule("linear", takes=Takes.ANYTHING)
def linear(partition: Partition, node: Node) -> None:
    """A linear layer, or a product if it mixes places, such as tokens, of as many channels as are left."""
    layer = Layer.of(node)
    if len(shape_of(layer.image)) < 3 or partition.has_fixed_rows(layer.image):
        add_linear(partition, node, layer)
        return
    _mix(partition, node, layer, (layer.image, layer.weight), (matrices(layer.image), ([], [], [1], [0])), -1)


def mix_places(partition: Partition, node: Node) -> None:
    """Add the kernels of a convolution (N, places, C) by windows of one place, which are those of a product."""
    layer = Layer.of(node)
    _mix(partition, node, layer, (layer.weight, layer.image), (([], [], [0], [1]), matrices(layer.image)), -2)


def _mix(
    partition: Partition, node: Node, layer: Layer, factors: tuple[Node, Node], groups: tuple[Groups, Groups], axis: int
) -> None:
    """Add the kernels of a layer that mixes what runs along an axis."""
    name, inner = f"{node.name}_product", partition.graph.width_of(layer.image.name, axis)
    _product(partition, node, factors, groups, matrices(node), inner, "" if layer.bias is None else name)
    if layer.bias is not None:
        fused.add(partition, node, fused.sum_of(partition, node, name, 1.0, layer.bias, 1.0, behind=-1 - axis))


@rule("addmm", "baddbmm", takes=Takes.ANYTHING)
def product_and_sum(partition: Partition, node: Node) -> None:
    """A linear layer with its bias or a residual, or a product of matrices and a sum."""
    call = Call(node)
    added, left, right = [call[name] for name in _SUMS[call.name]]
    alpha, beta = call["alpha"], call["beta"]
    # A kernel that takes along what is behind a sum does not make the sum itself, which others read in its place.
    is_read = writes_in_place(node) and bool(partition.memory.stale_after(node))
    if (alpha, beta) == (1, 1) and not is_read and is_layer(partition, node, left, right):
        layer = Layer(left, right, is_turned=True)
        if partition.is_parameter(added) and is_of_channels(shape_of(added), shape_of(node), axis=-1):
            add_linear(partition, node, replace(layer, bias=added))
            return
        if shape_of(added) == shape_of(node) and is_residual(partition, added, rows=True):
            add_linear(partition, node, replace(layer, added=added))
            return
    name = f"{node.name}_product"
    add_product(partition, node, left, right, name)
    tree = fused.sum_of(partition, node, name, alpha, None if beta == 0 else added, beta)
    fused.add(partition, node, tree)


def add_product(partition: Partition, node: Node, left: Node, right: Node, name: str = "") -> None:
    """Add the kernel of a product of matrices, whose result is the value of a node unless it has a name of its own."""
    rank, inner, images = len(shape_of(node)), partition.graph.width_of(left.name, -1), _image_axes(partition, node)
    if 1 in (len(shape_of(left)), len(shape_of(right))):
        factors, made = _with_vector(len(shape_of(left)), len(shape_of(right)))
    else:
        factors, made = (matrices(left, rank, images), matrices(right, rank, images)), matrices(node, images=images)
    _product(partition, node, (left, right), factors, made, inner, name)


def _with_vector(left: int, right: int) -> tuple[tuple[Groups, Groups], Groups]:
    """The axes of two operands with so many, of which one is a vector, and of their product."""
    if right == 1:  # all axes of the other one but the last are rows
        rows = range(left - 1)
        return (([], [], rows, [left - 1]), ([], [], [0], [])), ([], [], rows, [])
    images = range(right - 2)
    return (([], [], [], [0]), (images, [], [right - 2], [right - 1])), (images, [], [], [right - 2])


@rule("einsum", takes=Takes.ANYTHING)
def einsum(partition: Partition, node: Node) -> None:
    """The same of axes by letter, several of which may be one axis of the product."""
    found = Einsum.of(node)
    if found is None:
        raise partition.refused(f"{op_name(node)} in this way has no kernel yet", node)
    if _attends(partition, node):
        return
    left, right = found.operands
    ways = list(found.ways())

    def fits(way: Factors) -> bool:
        return is_walk(partition, left, node, way.left) and is_walk(partition, right, node, way.right)

    way = next(filter(fits, ways), ways[0])
    summed = _length(partition, left, way.left[3])
    _product(partition, node, found.operands, (way.left, way.right), way.made, summed)


def _attends(partition: Partition, node: Node) -> bool:
    """Whether a product begins attention that is written out, whose kernel is then added at its last operator."""
    if (found := attention_at(partition, node)) is None:
        return False
    try:
        _lengths(partition, found)
    except TooManyWidths:
        return False
    partition.absorb(*found.nodes)
    partition.wait(found.nodes[-1], lambda: attend(partition, found))
    return True


def _product(
    partition: Partition,
    node: Node,
    factors: tuple[Node, Node],
    groups: tuple[Groups, Groups],
    made: Groups,
    inner: WidthExpr,
    name: str = "",
) -> None:
    """Add the kernel of a product of matrices, whose axes are groups of those of its operands and of its result."""
    known = ["left", "right", ""][[*map(partition.is_parameter, factors), True].index(True)]
    operands = [Operand.of(partition, *each) for each in zip(factors, (node, node), groups, strict=True)]
    heads, rows, columns = (_length(partition, node, group) for group in made[1:])
    if columns == ONE and operands[0].strides[2] == ONE:  # the transposed product reads whole vectors
        operands, rows, columns = [each.turned for each in operands[::-1]], columns, rows
        known = {"left": "right", "right": "left"}.get(known, "")
    try:
        axes = Lengths.of(
            partition, _images(partition, node, made[0]), {"h": heads, "m": rows, "k": inner, "n": columns}, "hmn"
        )
        walks = {"left": axes.walk(operands[0], "hmk"), "right": axes.walk(operands[1], "hkn")}
        order = [axis for group in made for axis in group]
        is_plain = order == list(range(len(order)))
        last, steps = (node, ()) if name else with_activation(partition, node)
        of_axes = partition.lengths_of(last)
        view = View.of(last.name if is_plain else f"{last.name}_by_head", of_axes, shape_of(last), order, PLAIN)
    except (NoView, TooManyWidths) as problem:
        raise partition.refused(f"{op_name(node)} that can be cut in several ways has no kernel yet", node) from problem
    key = KernelKey.make("matmul", (), axes.batch, shape=axes.shape, epilogue=steps, constant=known, **walks)
    kernel = Kernel(
        view.name,
        key,
        tuple(operand.name for operand in operands if not operand.is_constant),
        (axes.read, axes.made),
        constants=tuple(operand.name for operand in operands if operand.is_constant),
        learned=tuple(operand.name for operand in operands if operand.is_learned),
        source=op_name(node) + quoted(node),
    )
    if name:
        partition.add_inner(replace(kernel, name=name))
    else:
        partition.add_moved(last, kernel, view)


@rule("scaled_dot_product_attention", takes=Takes.ANYTHING)
def attention(partition: Partition, node: Node) -> None:
    """Attention as one operator."""
    call = Call(node)
    query, key, value, mask = (call[name] for name in ("query", "key", "value", "attn_mask"))
    ranks = {len(shape_of(each)) for each in (query, key, value)}
    is_constant, shares_heads = any(map(partition.is_parameter, (key, value))), call.get("enable_gqa")
    if is_constant or shares_heads or min(ranks) < 3 or len(ranks) > 1:
        raise partition.refused("attention with these operands has no kernel yet", node)
    masks = () if mask is None else (Mask(mask, len(shape_of(node))),)
    attend(partition, Attention((node,), query, key, value, masks, call["scale"], call["is_causal"]))


def attend(partition: Partition, found: Attention) -> None:
    """Add the kernel of attention."""
    node = found.nodes[-1]
    images = _image_axes(partition, node)
    query, key, value = (
        Operand.of(partition, each, node, matrices(each, len(shape_of(node)), images))
        for each in (found.query, found.key, found.value)
    )
    if found.key_is_turned:
        key = key.turned
    if found.is_turned:
        value = value.turned
    try:
        axes = _lengths(partition, found)
        walks = {"query": axes.walk(query, "hld"), "key": axes.walk(key, "hsd"), "value": axes.walk(value, "hsv")}
        masks = [Operand.of(partition, each.node, node, matrices(each.node, each.rank, images)) for each in found.masks]
        for name, mask in zip(MASKS, masks, strict=False):
            walks[name] = axes.walk(mask, "hls") or "plain"
    except TooManyWidths as problem:
        raise partition.refused("attention that can be cut in several ways has no kernel yet", node) from problem
    scale = 1.0 if found.scale is None and len(found.nodes) > 1 else found.scale
    width = axes.axes["d"]
    is_usual = scale is None or (not width.terms and math.isclose(scale, width.constant**-0.5))
    view = _by_query(partition, found)
    is_hiding = any(not each.node.meta["val"].dtype.is_floating_point for each in found.masks)
    known = ["constant" if mask.is_constant else "value" for mask in masks]
    attributes = {
        "shape": axes.shape,
        "scale": "" if is_usual else repr(float(scale or 1)),
        "causal": "1" if found.is_causal else "",
        "masked": "unseen" if is_hiding else "",
        "masked_by": known if "constant" in known else "",
        "made": "heads" if view is None else "",
        "constant": "query" if query.is_constant else "",
    }
    kernel = Kernel(
        node.name if view is None else view.name,
        KernelKey.make("attention", (), axes.batch, **attributes, **walks),
        tuple(each.name for each in (query, key, value, *masks) if not each.is_constant),
        (axes.read, axes.made),
        constants=tuple(each.name for each in (query, *masks) if each.is_constant),
        learned=tuple(each.name for each in (query, *masks) if each.is_learned),
        source=op_name(node) + quoted(node),
    )
    if view is None:
        partition.add(node, kernel, is_image=False)
    else:
        partition.add_moved(node, kernel, view)


def _lengths(partition: Partition, found: Attention) -> Lengths:
    """Lengths of attention's axes: heads, queries, keys, channels of queries and keys, and channels of values."""
    node, graph = found.nodes[-1], partition.graph
    images, heads, *_ = matrices(node, images=_image_axes(partition, node))
    if not images and any(mask.rank > len(shape_of(node)) for mask in found.masks):
        # Which of the heads that lie among the images a mask of more axes is for cannot be told.
        raise TooManyWidths(graph.width_of(node.name, 0))
    lengths = {
        "h": _length(partition, node, heads),
        "l": graph.width_of(node.name, -1 if found.is_turned else -2),
        "s": graph.width_of(found.key.name, -1 if found.key_is_turned else -2),
        "d": graph.width_of(found.query.name, -1),
        "v": graph.width_of(node.name, -2 if found.is_turned else -1),
    }
    return Lengths.of(partition, _images(partition, node, images), lengths, made="hlv")


def _length(partition: Partition, node: Node, axes: Sequence[int]) -> WidthExpr:
    """Length of several axes together."""
    try:
        return reduce(product, [partition.graph.width_of(node.name, axis) for axis in axes], WidthExpr(1))
    except NoLength as problem:
        raise partition.refused(f"{op_name(node)} that can be cut in several ways has no kernel yet", node) from problem


def _image_axes(partition: Partition, node: Node) -> int | None:
    """How many axes of a product count as images: none if the heads that lie among them can be cut, else as usual."""
    return 0 if len(shape_of(node)) == 3 and partition.graph.width_of(node.name, 0).terms else None


def _images(partition: Partition, node: Node, axes: Sequence[int]) -> int:
    length = _length(partition, node, axes)
    if length.terms:
        raise partition.refused(f"{op_name(node)} of as many images as channels has no kernel yet", node)
    return length.constant


def _by_query(partition: Partition, found: Attention) -> View | None:
    """The result of attention as (N, queries, H, columns); None if its axes lie in that order anyway.

    Heads that lie among the images stay there.
    """
    node, rank = found.nodes[-1], len(shape_of(found.nodes[-1]))
    images, (queries, columns) = images_of(rank), (rank - 1, rank - 2) if found.is_turned else (rank - 2, rank - 1)
    order = [*range(images), queries, *range(images, rank - 2), columns]
    if order == list(range(rank)):
        return None
    lengths = partition.lengths_of(node)
    try:
        return View.of(f"{node.name}_by_query", lengths, shape_of(node), order, PLAIN)
    except NoView:
        return None
