"""Strided copies: for each value of the output, the tensor that it comes from and its place there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from aap_hw.compile.code.definition import DEFINITIONS, Definition
from aap_hw.compile.code.function import Argument, Role
from aap_hw.compile.families.strided import Loop, Part, StridedCopy, Wrap
from aap_hw.compile.keys.address import Address


def place_of(loops: Sequence[Loop], steps: Sequence[Any], offset: Any) -> Any:
    """Place of a value, given the current step of each loop."""
    sums: dict[Wrap | None, Any] = {None: offset}
    for loop, step in zip(loops, steps, strict=True):
        sums[loop.wrap] = sums.get(loop.wrap, 0) + step * loop.stride
    place = sums.pop(None)
    for wrap, total in sums.items():
        assert wrap is not None
        moved = total + wrap.shift  # less than twice the modulus, and below 0 as it is: backwards
        is_around = moved >= wrap.modulus if wrap.modulus > 0 else moved <= wrap.modulus
        place = place + tirx.if_then_else(is_around, moved - wrap.modulus, moved)
    return place


def arguments_of(address: Address, parts: Sequence[Part]) -> tuple[Argument, ...]:
    """The tensors that are read, as flat buffers."""
    roles: list[Role] = ["constant" if part.is_constant else "residual" for part in parts]
    if "residual" in roles:
        roles[roles.index("residual")] = "activation"
    types = address.key.types
    return tuple(Argument(role, (part.size,), type=types.read) for role, part in zip(roles, parts, strict=True))


@DEFINITIONS.register("strided_copy")
def strided_copy(address: Address) -> Definition:
    """Each value by its place: from one tensor by its loops, from several by row and column."""
    copy = StridedCopy.of(address)

    def alone(inputs: Any, *steps: Any) -> Any:
        (part,) = copy.parts
        return inputs[0](place_of(part.loops, steps[: len(part.loops)], part.offset))

    def side_by_side(inputs: Any, row: Any, column: Any) -> Any:
        result, end = None, copy.row
        for part, tensor in reversed(list(zip(copy.parts, inputs, strict=True))):
            width = part.values // copy.rows
            rest = row * width + (column - (end - width))
            steps = list[Any]()
            for loop in reversed(part.loops):
                steps.insert(0, rest % loop.length)
                rest = rest // loop.length
            value = tensor(place_of(part.loops, steps, part.offset))
            result = value if result is None else tirx.if_then_else(column < end, value, result)
            end -= width
        return result

    value = side_by_side if len(copy.parts) > 1 else alone
    return Definition(arguments_of(address, copy.parts), copy.shape, value)
