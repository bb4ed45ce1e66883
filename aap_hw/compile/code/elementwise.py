"""Element-wise kernels: a function of the values at one index of one or several tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from aap_hw.compile.code.definition import DEFINITIONS, Definition
from aap_hw.compile.code.expressions import ACTIVATIONS
from aap_hw.compile.code.function import activations, apply_epilogue, factors
from aap_hw.compile.families import image_shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey


class Reach(Enum):
    """What a tensor holds one value for."""

    PLACE = "each value of the image"
    IMAGE = "each channel of each image"
    CHANNEL = "each channel"


@dataclass(frozen=True)
class Operation:
    """A function of the values at one index, and what each of its operands holds a value for."""

    operands: tuple[Reach, ...]
    function: Callable[..., Any]


def scaled_and_shifted(value: Any, scale: Any, shift: Any) -> Any:
    """A batch normalisation as a factor and a summand."""
    return value * scale + shift


OPERATIONS: dict[str, Operation] = {
    **{name: Operation((Reach.PLACE,), function) for name, function in ACTIVATIONS.items()},
    # Into another type, as the precision of its key says.
    "cast": Operation((Reach.PLACE,), lambda value: value),
    "add": Operation((Reach.PLACE, Reach.PLACE), operator.add),
    "mul": Operation((Reach.PLACE, Reach.PLACE), operator.mul),
    "scale_channels": Operation((Reach.PLACE, Reach.IMAGE), operator.mul),
    "affine": Operation((Reach.PLACE, Reach.CHANNEL, Reach.CHANNEL), scaled_and_shifted),
}


def operation_of(key: KernelKey) -> Operation:
    """What a key computes, its epilogue included."""
    operation = OPERATIONS[key.op]

    def function(*values: Any) -> Any:
        return apply_epilogue(operation.function(*values), key.epilogue, None, None)

    return Operation(operation.operands, function)


@DEFINITIONS.register(*OPERATIONS)
def element_wise(address: Address) -> Definition:
    """Activations, sums, products, images times a factor a channel, batch normalisations."""
    key, channels = address.key, address.width_in
    operation, shape = operation_of(key), image_shape(key, channels)
    shapes = {Reach.PLACE: shape, Reach.IMAGE: (key.batch, 1, 1, channels)}
    tensors = activations(key, *[shapes[reach] for reach in operation.operands if reach in shapes])
    constants = factors(key, channels) if Reach.CHANNEL in operation.operands else []

    def value(inputs: Any, n: Any, y: Any, x: Any, c: Any) -> Any:
        places = {Reach.PLACE: (n, y, x, c), Reach.IMAGE: (n, 0, 0, c), Reach.CHANNEL: (c,)}
        operands = zip(inputs, operation.operands, strict=True)
        return operation.function(*[tensor(*places[reach]) for tensor, reach in operands])

    return Definition((*tensors, *constants), shape, value)
