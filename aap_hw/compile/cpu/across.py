"""Tiles along the columns of depthwise convolutions: a few pixels of a row, whose sums stay in registers.

Nothing is padded: taps that fall outside the image are left out, because the tiles at the left and right edge have code
of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.cpu.emit import Steps, store, vector
from aap_hw.compile.families.windows import Axis


@dataclass(frozen=True)
class Across:
    """The windows along the columns, in tiles of ``length`` of them."""

    columns: Axis
    length: int

    @property
    def steps(self) -> Steps:
        """Where tiles begin."""
        return Steps(self.columns.windows, self.length)

    @property
    def offsets(self) -> list[int]:
        """The pixels that a tile reads of one row, counted from the first one's."""
        axis = self.columns
        return sorted({p * axis.stride + rx * axis.dilation for p in range(self.length) for rx in range(axis.kernel)})

    def is_inside(self, x: int, offset: int) -> bool:
        """Whether the tile at ``x`` has a pixel of the image at an offset."""
        return 0 <= x * self.columns.stride + offset - self.columns.padding < self.columns.size

    def add_row(self, sums: Any, taps: Sequence[Any], pixel: Callable[[int], Any], x: Any, lanes: int) -> None:
        """Add what one row of the windows makes to the sums of the tile at ``x``.

        Of a place known as an integer, only the taps that exist are computed. ``pixel`` reads at an offset.
        """
        axis = self.columns
        # Pixel by pixel, so that each is loaded once for all the sums it belongs to.
        for offset in self.offsets:
            if isinstance(x, int) and not self.is_inside(x, offset):
                continue
            value = T.bind(pixel(offset))
            for p in range(self.length):
                rx, rest = divmod(offset - p * axis.stride, axis.dilation)
                if rest == 0 and 0 <= rx < axis.kernel:
                    store(sums, vector(sums, p * lanes, lanes) + value * taps[rx], p * lanes, lanes)

    def tile(self, i: Any, at: Callable[[Any], None]) -> None:
        """The i-th tile of a line; ``at`` writes the one at a place, which is an integer at the edges."""
        steps, offsets = self.steps, self.offsets
        # Tiles at a known place may lack taps; those between the first and the last few that do are all alike.
        whole = [all(self.is_inside(steps.start(j), offset) for offset in offsets) for j in range(steps.count)]
        inner = range(whole.index(True), steps.count - whole[::-1].index(True)) if True in whole else range(0)
        edges = [place for place in range(steps.count) if place not in inner]
        with ExitStack() as stack:
            for place in edges[: None if len(inner) else -1]:
                stack.enter_context(T.If(i == place))
                with T.Then():
                    at(steps.start(place))
                stack.enter_context(T.Else())
            at(T.bind(steps.start(i)) if len(inner) else steps.start(edges[-1]))
