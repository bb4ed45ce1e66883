"""Kernels that move channels and pixels, each in the order in which reading and writing memory is fastest.

Where each value comes from is what `code.movement` defines.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code import DEFINITIONS
from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.movement import padded_place
from aap_hw.compile.cpu.emit import loop
from aap_hw.compile.cpu.kernels import KERNELS
from aap_hw.compile.cpu.loops import channel_loop, light_kernel, pixel_loop, row_loop
from aap_hw.compile.cpu.padding import copy, fill
from aap_hw.compile.families import family_of
from aap_hw.compile.families.movement import PADDING_MODES, borders_of, slice_start, zeros_before
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


@KERNELS.register("to_nhwc")
def to_nhwc(address: Address, target: CpuTarget) -> KernelFunction:
    """Pixel by pixel."""
    definition, area = DEFINITIONS["to_nhwc"](address), math.prod(address.key.image)
    channels = address.width_in

    def body(image: Any, output: Any) -> None:
        with pixel_loop(definition.shape, target) as pixel:
            first = T.bind(pixel // area * (channels * area) + pixel % area)
            with T.serial(0, channels) as c:
                T.buffer_store(output, image[first + c * area], [pixel * channels + c])

    return light_kernel(address.key, definition.arguments, definition.shape, body)


@KERNELS.register("to_nchw", "flatten")
def planar(address: Address, target: CpuTarget) -> KernelFunction:
    """Channel by channel."""
    definition, area = DEFINITIONS[address.key.op](address), math.prod(address.key.image)
    channels = address.width_in
    planes = address.key.batch * channels

    def body(image: Any, output: Any) -> None:
        with row_loop(planes, target, planes * area) as plane:
            first = T.bind(plane // channels * (area * channels) + plane % channels)
            with T.serial(0, area) as pixel:
                T.buffer_store(output, image[first + pixel * channels], [plane * area + pixel])

    return light_kernel(address.key, definition.arguments, definition.shape, body)


@KERNELS.register("subsample")
def subsample(address: Address, target: CpuTarget) -> KernelFunction:
    """Whole pixels."""
    definition, (height, width) = DEFINITIONS["subsample"](address), address.key.image
    _, rows, columns, channels = definition.shape
    down, across = address.key.along("stride")

    def body(image: Any, output: Any) -> None:
        with pixel_loop(definition.shape, target) as pixel:
            row, x = pixel // columns, pixel % columns
            n, y = row // rows, row % rows
            source = T.bind((n * height + y * down) * width + x * across)
            with channel_loop(channels, target, output.dtype) as c:
                T.buffer_store(output, image[source * channels + c], [pixel * channels + c])

    return light_kernel(address.key, definition.arguments, definition.shape, body)


@KERNELS.register("pad_channels", "pad")
def padded(address: Address, target: CpuTarget) -> KernelFunction:
    """An image among zeros or another number, or among copies of its own pixels."""
    definition, filling = DEFINITIONS[address.key.op](address), float(address.key.attribute("value", "0"))

    def body(image: Any, output: Any) -> None:
        write_padded(address, target, image, output, number(filling, output.dtype))

    return light_kernel(address.key, definition.arguments, definition.shape, body)


def write_padded(address: Address, target: CpuTarget, image: Any, output: Any, filling: Any) -> None:
    """Write the loops of a ``pad_channels`` or ``pad`` kernel, which puts a scalar where there is no image."""
    write = _write_channels if address.key.op == "pad_channels" else _write_rows
    write(address, target, image, output, filling)


def _write_channels(address: Address, target: CpuTarget, image: Any, output: Any, filling: Any) -> None:
    """The filling, the image, and the filling."""
    shape, before = family_of(address.key).output(address), zeros_before(address)
    width_in, width_out = address.width_in, address.width_out

    def fill_channels(first: Any, count: int) -> None:
        if count:
            with channel_loop(count, target) as c:
                T.buffer_store(output, filling, [first + c])

    with pixel_loop(shape, target) as pixel:
        fill_channels(pixel * width_out, before)
        with channel_loop(width_in, target) as c:
            T.buffer_store(output, image[pixel * width_in + c], [pixel * width_out + before + c])
        fill_channels(pixel * width_out + before + width_in, width_out - before - width_in)


def _write_rows(address: Address, target: CpuTarget, image: Any, output: Any, filling: Any) -> None:
    """Row by row: what lies before the image, the image's row as it is, what lies behind."""
    key, channels = address.key, address.width_in
    (batch, rows, columns, _), (height, width) = family_of(key).output(address), key.image
    (top, bottom), (left, right) = borders_of(key)
    mode = key.attribute("mode", PADDING_MODES[0])

    with row_loop(batch * rows, target, batch * rows * columns * channels) as line:
        y, start = T.bind(line % rows - top), T.bind(line * columns * channels)
        source = T.bind((line // rows * height + padded_place(mode, y, height)) * width * channels)

        def pixel(x: int) -> None:
            at = start + (left + x) * channels
            if mode == "constant":
                fill(output, at, channels, target, filling)
            else:
                copy(image, source + padded_place(mode, x, width) * channels, output, at, channels, target)

        def row() -> None:
            for count, first in ((left, -left), (right, width)):
                with loop(count) as i:
                    pixel(first + i)
            copy(image, source, output, start + left * channels, width * channels, target)

        if mode == "constant" and (top or bottom):
            with T.If(tirx.all(y >= 0, y < height)):
                with T.Then():
                    row()
                with T.Else():
                    fill(output, start, columns * channels, target, filling)
        else:
            row()


@KERNELS.register("channel_slice")
def channel_slice(address: Address, target: CpuTarget) -> KernelFunction:
    """A piece of each pixel."""
    definition, first = DEFINITIONS["channel_slice"](address), slice_start(address)
    width_in, width_out = address.width_in, address.width_out

    def body(image: Any, output: Any) -> None:
        with pixel_loop(definition.shape, target) as pixel, channel_loop(width_out, target, output.dtype) as c:
            T.buffer_store(output, image[pixel * width_in + first + c], [pixel * width_out + c])

    return light_kernel(address.key, definition.arguments, definition.shape, body)


@KERNELS.register("channel_shuffle")
def channel_shuffle(address: Address, target: CpuTarget) -> KernelFunction:
    """One channel of each group at a time."""
    definition, channels = DEFINITIONS["channel_shuffle"](address), address.width_in
    groups = int(address.key.attribute("groups"))
    each = channels // groups

    def body(image: Any, output: Any) -> None:
        # LLVM merges the strided stores of one iteration into whole vectors, here and below.
        with pixel_loop(definition.shape, target) as pixel, T.serial(0, each) as c:
            for g in range(groups):
                T.buffer_store(output, image[pixel * channels + g * each + c], [pixel * channels + c * groups + g])

    return light_kernel(address.key, definition.arguments, definition.shape, body)


@KERNELS.register("interleave")
def interleave(address: Address, target: CpuTarget) -> KernelFunction:
    """One channel of each image at a time."""
    definition, channels = DEFINITIONS["interleave"](address), address.width_in
    parts = len(definition.arguments)
    each = channels // parts

    def body(*buffers: Any) -> None:
        *images, output = buffers
        with pixel_loop(definition.shape, target) as pixel, T.serial(0, each) as c:
            for i, image in enumerate(images):
                T.buffer_store(output, image[pixel * each + c], [pixel * channels + c * parts + i])

    return light_kernel(address.key, definition.arguments, definition.shape, body)
