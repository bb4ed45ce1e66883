"""Reductions over axes that are neighbours in memory, and softmax along any axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from aap_hw.compile.families.slow import PLAIN
from aap_hw.compile.front.lengths import NoLength, TooManyWidths, product
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.operands import Lengths
from aap_hw.compile.front.rules.elementwise import with_activation
from aap_hw.compile.front.rules.fused import element_wise
from aap_hw.compile.front.rules.pooling import is_image_of
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.rules.slow import TYPES
from aap_hw.compile.front.views import ONE, NoView, View
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import op_name, quoted

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition

KINDS = {"linalg_vector_norm": "norm"}


@rule("softmax", "log_softmax", takes=Takes.ANYTHING)
def softmax(partition: Partition, node: Node) -> None:
    """Softmax along any axis."""
    call = Call(node)
    image, dim = call.first, call["dim"] % len(shape_of(node))
    _refuse_types(partition, node, image, call.get("dtype"))
    if call.name == "softmax" and len(shape_of(node)) == 2 and dim == 1:
        partition.emit(node, "softmax", image, [partition.placement.value_of(image, node)])
    else:
        reduced(partition, node, node, image, [dim], "axis_softmax", log="1" if call.name == "log_softmax" else "")


@rule("mean", "sum", "amax", "amin", "linalg_vector_norm", "norm", "var", "std", takes=Takes.ANYTHING)
def reduction(partition: Partition, node: Node) -> None:
    """Sums, means and the like over some axes; the mean over a whole image is global pooling."""
    call = Call(node)
    image, rank = call.first, len(shape_of(call.first))
    _refuse_types(partition, node, image, call.get("dtype"))
    dims = _dims(call)
    is_whole = rank > 2 and dims == list(range(2, rank)) and is_image_of(image, rank)
    if call.name == "mean" and is_whole and (rank == 4 or partition.placement.is_image(image)):
        partition.emit(node, "global_avg_pool2d", image, [partition.placement.value_of(image, node)])
        return
    if call.name in ("norm", "linalg_vector_norm") and call.get("ord", call.get("p")) != 2:
        raise partition.refused(f"{op_name(node)} of this order has no kernel yet", node)
    correction = _correction(partition, node) if call.name in ("var", "std") else 0
    last, steps = with_activation(partition, node)
    kind = KINDS.get(call.name, call.name)
    reduced(partition, node, last, image, dims, "reduce", of=kind, correction=correction or "", epilogue=steps)


@rule("argmax", "argmin", "any", "all", takes=Takes.ANYTHING)
def extreme(partition: Partition, node: Node) -> None:
    """Where the largest or smallest value is; and whether any or all of some truth values are true."""
    call = Call(node)
    if call.name in ("any", "all") and call.first.meta["val"].dtype != torch.bool:
        raise partition.refused(f"{op_name(node)} of numbers has no kernel yet", node)
    of = {"any": "amax", "all": "amin"}.get(call.name, call.name)
    reduced(partition, node, node, call.first, _dims(call), "reduce", of=of)


@rule("max", "min", takes=Takes.ANYTHING)
def extreme_and_place(partition: Partition, node: Node) -> None:
    """The largest or smallest value of all, or those along an axis with their places, or that of two tensors."""
    call = Call(node)
    if isinstance(call.get("other"), Node):
        element_wise(partition, node)
    elif call.get("dim") is None:
        reduced(partition, node, node, call.first, _dims(call), "reduce", of=f"a{call.name}")
    else:
        for user in node.users:
            of = f"a{call.name}" if Call(user)["index"] == 0 else f"arg{call.name}"
            reduced(partition, node, user, call.first, _dims(call), "reduce", of=of)
            partition.absorb(user)


@rule("aminmax", "var_mean", "std_mean", takes=Takes.ANYTHING)
def two_of_one(partition: Partition, node: Node) -> None:
    """Two reductions of the same values."""
    call = Call(node)
    _refuse_types(partition, node, call.first, None)
    kinds = ("amin", "amax") if call.name == "aminmax" else (call.name[:3], "mean")
    correction = _correction(partition, node)
    for user in node.users:
        of = kinds[Call(user)["index"]]
        more = {"correction": correction or ""} if of in ("var", "std") else {}
        reduced(partition, node, user, call.first, _dims(call), "reduce", of=of, **more)
        partition.absorb(user)


def _correction(partition: Partition, node: Node) -> int:
    """What a variance divides by less than the number of values."""
    call = Call(node)
    correction = call.get("correction", int(bool(call.get("unbiased", True))))
    if correction is not None and int(correction) != correction:
        raise partition.refused(f"{op_name(node)} with a correction that is not whole has no kernel yet", node)
    return 1 if correction is None else int(correction)


def _dims(call: Call) -> list[int]:
    """The axes that a reduction goes over."""
    rank, given = len(shape_of(call.first)), call.get("dim")
    return sorted({dim % rank for dim in ([given] if isinstance(given, int) else given or range(rank))})


def _refuse_types(partition: Partition, node: Node, image: Node, dtype: torch.dtype | None) -> None:
    made = node.meta["val"]
    before, after = image.meta["val"].dtype, (made if isinstance(made, torch.Tensor) else made[0]).dtype
    is_of_whole = Call(node).name in ("sum", "amax", "amin") and {before, after} <= TYPES and before != torch.float32
    is_float = before == after == torch.float32 and dtype in (None, torch.float32)
    if not is_float and not is_of_whole:
        raise partition.refused(f"{op_name(node)} of these numbers has no kernel yet", node)


def reduced(
    partition: Partition, node: Node, last: Node, image: Node, dims: Sequence[int], op: str, **attributes: object
) -> None:
    """Add a kernel along some axes; the result has them too for softmax, and lacks them for a reduction."""
    if partition.is_parameter(image) or image.meta["val"].dtype not in TYPES or not shape_of(image):
        raise partition.refused(f"{op_name(node)} of these numbers has no kernel yet", node)
    in_order = len(dims) > 1 and str(attributes.get("of")).startswith("arg")  # places are counted in PyTorch's order
    name, order = _lying(partition, image, node, dims, in_order=in_order)
    lengths = partition.lengths_of(image)
    first, behind = order.index(min(dims, key=order.index)), order.index(max(dims, key=order.index)) + 1
    parts = order[:first], order[first:behind], order[behind:]
    try:
        joined = [reduce(product, [lengths[dim] for dim in part], ONE) for part in parts]
        axes = dict(zip("abc", joined, strict=True))
        made = Lengths.of(partition, 1, axes, made="abc" if op == "axis_softmax" else "ac")
        text = made.shape
        view = _made(partition, last, dims, order)
    except (NoLength, NoView, TooManyWidths) as problem:
        raise partition.refused(f"{op_name(node)} that can be cut in several ways has no kernel yet", node) from problem
    batch = shape_of(image)[0] if shape_of(image) and order[0] == 0 else 1
    key = KernelKey.make(op, (), batch, shape=text, **attributes)
    kernel = Kernel(view.name, key, (name,), (made.read, made.made), source=op_name(node) + quoted(node))
    partition.add_moved(last, kernel, view)


def _lying(
    partition: Partition, image: Node, node: Node, dims: Iterable[int], *, in_order: bool
) -> tuple[str, list[int]]:
    """Name of a value, and the order of its axes in memory, in which ``dims`` are neighbours."""
    rank, widths = len(shape_of(image)), {group.name: group.width for group in partition.graph.groups}

    def stride(view: View, axis: int) -> int:
        loops = view.axes[axis]
        return loops[0].stride.at(widths) if loops else 0

    for view_of in (partition.placement.view_of, partition.placement.plain_view_of)[in_order:]:
        found = view_of(image, node)
        # Axes of length 1 fit anywhere, so they are put where they separate nothing.
        ones = [axis for axis in range(rank) if not found.axes[axis]]
        long = sorted((axis for axis in range(rank) if axis not in ones), key=lambda axis: -stride(found, axis))
        order = [*(axis for axis in ones if axis not in dims), *long]
        first = next((order.index(axis) for axis in order if axis in dims), len(order))
        order[first:first] = [axis for axis in ones if axis in dims]
        places = sorted(order.index(dim) for dim in dims)
        if found.kind == PLAIN and found.is_everything(order) and places == list(range(places[0], places[-1] + 1)):
            return found.name, order
    raise partition.refused(f"{op_name(node)} over these axes has no kernel yet", node)


def _made(partition: Partition, node: Node, dims: Sequence[int], order: Sequence[int]) -> View:
    """Where the result lies, with its axes in the order of the input's."""
    shape = shape_of(node)
    if len(shape) < len(order):
        left = [axis for axis in range(len(order)) if axis not in dims]
        order = [left.index(axis) for axis in order if axis in left]
    lengths = partition.lengths_of(node)
    is_plain = list(order) == list(range(len(shape)))
    return View.of(node.name if is_plain else f"{node.name}_as_it_lies", lengths, shape, order, PLAIN)
