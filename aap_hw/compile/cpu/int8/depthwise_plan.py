"""How a depthwise convolution of bytes goes through its channels and pixels, and how its weights are packed for that.

Nothing is padded. Taps above or below the image have weights of zero, and rows at the edge are read in their place; so
there are weights for each kind of place along the rows. Columns beside the image are left out by the code. The sums
begin with the zero points of the taps that there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.cpu.emit import Steps
from aap_hw.compile.cpu.int8.interleaving import Block, Rows, reached
from aap_hw.compile.cpu.isa import GROUP, DotProduct, dense_product, has_byte_shuffles
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.families.windows import Axis
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget

MOST_ROWS = 2
"""Rows of a tile at most."""
MOST_KINDS = 8
"""Kinds of places along the rows for which there are weights; an image that has more is padded."""
OVERHEAD = 16
"""Cost of a block of channels beside its bytes, in bytes."""


@dataclass(frozen=True)
class Plan:
    """How a kernel goes through its channels and pixels.

    Attributes
    ----------
    shape : its sizes.
    is_padded : the image is copied, with the zero point around it. ``shape`` is that of the copy.
    looks_ahead : turns of the loop along a row do parts of the turns before and behind; there are registers for that.
    """

    shape: ConvolutionShape
    is_padded: bool
    channels: int
    block: Block
    dot: DotProduct
    rows: Rows
    looks_ahead: bool = True

    @classmethod
    def of(cls, address: Address, target: CpuTarget) -> Plan:
        """The plan of a kernel for a CPU."""
        shape, channels = ConvolutionShape.of(address.key), address.width_out
        read = max(channels, GROUP)
        most, lanes = target.lanes_of("uint8"), target.lanes_of("int32") if has_byte_shuffles(target) else 0
        # With such shuffles, two vectors of sums and their weights fit the registers.
        sizes = [2**n for n in range(2, (2 * lanes or most).bit_length()) if 2**n <= read]
        block = Block.of(min(sizes, key=lambda size: Steps(read, size).count * (size + OVERHEAD)), lanes)
        # With gaps between the rows that a window reads, the rows of two windows lie between each other.
        count = min(MOST_ROWS, shape.out_height) if shape.rows.dilation == 1 else 1
        dot = dense_product(block.lanes, target)
        block = replace(block, pairs_apart=dot.pairs_apart)
        if target.registers < 32 and dot.add_halves is None:
            count = 1  # with which nothing is spilled
        # And of windows with more than four rows the registers hold one row's sums.
        several = [Rows(shape.rows, rows) for rows in range(count, 1, -1)]
        rows = next((rows for rows in several if rows.quads == 1), Rows(shape.rows, 1))
        plan = cls(shape, False, channels, block, dot, rows, bool(lanes))
        is_copied = shape.planar and address.width_in == channels
        return plan._padded() if is_copied or len(plan.kinds) > MOST_KINDS else plan

    def _padded(self) -> Plan:
        shape = replace(self.shape, rows=_padded(self.shape.rows), columns=_padded(self.shape.columns), planar=False)
        return replace(self, shape=shape, is_padded=True, rows=replace(self.rows, axis=shape.rows))

    @property
    def down(self) -> Steps:
        """Tiles along the rows."""
        return Steps(self.shape.out_height, self.rows.count)

    @property
    def deep(self) -> Steps:
        """Blocks over the channels."""
        return Steps(max(self.channels, GROUP), self.block.channels)

    @property
    def order(self) -> np.ndarray:
        """Channels of all blocks in the order of the sums; of places behind the last channel, that one."""
        starts = np.array([[self.deep.start(i)] for i in range(self.deep.count)])
        channels: np.ndarray = np.minimum(starts + np.array(self.block.order), self.channels - 1)
        return channels.ravel()

    @property
    def kinds(self) -> list[int]:
        """The tiles along the rows from which on other taps are reached than before."""
        reached = [self._reached(i) for i in range(self.down.count)]
        return [i for i, taps in enumerate(reached) if i == 0 or taps != reached[i - 1]]

    @property
    def reads_outside(self) -> bool:
        """Whether some tile has rows above or below the image."""
        axis = self.shape.rows
        end = self.down.start(self.down.count - 1) * axis.stride - axis.padding + self.rows.last * axis.dilation
        return axis.padding > 0 or end >= axis.size

    def kind(self, i: Any) -> Any:
        """Which kind the i-th of them is."""
        return sum((T.Cast("int32", i >= first) for first in self.kinds[1:]), T.int32(0))

    def _reached(self, i: int) -> list[tuple[bool, ...]]:
        """For each row of the i-th tile, which rows of the windows lie within the image."""
        return [reached(self.shape.rows, self.down.start(i) + row) for row in range(self.rows.count)]

    @property
    def ends(self) -> list[tuple[bool, ...]]:
        """All that can be reached of the columns of a window."""
        columns = self.shape.columns
        return sorted({reached(columns, x) for x in range(columns.windows)} | {(True,) * columns.kernel})

    @property
    def windows(self) -> np.ndarray:
        """(kind of tile, row, kind of column) of windows: for each which taps there are, as one axis of them all."""
        taps = [
            np.outer(rows, columns).ravel()
            for first in self.kinds
            for rows in self._reached(first)
            for columns in self.ends
        ]
        return np.array(taps)

    def window(self, kind: Any, row: int, columns: tuple[bool, ...]) -> Any:
        """Where such a window stands in ``windows``."""
        return (kind * self.rows.count + row) * len(self.ends) + self.ends.index(columns)

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """(kind, block, use of a quad, column, vector), and then (lane, place) or, in halves, (parity, lane, pair)."""
        block, numbers = self.block, (2, self.block.lanes, 2) if self.in_halves else (self.block.lanes, GROUP)
        steps = len(self.kinds), self.deep.count, len(self.rows.uses), self.shape.kernel[1]
        return *steps, block.vectors, *numbers

    @property
    def in_halves(self) -> bool:
        """Whether weights are 16-bit numbers, those of even places and those of odd ones."""
        return self.dot.add_halves is not None

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """The weights as ``packed_shape`` says, zero where a quad has rows that a window does not read."""
        filters = weight.reshape(self.channels, *self.shape.kernel)[self.order]
        kinds, blocks, uses, columns, vectors, *_ = self.packed_shape
        packed = np.zeros((kinds, blocks, uses, columns, vectors * self.block.lanes, GROUP), np.int8)
        for kind, first in enumerate(self.kinds):
            inside = self._reached(first)
            for use, (row, quad) in enumerate(self.rows.uses):
                for place in range(GROUP):
                    tap = self.rows.tap(row, quad, place)
                    if tap is not None and inside[row][tap]:
                        of_tap = filters[:, tap].reshape(blocks, -1, columns)
                        packed[kind, :, use, :, :, place] = of_tap.transpose(0, 2, 1)
        pairs = packed.reshape(*packed.shape[:4], vectors, self.block.lanes, 2, 2)
        if not self.in_halves:
            return (pairs.swapaxes(-2, -3) if self.block.pairs_apart else pairs).reshape(self.packed_shape)
        pairs = pairs.astype(np.int16)
        return np.ascontiguousarray(pairs.transpose(0, 1, 2, 3, 4, 7, 5, 6))

    def reached(self, x: Any) -> tuple[bool, ...]:
        """Which columns of a window of the output lie within the image; all, where ``x`` is an expression."""
        columns = self.shape.columns
        return reached(columns, x) if isinstance(x, int) else (True,) * columns.kernel

    @property
    def inner(self) -> range:
        """The windows of a row that lie within the image."""
        windows = range(self.shape.out_width)
        found = [x for x in windows if all(self.reached(x))]
        return range(found[0], found[-1] + 1) if found else range(0)

    @property
    def together(self) -> int:
        """Pixels of a turn of that loop."""
        return 3 if self.in_halves else 1

    @property
    def is_gathered(self) -> bool:
        """Whether quads wait until a window has all of its columns, or else sums wait for their next column.

        What takes fewer registers.
        """
        columns, rows = self.shape.kernel[1], self.rows
        return columns * rows.quads + rows.count <= columns * rows.count + rows.quads

    @property
    def overlap(self) -> int:
        """How many columns the windows of a pixel and of the next have in common, gaps between columns included."""
        return max(self.shape.columns.reach - self.shape.columns.stride, 0)

    def uses(self, column: int) -> list[tuple[int, int]]:
        """The pixels that use a column, and with which tap; both are counted from those of a pixel's window."""
        columns = self.shape.columns
        places = [(column - rx * columns.dilation, rx) for rx in range(columns.kernel)]
        return [(at // columns.stride, rx) for at, rx in places if at >= 0 and at % columns.stride == 0]


def _padded(axis: Axis) -> Axis:
    return replace(axis, size=axis.size + sum(axis.around), padding=0, padding_end=0)


def weights_of_vector(plan: Plan) -> int:
    """How many numbers stand for a vector's weights."""
    return math.prod(plan.packed_shape[5:])
