"""Kernels that a tree of element-wise operators becomes: an expression of tensors that are broadcast.

A key reads ``elementwise 196x1 constants=c expr=add(x0,mul(c0,x1)) reads=yc+yc``: in the expression ``x0``, ``x1``, ...
are what the kernel reads and ``c0``, ``c1``, ... constants of the model; ``reads`` and ``constants`` say along which of
the axes n, y, x and c each of them has values of its own, ``1`` along none, and ``order`` how these axes lie. Axes of
length 1 are left out, so that the same work has the same key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from aap_hw.compile.families.expression import Expression, parse
from aap_hw.compile.families.family import FAMILIES, Family, Shape, image_shape, nothing
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey

# How axes lie in memory: those of images and rows, and of values that are cut along another axis than the last.
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
    """Shape of an operand, in the order of the key, with 1 along the axes that it has no values of its own along."""
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
