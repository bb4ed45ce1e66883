"""Trees of element-wise operators, value by value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from aap_hw.compile.code.approximations import let
from aap_hw.compile.code.definition import DEFINITIONS, Definition
from aap_hw.compile.code.function import Argument, activations
from aap_hw.compile.code.functions import value_of
from aap_hw.compile.families.expression import Expression, variables
from aap_hw.compile.families.fused import Fused, operand_shape
from aap_hw.compile.keys.address import Address


def fused_arguments(address: Address) -> tuple[Argument, ...]:
    """What the kernel reads, and its constants."""
    fused = Fused.of(address.key)
    shapes = [operand_shape(address, axes) for axes in fused.reads]
    read = activations(address.key, *shapes) if shapes else []
    return (*read, *[Argument("constant", operand_shape(address, axes)) for axes in fused.constants])


def value_at(expression: Expression, operands: Mapping[str, Any]) -> Any:
    """The value of an expression, in which each operand is read once."""
    counts = Counter(variables(expression))
    several = [name for name in operands if counts[name] > 1]

    def bound(names: list[str], values: Mapping[str, Any]) -> Any:
        if not names:
            return value_of(expression, values)
        return let(operands[names[0]], lambda name: bound(names[1:], {**values, names[0]: name}))

    return bound(several, operands)


@DEFINITIONS.register("elementwise")
def elementwise(address: Address) -> Definition:
    """An expression of tensors that are broadcast to the shape of an image."""
    fused = Fused.of(address.key)

    def value(inputs: Any, *index: Any) -> Any:
        def at(tensor: Any, axes: str) -> Any:
            return tensor(*[i if axis in axes else 0 for axis, i in zip(fused.order, index, strict=True)])

        read = zip(fused.operands.items(), inputs, strict=True)
        return value_at(fused.expression, {name: at(tensor, axes) for (name, axes), tensor in read})

    return Definition(fused_arguments(address), operand_shape(address), value)
