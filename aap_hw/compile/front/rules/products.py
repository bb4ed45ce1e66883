"""Products of values that the network computes, and the kernel of attention that begins with one.

Operands are read where they lie, so transposes, splits and permutations of heads before them cost nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.families.slow import PLAIN
from aap_hw.compile.front.aliases import writes_in_place
from aap_hw.compile.front.einsums import Einsum, Factors
from aap_hw.compile.front.lengths import TooManyWidths
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.operands import (
    Groups,
    Lengths,
    Operand,
    image_axes,
    images_among,
    is_walk,
    length_of,
    matrices,
)
from aap_hw.compile.front.rules import fused
from aap_hw.compile.front.rules.attending import attend, attention_lengths
from aap_hw.compile.front.rules.elementwise import with_activation
from aap_hw.compile.front.rules.linear import add_linear, is_layer
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.rules.steps import is_of_channels
from aap_hw.compile.front.rules.weighted import Layer, is_residual
from aap_hw.compile.front.rules.writtenout import attention_at
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
    rank, inner, images = len(shape_of(node)), partition.graph.width_of(left.name, -1), image_axes(partition, node)
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
    summed = length_of(partition, left, way.left[3])
    _product(partition, node, found.operands, (way.left, way.right), way.made, summed)


def _attends(partition: Partition, node: Node) -> bool:
    """Whether a product begins attention that is written out, whose kernel is then added at its last operator."""
    if (found := attention_at(partition, node)) is None:
        return False
    try:
        attention_lengths(partition, found)
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
    operands = [Operand.of(partition, *each) for each in zip(factors, (node, node), groups, strict=True)]
    heads, rows, columns = (length_of(partition, node, group) for group in made[1:])
    if columns == ONE and operands[0].strides[2] == ONE:  # the transposed product reads whole vectors
        operands, rows, columns = [each.turned for each in operands[::-1]], columns, rows
    known = [name for name, operand in zip(("left", "right"), operands, strict=True) if operand.is_constant]
    try:
        axes = Lengths.of(
            partition, images_among(partition, node, made[0]), {"h": heads, "m": rows, "k": inner, "n": columns}, "hmn"
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
