"""Pooling: the value of each window of an image, as an expression of its pixels.

Where a window reaches beyond the image, its coordinates are cut to the image. The maximum is unchanged by an edge pixel
that is read twice, and averages give elements outside a weight of zero. So no lane of a vector needs a guard.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from operator import add
from typing import Any

from tvm import te, tirx

from aap_hw.compile.code.definition import DEFINITIONS, Definition
from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import activations
from aap_hw.compile.families import family_of, image_shape
from aap_hw.compile.families.windows import Axis, axes_of
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import FLOAT32


def _elements(axis: Axis, window: Any) -> list[Any]:
    """Coordinates of a window's elements; those outside the image are moved to the nearest element inside."""
    first = window * axis.stride - axis.padding
    if not axis.reaches_outside:
        return [first + i * axis.dilation for i in range(axis.kernel)]
    low, high, step = 0, axis.size - 1, axis.dilation
    if step > 1:  # with dilation, the edge pixel may not belong to the window
        low, high = tirx.floormod(first, step), high - tirx.floormod(high - first, step)
    return [te.max(te.min(first + i * step, high), low) for i in range(axis.kernel)]


def _weights(axis: Axis, window: Any) -> list[Any]:
    """1 for the elements of a window that are in the image, 0 for the others."""
    first = window * axis.stride - axis.padding
    inside = [tirx.all(first + i >= 0, first + i < axis.size) for i in range(axis.kernel)]
    return [tirx.Cast(FLOAT32, is_inside) for is_inside in inside]


def _counted(axis: Axis, window: Any, with_padding: bool) -> Any:
    """The divisor of an average; elements that ``ceil`` adds beyond the padding never count."""
    first = window * axis.stride - axis.padding
    around = axis.padding if with_padding else 0
    return te.min(first + axis.kernel, axis.size + around) - te.max(first, -around)


Pixel = Callable[[Any, Any], Any]
Summary = Callable[[Pixel, Any, Any], Any]
"""The value of the window (y, x), given the values of an image by row and column."""


def _largest_of(key: KernelKey) -> Summary:
    """The largest value of each window."""
    height, width = axes_of(key)

    def largest(pixel: Pixel, y: Any, x: Any) -> Any:
        values = [pixel(row, column) for row in _elements(height, y) for column in _elements(width, x)]
        return functools.reduce(te.max, values)

    return largest


def _mean_of(key: KernelKey) -> Summary:
    """The mean of each window; with ``padding_counts=no``, of its elements in the image; or its sum by a divisor."""
    height, width = axes_of(key)
    with_padding, divisor = key.attribute("padding_counts") != "no", key.attribute("divisor")

    def mean(pixel: Pixel, y: Any, x: Any) -> Any:
        rows, columns = _elements(height, y), _elements(width, x)
        if not (height.reaches_outside or width.reaches_outside):
            total = functools.reduce(add, [pixel(row, column) for row in rows for column in columns])
            return total * number(1 / (int(divisor) if divisor else height.kernel * width.kernel))
        in_row = _weights(width, x)
        sums = [
            functools.reduce(add, [pixel(row, column) * w for column, w in zip(columns, in_row, strict=True)]) * weight
            for row, weight in zip(rows, _weights(height, y), strict=True)
        ]
        if divisor:
            return functools.reduce(add, sums) * number(1 / int(divisor))
        counted = _counted(height, y, with_padding) * _counted(width, x, with_padding)
        return functools.reduce(add, sums) * (number(1.0) / tirx.Cast(FLOAT32, counted))

    return mean


@DEFINITIONS.register("max_pool2d", "avg_pool2d", "sum_pool2d")
def pool(address: Address) -> Definition:
    """Maximum or mean of windows."""
    key = address.key
    summary = _largest_of(key) if key.op == "max_pool2d" else _mean_of(key)

    def value(inputs: Any, n: Any, y: Any, x: Any, c: Any) -> Any:
        return summary(lambda row, column: inputs[0](n, row, column, c), y, x)

    tensors = activations(key, image_shape(key, address.width_in))
    return Definition(tuple(tensors), family_of(key).output(address), value)
