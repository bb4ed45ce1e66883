"""Copies of images with zeros around them, for kernels whose windows reach over the edge."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.cpu.emit import Steps, constant, lanes_for, loop, scratch, store, vector
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.keys.target import CpuTarget


def padded_image(
    image: Any, shape: ConvolutionShape, channels: int, target: CpuTarget, padding: tuple[int, int] | None = None
) -> Any:
    """The image as a flat NHWC buffer with zeros around it, as its shape says or as given; itself if it is that."""
    (height, width), (top, left) = shape.size, shape.padding if padding is None else padding
    if (top, left) == (0, 0) and not shape.planar:
        return image
    rows, row = height + 2 * top, (width + 2 * left) * channels
    padded = scratch(shape.batch * rows * row, image.dtype)
    with loop(shape.batch * rows, target) as r:
        n, y = T.bind(r // rows), T.bind(r % rows - top)
        start = T.bind(r * row)
        with T.If(tirx.all(y >= 0, y < height)):
            with T.Then():
                _fill(padded, start, left * channels, target)
                if shape.planar:
                    with T.serial(0, width) as x, T.serial(0, channels) as c:
                        source = ((n * channels + c) * height + y) * width + x
                        T.buffer_store(padded, image[source], [start + (left + x) * channels + c])
                else:
                    _copy(
                        image,
                        (n * height + y) * width * channels,
                        padded,
                        start + left * channels,
                        width * channels,
                        target,
                    )
                _fill(padded, start + (left + width) * channels, left * channels, target)
            with T.Else():
                _fill(padded, start, row, target)
    return padded


def _fill(buffer: Any, start: Any, length: int, target: CpuTarget) -> None:
    if length:
        steps = Steps(length, lanes_for(length, target, buffer.dtype))
        with T.serial(0, steps.count) as i:
            store(buffer, constant(0.0, steps.length, buffer.dtype), start + steps.start(i), steps.length)


def _copy(source: Any, read: Any, buffer: Any, start: Any, length: int, target: CpuTarget) -> None:
    steps = Steps(length, lanes_for(length, target, buffer.dtype))
    with T.serial(0, steps.count) as i:
        at = T.bind(steps.start(i))
        store(buffer, vector(source, read + at, steps.length), start + at, steps.length)
