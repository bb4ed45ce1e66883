"""Strided copies: values at regular places in one or several tensors, copied side by side into a new one.

A key describes a walk through each tensor, outermost loop first, with ``i`` and ``o`` for the widths read and made. For
example, ``x[588*i;3:i//3,196:i,64:1;64]`` is a tensor of 588 i values. The walk starts at value 64 and consists of
three loops, of 3, 196 and 64 steps, each with its stride. A loop such as ``56:i%2*i%56*i`` is cyclic: its position plus
2 i is taken modulo 56 i. If there are several tensors, each contributes a stretch to each of ``rows`` rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from aap_hw.compile.families.family import FAMILIES, Family, Shape, nothing
from aap_hw.compile.families.slow import CONSTANT, WEIGHT, length_at
from aap_hw.compile.keys.address import Address
from aap_hw.errors import UserError

_PART = re.compile(r"(?P<kind>[xwc])\[(?P<size>[^;\]]+);(?P<loops>[^;\]]*)(;(?P<offset>[^\]]+))?\]")


@dataclass(frozen=True)
class Wrap:
    """What makes a loop cyclic: its position plus ``shift`` is taken modulo ``modulus``, all in values."""

    shift: int
    modulus: int


@dataclass(frozen=True)
class Loop:
    """``length`` steps of ``stride`` values each. Loops with the same ``wrap`` are cyclic together."""

    length: int
    stride: int
    wrap: Wrap | None = None


@dataclass(frozen=True)
class Part:
    """A walk through one tensor.

    Attributes
    ----------
    kind : ``x``, or ``w`` and ``c`` for learned weights and other constants.
    size : values in the tensor.
    loops : outermost first.
    offset : where the first value is.
    """

    kind: str
    size: int
    loops: tuple[Loop, ...]
    offset: int = 0

    @property
    def values(self) -> int:
        """How many values are copied."""
        return math.prod(loop.length for loop in self.loops)

    @property
    def is_constant(self) -> bool:
        """Whether it does not depend on the network's input."""
        return self.kind in (WEIGHT, CONSTANT)


@dataclass(frozen=True)
class StridedCopy:
    """A strided copy at fixed widths; every row holds equally many values of each part."""

    parts: tuple[Part, ...]
    rows: int

    @staticmethod
    def of(address: Address) -> StridedCopy:
        """Read it off a key, at its widths.

        Raises
        ------
        UserError : it is not the text of a strided copy.
        """
        key, widths = address.key, {"i": address.width_in, "o": address.width_out}
        text, parts = key.attribute("parts"), list[Part]()
        try:
            while text:
                match = _PART.match(text)
                assert match is not None
                loops = tuple(_loop(each, widths) for each in match["loops"].split(",") if each)
                offset = length_at(match["offset"] or "0", widths)
                parts.append(Part(match["kind"], length_at(match["size"], widths), loops, offset))
                text = text[match.end() :]
            copy = StridedCopy(tuple(parts), length_at(key.attribute("rows", "1"), widths))
            assert parts
            assert all(part.values % copy.rows == 0 for part in parts)
            return copy
        except (SyntaxError, ValueError, AssertionError) as problem:
            raise UserError(f"'{key}' is not a kernel of this version; profile the device again") from problem

    @property
    def row(self) -> int:
        """Values in a row."""
        return sum(part.values for part in self.parts) // self.rows

    @property
    def shape(self) -> Shape:
        """Of what is made."""
        if len(self.parts) > 1:
            return self.rows, self.row
        return tuple(loop.length for loop in self.parts[0].loops) or (1,)


def _loop(text: str, widths: Mapping[str, int]) -> Loop:
    length, _, steps = text.partition(":")
    stride, *wrap = (length_at(each, widths) for each in steps.split("%"))
    return Loop(length_at(length, widths), stride, Wrap(*wrap) if wrap else None)


def _taken(address: Address) -> list[Shape]:
    return [(part.size,) for part in StridedCopy.of(address).parts if part.is_constant]


def _constants(address: Address) -> int:
    return sum(map(math.prod, _taken(address)))


FAMILIES.register("strided_copy")(
    Family(lambda address: StridedCopy.of(address).shape, nothing, _constants, taken=_taken)
)
