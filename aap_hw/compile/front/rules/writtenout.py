"""Attention that is written out: two products of matrices around a softmax, in either order of the operands.

Between them a network may multiply by a number and add a bias or a mask of constants. What is found is only a
description; the kernel is that of the operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.graph.call import Call, shape_of

if TYPE_CHECKING:
    from aap_hw.compile.front.partition import Partition

NOTHING = {"dropout", "contiguous", "clone", "alias", "detach"}
PRODUCTS = {"matmul", "bmm"}


@dataclass(frozen=True)
class Attention:
    """softmax(Q K^T * scale + mask) V.

    Attributes
    ----------
    nodes : the operators that it consists of, the one that makes the result last.
    query, key, value : (N, ..., rows, columns), the keys transposed if ``key_is_turned``.
    mask : what is added to the products, or says which of them count.
    scale : factor of the products; None for what PyTorch's operator takes by itself.
    is_causal : no query sees keys behind its own place.
    is_turned : values and result are transposed.
    """

    nodes: tuple[Node, ...]
    query: Node
    key: Node
    value: Node
    mask: Node | None = None
    scale: float | None = None
    is_causal: bool = False
    key_is_turned: bool = False
    is_turned: bool = False


def attention_at(partition: Partition, node: Node) -> Attention | None:
    """The attention that begins with a product of matrices, if all that follows is read by it alone."""
    query, key = node.args[:2]
    if not isinstance(query, Node) or not isinstance(key, Node) or len(shape_of(node)) < 3:
        return None
    nodes, scale, mask, is_shared = [node], 1.0, None, False
    while (follower := partition.next_alone(nodes[-1])) is not None and not is_shared:
        call, before = Call(follower), nodes[-1]
        number = _number(follower, before)
        if call.name in ("mul", "div") and number is not None and mask is None:
            scale = scale * number if call.name == "mul" else scale / number
        elif call.name == "add" and mask is None and (mask := _mask(partition, follower, before)) is not None:
            pass
        elif call.name == "softmax":
            is_shared = True
            if call["dim"] % len(shape_of(node)) != len(shape_of(node)) - 1:
                return None
        elif call.name not in NOTHING:
            return None
        nodes.append(follower)
    if not is_shared:
        return None
    is_turned = False
    while (follower := partition.next_alone(nodes[-1])) is not None:
        call, before = Call(follower), nodes[-1]
        nodes.append(follower)
        if call.name in PRODUCTS:
            value = follower.args[0 if is_turned else 1]
            operands = (query, key, value)
            if follower.args[1 if is_turned else 0] is not before or value is before or not isinstance(value, Node):
                return None
            outer = {shape_of(each)[:-2] for each in (query, key, value) if isinstance(each, Node)}
            if len(outer) != 1 or any(partition.is_parameter(each) for each in operands if isinstance(each, Node)):
                return None
            return Attention(tuple(nodes), query, key, value, mask, scale, key_is_turned=True, is_turned=is_turned)
        if call.name == "transpose" and {call["dim0"] % 4, call["dim1"] % 4} == {2, 3} and not is_turned:
            is_turned = len(shape_of(node)) == 4
        elif call.name not in NOTHING:
            return None
    return None


def _number(node: Node, before: Node) -> float | None:
    """What an operator multiplies or divides by, if that is a number."""
    other = node.args[1] if len(node.args) > 1 and node.args[0] is before else None
    return float(other) if isinstance(other, (int, float)) and other else None


def _mask(partition: Partition, node: Node, before: Node) -> Node | None:
    """What an operator adds of the same shape for every image, or the like, if nothing else."""
    others = [each for each in node.args if isinstance(each, Node) and each is not before]
    if len(others) != 1 or len(node.args) != 2 or Call(node).get("alpha", 1) != 1:
        return None
    is_there = partition.is_parameter(others[0]) or partition.is_made(others[0])
    return others[0] if is_there and shape_of(node) == shape_of(before) else None
