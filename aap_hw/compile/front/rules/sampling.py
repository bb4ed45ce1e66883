"""Operators that read at computed places: embeddings, selection by index, and grid sampling."""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from aap_hw.compile.families.slow import CONSTANT, PLAIN, WEIGHT
from aap_hw.compile.front.copies import image_order
from aap_hw.compile.front.lengths import TooManyWidths, combination, length_text, product
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.rules.slow import TYPES
from aap_hw.compile.front.views import ONE
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph.call import Call, shape_of
from aap_hw.graph.source import op_name, quoted

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition

WHOLE_NUMBERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
INTERPOLATIONS, PADDINGS = ("bilinear", "nearest"), ("zeros", "border")


@rule("embedding", takes=Takes.ANYTHING)
def embedding(partition: Partition, node: Node) -> None:
    """Rows of a table."""
    call = Call(node)
    _gather(partition, node, call["weight"], 0, call["indices"])


@rule("index_select", takes=Takes.ANYTHING)
def index_select(partition: Partition, node: Node) -> None:
    """Entries of an axis by index."""
    call = Call(node)
    _gather(partition, node, call.first, call["dim"] % len(shape_of(call.first)), call["index"])


@rule("index", takes=Takes.ANYTHING)
def index(partition: Partition, node: Node) -> None:
    """The same, written with brackets."""
    call = Call(node)
    given = [(dim, each) for dim, each in enumerate(call["indices"]) if each is not None]
    if len(given) != 1 or given[0][1].meta["val"].dtype not in WHOLE_NUMBERS:
        raise partition.refused("indexing by several tensors, or by truth values, has no kernel yet", node)
    _gather(partition, node, call.first, *given[0])


def _gather(partition: Partition, node: Node, table: Node, dim: int, numbers: Node) -> None:
    if any(each.meta["val"].dtype not in TYPES for each in (table, numbers, node)):
        raise partition.refused(f"{op_name(node)} of numbers of this type has no kernel yet", node)
    lies_as_image = partition.placement.is_image(table) and len(shape_of(numbers)) == 1
    order = image_order(table) if lies_as_image else list(range(len(shape_of(table))))
    lengths = [partition.graph.width_of(table.name, axis) for axis in order]
    place = order.index(dim)
    varying = [length for length in lengths if length.terms]
    taken = math.prod(shape_of(numbers))
    if len(varying) > 1 or lengths[place].terms or any(length.terms for length in partition.lengths_of(numbers)):
        raise partition.refused(f"{op_name(node)} along an axis that can be cut has no kernel yet", node)
    made = next((length for length in partition.lengths_of(node) if length.terms), ONE)
    read = next((w for w in varying if combination(w, [made]) is None), made)
    outer, inner = (reduce(product, part, ONE) for part in (lengths[:place], lengths[place + 1 :]))
    try:
        shape = ",".join(length_text(length, read, made) for length in (outer, lengths[place], inner))
    except TooManyWidths as problem:
        raise partition.refused(f"{op_name(node)} of these widths has no kernel yet", node) from problem
    values, constants, kinds = list[str](), list[str](), list[str]()
    for each, image in ((table, lies_as_image), (numbers, False)):
        if partition.is_parameter(each):
            constants.append(partition.constant(each))
            kinds.append(WEIGHT if partition.is_learned(each) else CONSTANT)
        else:
            value = partition.placement.value_of if image else partition.placement.value_in_order
            values.append(value(each, node))
            kinds.append(PLAIN)
    key = KernelKey.make("gather", (), partition.batch, table=f"{kinds[0]}[{shape}]", index=f"{kinds[1]}[{taken}]")
    source = op_name(node) + quoted(node)
    kernel = Kernel(
        node.name,
        key,
        tuple(values),
        (read, made),
        constants=tuple(constants),
        learned=tuple(partition.constant(each) for each in (table, numbers) if partition.is_learned(each)),
        source=source,
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
