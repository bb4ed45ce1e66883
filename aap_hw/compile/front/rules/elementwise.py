"""Operators that keep each channel where it is: activations, sums, products, batch normalisation, softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.families.elementwise import ACTIVATIONS
from aap_hw.compile.front.aliases import writes_in_place
from aap_hw.compile.front.network import Normalization
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.graph.call import Call, shape_of
from aap_hw.graph.source import op_name

if TYPE_CHECKING:
    from aap_hw.compile.front.partition import Partition


def activation_name(node: Node) -> str | None:
    """The epilogue step that an operator is, if it is one."""
    call = Call(node)
    if call.name in ACTIVATIONS:
        return call.name
    is_relu6 = call.name == "hardtanh" and (call["min_val"], call["max_val"]) == (0, 6)
    return "relu6" if is_relu6 else None


def with_activation(partition: Partition, node: Node) -> tuple[Node, tuple[str, ...]]:
    """A node and the activation behind it, if that alone reads it: the last of the two, and the epilogue."""
    if writes_in_place(node) and partition.memory.stale_after(node):
        return node, ()
    follower = partition.next_alone(node)
    step = activation_name(follower) if follower is not None else None
    if follower is None or step is None:
        return node, ()
    partition.absorb(follower)
    return follower, (step,)


@rule("hardtanh")
@rule(*ACTIVATIONS, takes=Takes.ROWS)
def activation(partition: Partition, node: Node) -> None:
    """An activation that no kernel took along."""
    name = activation_name(node)
    if name is None:
        raise partition.refused(f"{op_name(node)} with these operands has no kernel yet", node)
    image = Call(node).first
    if partition.is_rectified(image, name):
        partition.same_value(node, image)
    else:
        rows = partition.is_rows(image)
        partition.emit(node, name, image, [_read(partition, image, node, rows)], rows=rows)


@rule("add", "mul", takes=Takes.ROWS)
def combination(partition: Partition, node: Node) -> None:
    """Sums and products of equal shapes, and images times one factor a channel."""
    call = Call(node)
    operands = [a for a in node.args if isinstance(a, Node)]
    if len(operands) != 2 or call.get("alpha", 1) != 1:
        raise partition.refused(f"{op_name(node)} with these operands has no kernel yet", node)
    if call.name == "add" and any(map(partition.is_zero, operands)):
        partition.same_value(node, next(each for each in operands if not partition.is_zero(each)))
        return
    images, scales = operands, [a for a in operands if shape_of(a)[2:] == (1, 1)]
    op = call.name
    if shape_of(operands[0]) != shape_of(operands[1]):
        images = [a for a in operands if a not in scales]
        one_each = len(images) == len(scales) == 1 and shape_of(images[0])[:2] == shape_of(scales[0])[:2]
        if op != "mul" or not one_each:
            raise partition.refused(f"{op_name(node)} with these operands has no kernel yet", node)
        op, operands = "scale_channels", [*images, *scales]
    rows = op != "scale_channels" and all(map(partition.is_rows, operands))
    inputs = [_read(partition, operand, node, rows) for operand in operands]
    last, steps = with_activation(partition, node)
    partition.emit(last, op, operands[0], inputs, rows=rows, epilogue=steps)


def _read(partition: Partition, node: Node, reader: Node, rows: bool) -> str:
    if rows:
        return partition.value_as_it_lies(node, reader)
    if len(shape_of(node)) != 4 and not (len(shape_of(node)) == 2 or partition.is_image(node)):
        raise partition.refused(f"{op_name(reader)} on these operands has no kernel yet", reader)
    return partition.value_of(node, reader)


@rule("batch_norm", takes=Takes.ROWS)
def batch_norm(partition: Partition, node: Node) -> None:
    """A batch normalisation that no convolution before it can take along."""
    image, normalization = Call(node)["input"], normalization_of(partition, node)
    inputs = [partition.value_of(image, node)]
    last, steps = with_activation(partition, node)
    partition.emit(last, "affine", image, inputs, normalization=normalization, epilogue=steps)


def normalization_of(partition: Partition, node: Node) -> Normalization:
    """The parameters of a batch normalisation."""
    call = Call(node)
    mean = partition.parameter(call["running_mean"], node)
    variance = partition.parameter(call["running_var"], node)
    if mean is None or variance is None or call["training"]:
        raise partition.refused("batch normalisation without running statistics has no kernel", node)
    scale, shift = partition.parameter(call["weight"], node), partition.parameter(call["bias"], node)
    return Normalization(scale, shift, mean, variance, call["eps"])
