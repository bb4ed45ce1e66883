"""Copies of images with zeros around them, or another number, for kernels whose windows reach over the edge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.expressions import number
from aap_hw.compile.cpu.emit import Steps, lanes_for, loop, scratch, spread, store, vector
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.keys.target import CpuTarget

Sides = tuple[int, int]


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
    def around(self) -> tuple[int, int]:
        """Height and width of the images with their zeros."""
        return self.size[0] + sum(self.rows), self.size[1] + sum(self.columns)


def padded_image(image: Any, border: Border, channels: int, target: CpuTarget, value: Any = 0.0) -> Any:
    """The images as a flat NHWC buffer with a value around them; not copied if there is nothing to change."""
    if border.rows == border.columns == (0, 0) and not border.planar:
        return image
    (height, width), (top, (left, right)) = border.size, (border.rows[0], border.columns)
    rows, row = border.around[0], border.around[1] * channels
    padded = scratch(border.batch * rows * row, image.dtype)
    with loop(border.batch * rows, target) as r:
        n, y = T.bind(r // rows), T.bind(r % rows - top)
        start = T.bind(r * row)
        with T.If(tirx.all(y >= 0, y < height)):
            with T.Then():
                fill(padded, start, left * channels, target, value)
                if border.planar:
                    with T.serial(0, width) as x, T.serial(0, channels) as c:
                        source = ((n * channels + c) * height + y) * width + x
                        T.buffer_store(padded, image[source], [start + (left + x) * channels + c])
                else:
                    copy(
                        image,
                        (n * height + y) * width * channels,
                        padded,
                        start + left * channels,
                        width * channels,
                        target,
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


def copy(source: Any, read: Any, buffer: Any, start: Any, length: int, target: CpuTarget) -> None:
    """Copy ``length`` values of another buffer, from ``read`` on."""
    steps = Steps(length, lanes_for(length, target, buffer.dtype))
    with T.serial(0, steps.count) as i:
        at = T.bind(steps.start(i))
        store(buffer, vector(source, read + at, steps.length), start + at, steps.length)
