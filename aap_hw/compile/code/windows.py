"""What pooling makes of the windows of an image, as expressions of its pixels.

Where a window reaches beyond the image, its coordinates are cut to the image: the maximum of a window is the same with
an edge pixel seen twice, and averages weigh what lies outside with zero. So no lane of a vector is guarded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from operator import add
from typing import Any

from tvm import te, tirx

from aap_hw.compile.code.expressions import number
from aap_hw.compile.families.shape import pool_windows
from aap_hw.compile.keys.key import KernelKey


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
