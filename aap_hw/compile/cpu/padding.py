"""Copies of images with zeros around them, or another number, for kernels whose windows reach over the edge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.expressions import number
from aap_hw.compile.cpu.emit import Steps, lanes_for, loop, scratch, spread, store, vector
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.keys.target import CpuTarget

Sides = tuple[int, int]
TOGETHER = 4
"""Registers that a turn of a loop fills which copies values and changes them."""


@dataclass(frozen=True)
class Border:
    """Images and the zeros around them.

    Attributes
    ----------
    batch, size : how many images, and their height and width.
    rows, columns : zeros above and below, and to the left and right.
    planar : the images lie as (N, C, H, W).
    """

    batch: int
    size: tuple[int, int]
    rows: Sides = (0, 0)
    columns: Sides = (0, 0)
    planar: bool = False

    @classmethod
    def of(cls, shape: ConvolutionShape) -> Border:
        """The border of a convolution."""
        return cls(shape.batch, shape.size, shape.rows.around, shape.columns.around, shape.planar)

    @property
    def is_copied(self) -> bool:
        """Whether the images with their zeros do not lie in memory as they are."""
        return self.planar or (self.rows, self.columns) != ((0, 0), (0, 0))

    @property
    def around(self) -> tuple[int, int]:
        """Height and width of the images with their zeros."""
        return self.size[0] + sum(self.rows), self.size[1] + sum(self.columns)


def padded_image(
    image: Any,
    border: Border,
    channels: int,
    target: CpuTarget,
    value: Any = 0.0,
    made: Callable[[Any, int], Any] | None = None,
    behind: int = 0,
) -> Any:
    """The images as a flat NHWC buffer with a value around them; not copied if there is nothing to change.

    ``made`` makes of vectors, given their lanes, what the copy holds; ``value`` is as it has to be. There is room for
    ``behind`` more values behind the last image.
    """
    if not border.is_copied and made is None:
        return image
    (height, width), (top, (left, right)) = border.size, (border.rows[0], border.columns)
    rows, row = border.around[0], border.around[1] * channels
    padded = scratch(border.batch * rows * row + behind, image.dtype)
    with loop(border.batch * rows, target) as r:
        n, y = T.bind(r // rows), T.bind(r % rows - top)
        start = T.bind(r * row)
        with T.If(tirx.all(y >= 0, y < height)):
            with T.Then():
                fill(padded, start, left * channels, target, value)
                if border.planar:
                    with T.serial(0, width) as x, T.serial(0, channels) as c:
                        source = ((n * channels + c) * height + y) * width + x
                        one = image[source] if made is None else made(image[source], 1)
                        T.buffer_store(padded, one, [start + (left + x) * channels + c])
                else:
                    copy(
                        image,
                        (n * height + y) * width * channels,
                        padded,
                        start + left * channels,
                        width * channels,
                        target,
                        made,
                    )
                fill(padded, start + (left + width) * channels, right * channels, target, value)
            with T.Else():
                fill(padded, start, row, target, value)
    return padded


def fill(buffer: Any, start: Any, length: int, target: CpuTarget, value: Any = 0.0) -> None:
    """Write one value ``length`` times, a number or a scalar of the buffer's type."""
    if length:
        steps = Steps(length, lanes_for(length, target, buffer.dtype))
        with T.serial(0, steps.count) as i:
            one = number(value, buffer.dtype) if isinstance(value, float) else value
            store(buffer, spread(one, steps.length), start + steps.start(i), steps.length)


def copy(
    source: Any,
    read: Any,
    buffer: Any,
    start: Any,
    length: int,
    target: CpuTarget,
    made: Callable[[Any, int], Any] | None = None,
) -> None:
    """Copy ``length`` values of another buffer, from ``read`` on, or what ``made`` makes of them."""
    lanes = lanes_for(length, target, buffer.dtype)
    if made is not None and length >= TOGETHER * lanes:
        lanes *= TOGETHER
    steps = Steps(length, lanes)
    with T.serial(0, steps.count) as i:
        at = T.bind(steps.start(i))
        values = vector(source, read + at, steps.length)
        store(buffer, values if made is None else made(values, steps.length), start + at, steps.length)
