"""What products of computed values read on any device: flat tensors, and where their values lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import Argument, Role
from aap_hw.compile.families.products import AttentionShape, MatmulShape, Walk
from aap_hw.compile.keys.address import Address

# Score of a hidden key: its exponential is zero beside that of any other score.
UNSEEN = -1e30


def is_seen(largest: Any) -> Any:
    """Whether at least one key is visible, given the largest score."""
    return largest > number(UNSEEN / 2)


def _arguments(address: Address, *walks: Walk) -> list[Argument]:
    roles: list[Role] = ["activation", *["residual"] * (len(walks) - 1)]  # type: ignore[list-item]
    return [Argument(role, (walk.size,), type=address.key.types.read) for role, walk in zip(roles, walks, strict=True)]


def matmul_arguments(address: Address) -> list[Argument]:
    """The left and the right matrices; if one is a constant it comes second."""
    shape = MatmulShape.of(address)
    if not any(shape.constant):
        return _arguments(address, shape.left, shape.right)
    other, known = (shape.right, shape.left) if shape.constant[0] else (shape.left, shape.right)
    return [*_arguments(address, other), Argument("constant", (known.size,), type=address.key.types.read)]


def attention_arguments(address: Address) -> list[Argument]:
    """Queries, keys, values and masks; what is computed comes before constants."""
    shape = AttentionShape.of(address)
    known = list(zip(shape.operands, shape.constant, strict=True))
    constants = [
        Argument("constant", (each.size,), type=address.key.types.read) for each, is_known in known if is_known
    ]
    return [*_arguments(address, *(each for each, is_known in known if not is_known)), *constants]


def attention_operands(shape: AttentionShape, given: Sequence[Any]) -> tuple[Any, ...]:
    """Queries, keys, values and masks of what a kernel is given."""
    order = sorted(range(len(shape.operands)), key=lambda i: shape.constant[i])
    return tuple(given[order.index(i)] for i in range(len(order)))


def masked(shape: AttentionShape, is_hiding: bool, score: Any, given: Sequence[Any], *at: Any) -> Any:
    """A score at (n, h, query, key) after its masks, each of which is added or hides keys where it is 0."""
    for walk, mask in zip(shape.masks, given, strict=True):
        value = mask[place(walk, *at)]
        hidden = tirx.Select(value > number(0.0), score, number(UNSEEN))
        score = hidden if is_hiding else te.max(score + value, number(UNSEEN))
    return score


def place(walk: Walk, *index: Any) -> Any:
    """A function that maps an index (n, h, row, column) to the place of its value."""
    steps = [i * stride for i, stride in zip(index, walk.strides, strict=True) if stride]
    return sum(steps, walk.offset)
