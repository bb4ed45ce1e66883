"""Reductions along neighbouring axes: of (outer, reduced, inner) values as they lie, along the middle one.

A key holds the three lengths in ``shape``, with ``i`` and ``o`` for the widths read and made.
"""

from __future__ import annotations

from dataclasses import dataclass

from aap_hw.compile.families.family import FAMILIES, Family, Shape, nothing
from aap_hw.compile.families.slow import length_at
from aap_hw.compile.keys.address import Address
from aap_hw.errors import UserError

# What a reduction computes. ``norm`` is the square root of the sum of squares. Variances and standard deviations divide
# by the number of values minus ``correction``. The place of an extreme value is the first that it has.
KINDS = ("sum", "mean", "amax", "amin", "norm", "var", "std", "argmax", "argmin")


@dataclass(frozen=True)
class Reduction:
    """Lengths of a value before, along and behind the reduced axis."""

    outer: int
    reduced: int
    inner: int

    @staticmethod
    def of(address: Address) -> Reduction:
        """Read them off a key, at its widths.

        Raises
        ------
        UserError : it is no such key.
        """
        widths = {"i": address.width_in, "o": address.width_out}
        try:
            outer, reduced, inner = (length_at(text, widths) for text in address.key.attribute("shape").split(","))
        except (SyntaxError, ValueError) as problem:
            message = f"'{address.key}' is not a kernel of this version; profile the device again"
            raise UserError(message) from problem
        return Reduction(outer, reduced, inner)

    @property
    def source(self) -> Shape:
        """Shape of what is read."""
        return self.outer, self.reduced, self.inner

    @property
    def output(self) -> Shape:
        """Shape of the result."""
        return self.outer, self.inner


FAMILIES.register("reduce")(Family(lambda address: Reduction.of(address).output, nothing, nothing))
