"""Kernels that a tree of element-wise operators becomes: an expression of tensors that are broadcast.

An example of a key is ``elementwise 196x1 constants=c expr=add(x0,mul(c0,x1)) reads=yc+yc``. In the expression, ``x0``,
``x1``, ... are the values that the kernel reads, and ``c0``, ``c1``, ... are constants of the model. ``reads`` and
``constants`` name the axes (n, y, x, c) that each operand has; it is broadcast along the others, and ``1`` stands for a
scalar. ``order`` is the order of the axes in memory. Axes of length 1 are left out, so that the same work always has
the same key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from aap_hw.compile.families.expression import Expression, parse
from aap_hw.compile.families.family import FAMILIES, Family, Shape, image_shape, nothing
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey

# The order of axes in memory: of images and rows, and of values whose channels are not the last axis.
AXES, PLANAR = "nyxc", "ncyx"
ALONE = "1"


@dataclass(frozen=True)
class Fused:
    """What a key says.

    Attributes
    ----------
    expression : of the values at one place.
    reads, constants : the axes of each operand.
    order : of the axes in memory.
    """

    expression: Expression
    reads: tuple[str, ...]
    constants: tuple[str, ...]
    order: str

    @staticmethod
    @lru_cache(maxsize=4096)
    def of(key: KernelKey) -> Fused:
        """Read it off a key."""
        reads, constants = (tuple(filter(None, key.attribute(name).split("+"))) for name in ("reads", "constants"))
        return Fused(parse(key.attribute("expr")), reads, constants, key.attribute("order", AXES))

    @property
    def operands(self) -> dict[str, str]:
        """The axes of each operand by its name in the expression, in calling order."""
        read = {f"x{i}": axes for i, axes in enumerate(self.reads)}
        return read | {f"c{i}": axes for i, axes in enumerate(self.constants)}


def operand_shape(address: Address, axes: str = AXES) -> Shape:
    """Shape of an operand, its axes in the key's order, with 1 for those along which it is broadcast."""
    extents = dict(zip(AXES, image_shape(address.key, address.width_out), strict=True))
    return tuple(extents[axis] if axis in axes else 1 for axis in Fused.of(address.key).order)


def constant_shapes(address: Address) -> list[Shape]:
    """Shapes of the constants, in order."""
    return [operand_shape(address, axes) for axes in Fused.of(address.key).constants]


FAMILIES.register("elementwise")(
    Family(
        output=operand_shape,
        multiply_accumulates=nothing,
        constants=lambda address: sum(map(math.prod, constant_shapes(address))),
        taken=constant_shapes,
    )
)
