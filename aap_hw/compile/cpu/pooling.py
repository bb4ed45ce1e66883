"""Light kernels that summarise pixels: pooling over windows and over whole images.

Where a window reaches beyond the image, its coordinates are cut to the image: the maximum of a window is the same with
an edge pixel seen twice, and averages weigh what lies outside with zero. So no lane of a vector is guarded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import add
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.cpu.emit import Steps, constant, lanes_for, store, vector
from aap_hw.compile.cpu.loops import activations, channel_loop, image_shape, light_kernel, row_loop
from aap_hw.compile.families.shape import pool_windows
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import CpuTarget

# Independent vectors that hide the latency of an addition.
VECTORS_AT_ONCE = 4


@dataclass(frozen=True)
class Axis:
    """How windows lie along the height or the width of an image."""

    size: int
    kernel: int
    stride: int
    padding: int
    ceil: bool

    @property
    def windows(self) -> int:
        """How many there are."""
        return pool_windows(self.size, self.kernel, self.stride, self.padding, self.ceil)

    @property
    def reaches_outside(self) -> bool:
        """Whether some window has elements that are not of the image."""
        return self.padding > 0 or (self.windows - 1) * self.stride + self.kernel > self.size

    def elements(self, window: Any) -> list[Any]:
        """Coordinates of a window's elements, those outside cut to the edge."""
        first = window * self.stride - self.padding
        if not self.reaches_outside:
            return [first + i for i in range(self.kernel)]
        return [te.max(te.min(first + i, self.size - 1), 0) for i in range(self.kernel)]

    def weights(self, window: Any) -> list[Any]:
        """1 for the elements of a window that are in the image, 0 for the others."""
        first = window * self.stride - self.padding
        inside = [tirx.all(first + i >= 0, first + i < self.size) for i in range(self.kernel)]
        return [tirx.Cast("float32", is_inside) for is_inside in inside]

    def counted(self, window: Any, with_padding: bool) -> Any:
        """Elements that an average is divided by; what ``ceil`` adds beyond the padding never counts."""
        first = window * self.stride - self.padding
        around = self.padding if with_padding else 0
        return te.min(first + self.kernel, self.size + around) - te.max(first, -around)


def axes_of(key: KernelKey) -> tuple[Axis, Axis]:
    """How the windows of a pooling key lie along the height and the width."""
    ceil = bool(key.attribute("ceil"))
    sizes, kernel, stride, padding = key.size, key.pair("kernel"), key.pair("stride"), key.pair("padding")
    height, width = (Axis(sizes[i], kernel[i], stride[i], padding[i], ceil) for i in range(2))
    return height, width


Pixel = Callable[[Any, Any], Any]
Summary = Callable[[Pixel, Any, Any], Any]
"""The value of the window (y, x), given the values of an image by row and column."""


def largest_of(key: KernelKey) -> Summary:
    """The largest value of each window."""
    height, width = axes_of(key)

    def largest(pixel: Pixel, y: Any, x: Any) -> Any:
        values = [pixel(row, column) for row in height.elements(y) for column in width.elements(x)]
        return functools.reduce(te.max, values)

    return largest


def mean_of(key: KernelKey) -> Summary:
    """The mean of each window; with ``padding_counts=no``, of its elements in the image."""
    height, width = axes_of(key)
    with_padding = key.attribute("padding_counts") != "no"

    def mean(pixel: Pixel, y: Any, x: Any) -> Any:
        rows, columns = height.elements(y), width.elements(x)
        if not (height.reaches_outside or width.reaches_outside):
            total = functools.reduce(add, [pixel(row, column) for row in rows for column in columns])
            return total * number(1 / (height.kernel * width.kernel))
        in_row = width.weights(x)
        sums = [
            functools.reduce(add, [pixel(row, column) * w for column, w in zip(columns, in_row, strict=True)]) * weight
            for row, weight in zip(rows, height.weights(y), strict=True)
        ]
        counted = height.counted(y, with_padding) * width.counted(x, with_padding)
        return functools.reduce(add, sums) * (number(1.0) / tirx.Cast("float32", counted))

    return mean


def max_pool(key: KernelKey, channels: int, _: int, target: CpuTarget) -> KernelFunction:
    """The largest value of each window."""
    return _pool(key, channels, target, largest_of(key))


def average_pool(key: KernelKey, channels: int, _: int, target: CpuTarget) -> KernelFunction:
    """The mean of each window."""
    return _pool(key, channels, target, mean_of(key))


def _pool(key: KernelKey, channels: int, target: CpuTarget, summary: Summary) -> KernelFunction:
    height, width = axes_of(key)
    shape = (key.batch, height.windows, width.windows, channels)

    def body(image: Any, output: Any) -> None:
        with row_loop(key.batch * height.windows, target, math.prod(shape)) as line:
            n, y = line // height.windows, line % height.windows
            with T.serial(0, width.windows) as x, channel_loop(channels, target) as c:
                value = summary(
                    lambda row, column: image[((n * height.size + row) * width.size + column) * channels + c], y, x
                )
                T.buffer_store(output, value, [(line * width.windows + x) * channels + c])

    return light_kernel(activations(image_shape(key, channels)), shape, body)


def global_average_pool(key: KernelKey, channels: int, _: int, target: CpuTarget) -> KernelFunction:
    """The mean of each channel over a whole image, a few vectors of channels at a time."""
    area = key.size[0] * key.size[1]
    lanes = lanes_for(channels, target)
    count = _vectors_at_once(channels, lanes)
    blocks = Steps(channels, count * lanes)

    def body(image: Any, output: Any) -> None:
        with row_loop(key.batch * blocks.count, target, key.batch * area * channels) as block:
            n, first = T.bind(block // blocks.count), T.bind(blocks.start(block % blocks.count))
            sums = T.alloc_buffer((count * lanes,), "float32", scope="local")
            for v in range(count):
                store(sums, constant(0.0, lanes), v * lanes, lanes)
            with T.serial(0, area) as pixel:
                at = T.bind((n * area + pixel) * channels + first)
                for v in range(count):
                    total = vector(sums, v * lanes, lanes) + vector(image, at + v * lanes, lanes)
                    store(sums, total, v * lanes, lanes)
            for v in range(count):
                mean = vector(sums, v * lanes, lanes) * constant(1 / area, lanes)
                store(output, mean, n * channels + first + v * lanes, lanes)

    return light_kernel(activations(image_shape(key, channels)), (key.batch, 1, 1, channels), body)


def _vectors_at_once(channels: int, lanes: int) -> int:
    """Vectors summed together: a few, unless the last of them would then have much to do again."""

    def cost(count: int) -> tuple[int, int]:
        blocks = Steps(channels, count * lanes).count
        return blocks * max(count, VECTORS_AT_ONCE), blocks * count

    return min(range(1, min(channels // lanes, 2 * VECTORS_AT_ONCE) + 1), key=cost)
