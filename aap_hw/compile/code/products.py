"""What products of computed values read, whatever device they are for: tensors as one row of values each."""

from __future__ import annotations

from typing import Any

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
    """The left and the right matrices."""
    shape = MatmulShape.of(address)
    return _arguments(address, shape.left, shape.right)


def attention_arguments(address: Address) -> list[Argument]:
    """Queries, keys and values, and a mask if there is one, which the model may have as a constant."""
    shape, is_constant = AttentionShape.of(address), address.key.attribute("masked_by") == "constant"
    walks = [shape.query, shape.key, shape.value, *([shape.mask] if shape.mask and not is_constant else [])]
    arguments = _arguments(address, *walks)
    if shape.mask and is_constant:
        arguments.append(Argument("constant", (shape.mask.size,), type=address.key.types.read))
    return arguments


def place(walk: Walk, *index: Any) -> Any:
    """Where the value at an index (n, h, row, column) is."""
    steps = [i * stride for i, stride in zip(index, walk.strides, strict=True) if stride]
    return sum(steps, walk.offset)
