"""What products of computed values read, whatever device they are for: tensors as one row of values each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import Argument, Role
from aap_hw.compile.families.products import AttentionShape, MatmulShape, Walk
from aap_hw.compile.keys.address import Address

# What a score is replaced by that is not to be seen: its power is nothing beside any other.
UNSEEN = -1e30


def is_seen(largest: Any) -> Any:
    """Whether any key of those was to be seen of whose scores this is the largest."""
    return largest > number(UNSEEN / 2)


def _arguments(address: Address, *walks: Walk) -> list[Argument]:
    roles: list[Role] = ["activation", *["residual"] * (len(walks) - 1)]  # type: ignore[list-item]
    return [Argument(role, (walk.size,), type=address.key.types.read) for role, walk in zip(roles, walks, strict=True)]


def matmul_arguments(address: Address) -> list[Argument]:
    """The left and the right matrices, a constant behind the other."""
    shape = MatmulShape.of(address)
    if not any(shape.constant):
        return _arguments(address, shape.left, shape.right)
    other, known = (shape.right, shape.left) if shape.constant[0] else (shape.left, shape.right)
    return [*_arguments(address, other), Argument("constant", (known.size,), type=address.key.types.read)]


def attention_arguments(address: Address) -> list[Argument]:
    """Queries, keys and values, and masks: first those that the network computes, then constants of the model."""
    shape = AttentionShape.of(address)
    masks = list(zip(shape.masks, shape.constant, strict=True))
    computed = [mask for mask, is_constant in masks if not is_constant]
    constants = [Argument("constant", (mask.size,), type=address.key.types.read) for mask, known in masks if known]
    return [*_arguments(address, shape.query, shape.key, shape.value, *computed), *constants]


def masked(shape: AttentionShape, is_hiding: bool, score: Any, given: Sequence[Any], *at: Any) -> Any:
    """A score at (n, h, query, key) with masks, which hide keys where they are 0 or are added."""
    order = sorted(range(len(shape.masks)), key=lambda i: shape.constant[i])
    for i, mask in zip(order, given, strict=True):
        value = mask[place(shape.masks[i], *at)]
        hidden = tirx.Select(value > number(0.0), score, number(UNSEEN))
        score = hidden if is_hiding else te.max(score + value, number(UNSEEN))
    return score


def place(walk: Walk, *index: Any) -> Any:
    """Where the value at an index (n, h, row, column) is."""
    steps = [i * stride for i, stride in zip(index, walk.strides, strict=True) if stride]
    return sum(steps, walk.offset)
