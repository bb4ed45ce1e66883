"""Operators that read at computed places: embeddings, selection by index, and grid sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.fx import Node

from aap_hw.compile.families.expression import Expression, Term, text_of
from aap_hw.compile.families.fused import ALONE
from aap_hw.compile.families.slow import CONSTANT, PLAIN, WEIGHT
from aap_hw.compile.front.copies import image_order
from aap_hw.compile.front.lengths import TooManyWidths, combination, length_text, product
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.rules.arithmetic import simplified
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.rules.slow import TYPES
from aap_hw.compile.front.views import ONE
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import WidthExpr
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import op_name, quoted

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition

WHOLE_NUMBERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
# Numbers that float32 holds.
MOST_ROWS = 1 << 24
INTERPOLATIONS, PADDINGS = ("bilinear", "nearest", "bicubic"), ("zeros", "border")


@dataclass(frozen=True)
class Numbers:
    """Numbers of rows: what holds them, how many there are, and what it is called in the text of a key."""

    name: str
    taken: int
    kind: str

    @staticmethod
    def of(partition: Partition, numbers: Node, reader: Node) -> Numbers:
        """Those that a node holds."""
        if numbers.meta["val"].dtype not in TYPES or any(length.terms for length in partition.lengths_of(numbers)):
            raise partition.refused(f"{op_name(reader)} by such numbers has no kernel yet", reader)
        taken = math.prod(shape_of(numbers))
        if partition.is_parameter(numbers):
            kind = WEIGHT if partition.is_learned(numbers) else CONSTANT
            return Numbers(partition.constant(numbers), taken, kind)
        return Numbers(partition.placement.value_in_order(numbers, reader), taken, PLAIN)


@rule("embedding", takes=Takes.ANYTHING)
def embedding(partition: Partition, node: Node) -> None:
    """Rows of a table."""
    call = Call(node)
    _gather_by(partition, node, call["weight"], 0, call["indices"])


@rule("index_select", takes=Takes.ANYTHING)
def index_select(partition: Partition, node: Node) -> None:
    """Entries of an axis by index."""
    call = Call(node)
    _gather_by(partition, node, call.first, call["dim"] % len(shape_of(call.first)), call["index"])


@rule("index", takes=Takes.ANYTHING)
def index(partition: Partition, node: Node) -> None:
    """The same, written with brackets; neighbouring axes that have numbers each are one with numbers made of these."""
    call = Call(node)
    given = {dim: each for dim, each in enumerate(call["indices"]) if each is not None}
    if any(each.meta["val"].dtype not in WHOLE_NUMBERS for each in given.values()):
        raise partition.refused("indexing by truth values has no kernel yet", node)
    dims = sorted(given)
    if len(dims) == 1:
        _gather_by(partition, node, call.first, dims[0], given[dims[0]])
    elif dims != list(range(dims[0], dims[-1] + 1)) or all(map(partition.is_parameter, given.values())):
        raise partition.refused("indexing by several such tensors has no kernel yet", node)
    else:
        _gather(partition, node, call.first, dims, _combined(partition, node, call.first, given))


def _combined(partition: Partition, node: Node, table: Node, given: Mapping[int, Node]) -> Numbers:
    """Add the kernel that makes the numbers of places of several axes, taken as one, of their numbers."""
    shape = np.broadcast_shapes(*map(shape_of, given.values()))
    sizes = {dim: shape_of(table)[dim] for dim in given}
    if len(shape) > 2 or math.prod(sizes.values()) > MOST_ROWS:
        raise partition.refused("indexing by tensors of such shapes has no kernel yet", node)
    rows, columns = (1, 1, *shape)[-2:]
    total: Expression = 0.0
    read, held, axes = list[Numbers](), list[Numbers](), dict[str, str]()
    for dim, numbers in given.items():
        found = Numbers.of(partition, numbers, node)
        group, letter = (read, "x") if found.kind == PLAIN else (held, "c")
        name, own = f"{letter}{len(group)}", (1, 1, *shape_of(numbers))[-2:]
        group.append(found)
        is_own = {"y": own[0] == rows > 1, "c": own[1] == columns > 1}
        axes[name] = "".join(axis for axis, is_there in is_own.items() if is_there) or ALONE
        from_start = Term("where", (Term("lt", (name, 0.0)), Term("add", (name, float(sizes[dim]))), name))
        total = Term("add", (Term("mul", (total, float(sizes[dim]))), from_start)) if total else from_start
    key = KernelKey.make(
        "elementwise",
        (rows, 1),
        1,
        expr=text_of(simplified(total)),
        reads=[axes[name] for name in axes if name[0] == "x"],
        constants=[axes[name] for name in axes if name[0] == "c"],
    )
    width = WidthExpr(columns)
    kernel = Kernel(
        f"{node.name}_numbers",
        key,
        tuple(each.name for each in read),
        (width, width),
        constants=tuple(each.name for each in held),
        learned=tuple(each.name for each in held if each.kind == WEIGHT),
    )
    return Numbers(partition.add_inner(kernel), rows * columns, PLAIN)


def _gather_by(partition: Partition, node: Node, table: Node, dim: int, numbers: Node) -> None:
    found = Numbers.of(partition, numbers, node)
    _gather(partition, node, table, [dim], found, as_image=len(shape_of(numbers)) == 1)


def _gather(
    partition: Partition, node: Node, table: Node, dims: Sequence[int], numbers: Numbers, *, as_image: bool = False
) -> None:
    """Add the kernel that takes places of neighbouring axes, which are one here."""
    if any(each.meta["val"].dtype not in TYPES for each in (table, node)):
        raise partition.refused(f"{op_name(node)} of numbers of this type has no kernel yet", node)
    lies_as_image = partition.placement.is_image(table) and as_image
    order = image_order(table) if lies_as_image else list(range(len(shape_of(table))))
    lengths = [partition.graph.width_of(table.name, axis) for axis in order]
    place = order.index(dims[0])
    parts = lengths[:place], lengths[place : place + len(dims)], lengths[place + len(dims) :]
    varying = [length for length in lengths if length.terms]
    if len(varying) > 1 or any(length.terms for length in parts[1]):
        raise partition.refused(f"{op_name(node)} along an axis that can be cut has no kernel yet", node)
    made = next((length for length in partition.lengths_of(node) if length.terms), ONE)
    read = next((w for w in varying if combination(w, [made]) is None), made)
    try:
        shape = ",".join(length_text(reduce(product, part, ONE), read, made) for part in parts)
    except TooManyWidths as problem:
        raise partition.refused(f"{op_name(node)} of these widths has no kernel yet", node) from problem
    if partition.is_parameter(table):
        value, kind = partition.constant(table), WEIGHT if partition.is_learned(table) else CONSTANT
    else:
        read_table = partition.placement.value_of if lies_as_image else partition.placement.value_in_order
        value, kind = read_table(table, node), PLAIN
    operands = (value, kind), (numbers.name, numbers.kind)
    key = KernelKey.make(
        "gather", (), partition.batch, table=f"{kind}[{shape}]", index=f"{numbers.kind}[{numbers.taken}]"
    )
    kernel = Kernel(
        node.name,
        key,
        tuple(name for name, kind in operands if kind == PLAIN),
        (read, made),
        constants=tuple(name for name, kind in operands if kind != PLAIN),
        learned=tuple(name for name, kind in operands if kind == WEIGHT),
        source=op_name(node) + quoted(node),
    )
    partition.add(node, kernel, is_image=lies_as_image)


@rule("grid_sampler", "grid_sampler_2d", takes=Takes.ANYTHING)
def grid_sample(partition: Partition, node: Node) -> None:
    """An image at the points of a grid."""
    call = Call(node)
    image, grid = call["input"], call["grid"]
    how, padding = int(call["interpolation_mode"]), int(call["padding_mode"])
    types = {each.meta["val"].dtype for each in (image, grid)}
    known = how < len(INTERPOLATIONS) and padding < len(PADDINGS)
    if len(shape_of(image)) != 4 or types != {torch.float32} or not known:
        raise partition.refused(f"{op_name(node)} in this way has no kernel yet", node)
    partition.emit(
        node,
        "grid_sample",
        image,
        [partition.placement.value_of(image, node), partition.placement.value_in_order(grid, node)],
        how=INTERPOLATIONS[how],
        padding=PADDINGS[padding],
        corners="1" if call["align_corners"] else "",
        to=shape_of(node)[2:],
    )
