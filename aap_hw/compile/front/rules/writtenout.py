"""Attention that is written out: two products of matrices around a softmax, in either order of the operands.

Between them a network may multiply by a number, add biases and masks, and view windows as one axis or two. Only a
description is made here; the kernel is the same as that of the operator for attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.families.products import MASKS
from aap_hw.compile.front.aliases import writes_in_place
from aap_hw.compile.front.einsums import Einsum
from aap_hw.graph.program.call import Call, shape_of

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition

NOTHING = {"dropout", "contiguous", "clone", "alias", "detach"}
VIEWS = {"view", "reshape", "_unsafe_view"}


@dataclass(frozen=True)
class Mask:
    """A mask that is added to the scores of attention or says which keys are visible, for scores with ``rank`` axes."""

    node: Node
    rank: int


@dataclass(frozen=True)
class Attention:
    """softmax(Q K^T * scale + masks) V.

    Attributes
    ----------
    nodes : its operators; the last one makes the result.
    query, key, value : (N, ..., rows, columns), the keys transposed if ``key_is_turned``.
    masks : masks of the scores.
    scale : factor of the scores; None for the default of PyTorch's operator.
    is_causal : no query sees keys behind its own position.
    is_turned : values and result are transposed.
    shared : how many heads of queries attend to each head of keys and values.
    """

    nodes: tuple[Node, ...]
    query: Node
    key: Node
    value: Node
    masks: tuple[Mask, ...] = ()
    scale: float | None = None
    is_causal: bool = False
    key_is_turned: bool = False
    is_turned: bool = False
    shared: int = 1


@dataclass(frozen=True)
class Product:
    """A product of matrices; the right one is transposed first if ``is_turned``."""

    left: Node
    right: Node
    is_turned: bool = False

    @staticmethod
    def of(node: Node) -> Product | None:
        """Read it off an operator; None if that is no product of matrices."""
        call = Call(node)
        if call.name in ("matmul", "bmm"):
            left, right = node.args[:2]
            return Product(left, right) if isinstance(left, Node) and isinstance(right, Node) else None
        einsum = Einsum.of(node) if call.name == "einsum" else None
        is_turned = einsum.is_of_matrices if einsum is not None else None
        return None if einsum is None or is_turned is None else Product(*einsum.operands, is_turned)


def attention_at(partition: Partition, node: Node) -> Attention | None:
    """The attention that begins with a product of matrices, if all that follows is read by it alone."""
    first, rank, shape = Product.of(node), len(shape_of(node)), shape_of(node)
    if first is None or rank < 3:
        return None
    nodes, scale, masks = [node], 1.0, list[Mask]()
    while Call(nodes[-1]).name != "softmax":
        follower = partition.next_alone(nodes[-1])
        if follower is None:
            return None
        call, now = Call(follower), shape_of(nodes[-1])
        number, added = _number(follower, nodes[-1]), _added(partition, follower, nodes[-1])
        if call.name in ("mul", "div") and number is not None and not masks:
            scale = scale * number if call.name == "mul" else scale / number
        elif added is not None and len(masks) < len(MASKS):
            masks.append(Mask(added, len(now)))
        elif call.name == "softmax":
            if call["dim"] % rank != rank - 1 or now != shape:
                return None
        elif call.name not in NOTHING and not (call.name in VIEWS and _is_of_windows(shape_of(follower), shape)):
            return None
        nodes.append(follower)
    is_turned = False
    while (follower := partition.next_alone(nodes[-1])) is not None:
        call, before = Call(follower), nodes[-1]
        nodes.append(follower)
        if (second := Product.of(follower)) is not None:
            value, shares = (second.left, second.right) if is_turned else (second.right, second.left)
            operands = first.left, first.right, value
            is_alike = len({shape_of(each)[:-2] for each in operands}) == 1
            if shares is not before or value is before or second.is_turned or not is_alike:
                return None
            read = [*operands, *(mask.node for mask in masks)]
            # The kernel stands at the last operator, so nothing may have overwritten its inputs by then.
            is_written = any(writes_in_place(user) for each in read for user in each.users if user not in nodes)
            if is_written:
                return None
            turned = not first.is_turned
            return Attention(tuple(nodes), *operands, tuple(masks), scale, key_is_turned=turned, is_turned=is_turned)
        if call.name == "transpose" and {call["dim0"] % rank, call["dim1"] % rank} == {rank - 2, rank - 1}:
            is_turned = not is_turned
        elif call.name not in NOTHING:
            return None
    return None


def _is_of_windows(now: tuple[int, ...], before: tuple[int, ...]) -> bool:
    """Whether a shape is unchanged, or has a new first axis of one image: (W, H, L, L) or (1, W, H, L, L)."""
    return now == before or now == (1, *before)


def _number(node: Node, before: Node) -> float | None:
    """The number that an operator multiplies or divides by, if it is one and the quotient is not rounded."""
    if Call(node).get("rounding_mode"):
        return None
    other = node.args[1] if len(node.args) > 1 and node.args[0] is before else None
    return float(other) if isinstance(other, (int, float)) and other else None


def _added(partition: Partition, node: Node, before: Node) -> Node | None:
    """The tensor that an operator adds, if it is available already."""
    others = [each for each in node.args if isinstance(each, Node) and each is not before]
    if Call(node).name != "add" or len(others) != 1 or len(node.args) != 2 or Call(node)["alpha"] != 1:
        return None
    is_there = partition.is_parameter(others[0]) or partition.placement.is_made(others[0])
    is_float = others[0].meta["val"].dtype == before.meta["val"].dtype
    return others[0] if is_there and is_float and shape_of(node) == shape_of(before) else None
