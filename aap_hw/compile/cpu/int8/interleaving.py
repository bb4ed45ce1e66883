"""Bytes of four rows side by side, for dot products down a column: which channels, rows and taps go together.

Vectors are interleaved within each 128 bits, as most such instructions do. So sums are in another order than the
channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.cpu.isa import GROUP
from aap_hw.compile.families.windows import Axis

LANE_BYTES = 16
"""Bytes within which vectors are interleaved."""


@dataclass(frozen=True)
class Block:
    """Channels that are computed together.

    Attributes
    ----------
    channels : how many.
    vectors : vectors of sums for them.
    pairs_apart : in a vector the first two rows of all its channels come first, and then the other two.
    """

    channels: int
    vectors: int
    pairs_apart: bool = False

    @classmethod
    def of(cls, channels: int, lanes: int) -> Block:
        """As many vectors as bytes have places within 128 bits; or as few as there can be of vectors of ``lanes``."""
        return cls(channels, max(channels // lanes, 1) if lanes else min(channels, LANE_BYTES) // GROUP)

    @property
    def lanes(self) -> int:
        """Sums of a vector."""
        return self.channels // self.vectors

    def channel(self, vector: int, lane: Any) -> Any:
        """Whose sum is in a lane of a vector; the lane may be an expression.

        Packed in pairs of vectors, as 16-bit numbers and then as bytes, the sums are in the order of the channels.
        """
        return lane // GROUP * (self.vectors * GROUP) + vector * GROUP + lane % GROUP

    @property
    def order(self) -> list[int]:
        """The channels vector by vector, lane by lane."""
        return [self.channel(v, lane) for v in range(self.vectors) for lane in range(self.lanes)]

    def interleaved(self, rows: Sequence[Any]) -> list[Any]:
        """Four vectors of bytes, as vectors with the four bytes of each channel side by side, or as two pairs."""
        if self.vectors * GROUP < LANE_BYTES:
            halves = [self._shuffled(rows[i : i + 2], range(2 * self.channels)) for i in (0, 2)]
            firsts = [next(i for i, other in enumerate(rows) if other is row) for row in rows]
            together = (firsts[:2], firsts[2:]) if self.pairs_apart else (firsts,)
            vectors = [self.order[v * self.lanes : (v + 1) * self.lanes] for v in range(self.vectors)]
            return [
                self._shuffled(halves, [first * self.channels + c for some in together for c in of for first in some])
                for of in vectors
            ]
        size = LANE_BYTES // 2 if self.pairs_apart else 2
        pairs = [self._halves(rows[i], rows[i + 1], 1) for i in (0, 2)]
        return [each for low, high in zip(*pairs, strict=True) for each in self._halves(low, high, size)]

    def _halves(self, one: Any, other: Any, size: int) -> list[Any]:
        """Units of so many bytes of two vectors in turn: those of the first half of each 128 bits, then the others."""
        half = LANE_BYTES // 2
        return [
            self._shuffled(
                [one, other],
                [
                    source * self.channels + first + start + unit + byte
                    for first in range(0, self.channels, LANE_BYTES)
                    for unit in range(0, half, size)
                    for source in (0, 1)
                    for byte in range(size)
                ],
            )
            for start in (0, half)
        ]

    @staticmethod
    def _shuffled(vectors: Sequence[Any], places: Sequence[int]) -> Any:
        return T.bind(tirx.Shuffle(list(vectors), list(places)))


@dataclass(frozen=True)
class Rows:
    """Rows of the output that are computed together, because they share quads: groups of four rows of the image.

    Attributes
    ----------
    axis : the windows down the image.
    count : rows of the output.
    """

    axis: Axis
    count: int

    @property
    def last(self) -> int:
        """Index of the last row of the image that is read, the first one having 0; ``dilation`` rows lie between."""
        return (self.count - 1) * self.axis.stride + self.axis.kernel - 1

    @property
    def quads(self) -> int:
        """How many quads are read."""
        return self.last // GROUP + 1

    def used(self, row: int) -> range:
        """The quads that an output row uses."""
        first = row * self.axis.stride
        return range(first // GROUP, (first + self.axis.kernel - 1) // GROUP + 1)

    @property
    def uses(self) -> list[tuple[int, int]]:
        """Rows of the output, and quads that each uses."""
        return [(row, quad) for row in range(self.count) for quad in self.used(row)]

    def tap(self, row: int, quad: int, place: int) -> int | None:
        """The row of a window of which a quad holds at a place what it multiplies, or None."""
        tap = quad * GROUP + place - row * self.axis.stride
        return tap if 0 <= tap < self.axis.kernel else None


def reached(axis: Axis, window: int) -> tuple[bool, ...]:
    """Which taps of a window lie within the image."""
    first = window * axis.stride - axis.padding
    return tuple(0 <= first + tap * axis.dilation < axis.size for tap in range(axis.kernel))
