"""Values read at computed places: rows of a table by index, and images at the points of a grid.

The text of a ``gather`` says what it reads: ``table=w[1,30522,o] index=x[128]`` takes 128 of the 30522 rows of one
learned table. An index beyond the table reads its last row.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from aap_hw.compile.families.family import FAMILIES, Family, Shape, nothing
from aap_hw.compile.families.slow import Operand, length_at
from aap_hw.compile.keys.address import Address
from aap_hw.errors import UserError

_OPERAND = re.compile(r"([xwc])\[([^\[\]]+)\]")


@dataclass(frozen=True)
class Gather:
    """A gather at fixed widths.

    Attributes
    ----------
    table : (tables, rows, values of a row).
    index : (rows taken,).
    """

    table: Operand
    index: Operand

    @staticmethod
    def of(address: Address) -> Gather:
        """Read it off a key, at its widths.

        Raises
        ------
        UserError : it is not the text of a gather.
        """
        widths = {"i": address.width_in, "o": address.width_out}
        operands = []
        try:
            for name, rank in (("table", 3), ("index", 1)):
                match = _OPERAND.fullmatch(address.key.attribute(name))
                assert match is not None
                shape = tuple(length_at(length, widths) for length in match[2].split(","))
                assert len(shape) == rank
                operands.append(Operand(match[1], shape))
        except (SyntaxError, ValueError, AssertionError) as problem:
            raise UserError(f"'{address.key}' is not a kernel of this version; profile the device again") from problem
        return Gather(*operands)

    @property
    def shape(self) -> Shape:
        """Of what is made."""
        return self.table.shape[0], *self.index.shape, self.table.shape[2]


def _taken(address: Address) -> list[Shape]:
    gather = Gather.of(address)
    return [each.shape for each in (gather.table, gather.index) if each.is_constant]


def _constants(address: Address) -> int:
    return sum(map(math.prod, _taken(address)))


def _sampled(address: Address) -> Shape:
    return address.key.batch, *address.key.along("to"), address.width_out


FAMILIES.register("gather")(Family(lambda address: Gather.of(address).shape, nothing, _constants, taken=_taken))
FAMILIES.register("grid_sample")(Family(_sampled, nothing, nothing))
