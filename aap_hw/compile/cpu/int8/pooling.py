"""Pooling of bytes: the largest of a window, which keeps its scale, and means, whose sums are whole numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code import DEFINITIONS
from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import KernelFunction, activations, apply_epilogue
from aap_hw.compile.code.quantized import Number, unclipped
from aap_hw.compile.cpu.emit import Steps, lane_loop, lanes_for, registers, spread, store, vector
from aap_hw.compile.cpu.int8.epilogue import Numbers, made_of
from aap_hw.compile.cpu.int8.light import numbered_kernel
from aap_hw.compile.cpu.isa import GROUP
from aap_hw.compile.cpu.kernels import QUANTIZED
from aap_hw.compile.cpu.loops import channel_loop, light_kernel, row_loop
from aap_hw.compile.cpu.pooling import vectors_at_once
from aap_hw.compile.families import image_shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import FLOAT32
from aap_hw.compile.keys.target import CpuTarget

SUMMED_IN_HALVES = 256
"""Bytes whose sum has room in 16 bits."""


@QUANTIZED.register("max_pool2d")
def largest(address: Address, target: CpuTarget) -> KernelFunction:
    """The largest byte of each window; what it makes has the scale of what it reads."""
    key, definition = address.key, DEFINITIONS["max_pool2d"](address)
    (_, height, width, _), (batch, rows, columns, channels) = image_shape(key, 1), definition.shape

    def body(image: Any, output: Any) -> None:
        def pixel(n: Any, y: Any, x: Any, c: Any) -> Any:
            return image[((n * height + y) * width + x) * channels + c]

        with row_loop(batch * rows, target, math.prod(definition.shape)) as line:
            n, y = line // rows, line % rows
            with T.serial(0, columns) as x, channel_loop(channels, target, key.types.made) as c:
                value = definition.value([pixel], n, y, x, c)
                T.buffer_store(output, value, [(line * columns + x) * channels + c])

    made = light_kernel(key, definition.arguments, definition.shape, body)
    return replace(made, quantized=lambda _: ())


@QUANTIZED.register("avg_pool2d", "sum_pool2d")
def mean(address: Address, target: CpuTarget) -> KernelFunction:
    """The mean of each window."""
    key, definition = address.key, DEFINITIONS[address.key.op](address)
    (_, height, width, _), (batch, rows, columns, channels) = image_shape(key, 1), definition.shape

    def body(image: Any, output: Any, numbers: Numbers) -> None:
        def pixel(n: Any, y: Any, x: Any, c: Any) -> Any:
            """A whole number, so that float32 has the sum of a window exactly."""
            value = image[((n * height + y) * width + x) * channels + c]
            return T.Cast(FLOAT32, value) - numbers(Number.ZERO_READ)

        with row_loop(batch * rows, target, math.prod(definition.shape)) as line:
            n, y = line // rows, line % rows
            with T.serial(0, columns) as x, channel_loop(channels, target) as c:
                value = definition.value([pixel], n, y, x, c) * numbers(Number.STEP_READ)
                value = made_of(key, apply_epilogue(value, unclipped(key), None, None), numbers)
                T.buffer_store(output, value, [(line * columns + x) * channels + c])

    return numbered_kernel(key, definition.arguments, definition.shape, body)


@QUANTIZED.register("global_avg_pool2d")
def mean_of_all(address: Address, target: CpuTarget) -> KernelFunction:
    """The mean of each channel over a whole image, a few vectors of channels at a time."""
    key, channels = address.key, address.width_in
    area, lanes = math.prod(key.image), lanes_for(channels, target)
    in_halves = target.multiplies_by_lane and channels >= GROUP * lanes
    count = vectors_at_once(channels, GROUP * lanes) * GROUP if in_halves else vectors_at_once(channels, lanes)
    blocks = Steps(channels, count * lanes)

    def add(image: Any, sums: Any, start: Any, first: Any) -> None:
        """Add up the pixels from a place on."""
        with T.serial(0, area) as pixel:
            at = T.bind((start + pixel) * channels + first)
            for v in range(count):
                with lane_loop(lanes) as i:
                    place = v * lanes + i
                    T.buffer_store(sums, sums[place] + T.Cast("int32", image[at + place]), [place])

    def add_in_halves(image: Any, sums: Any, start: Any, first: Any) -> None:
        """The same, as many as have room in 16 bits at a time, on Arm: adding widens there by itself."""
        size = GROUP * lanes

        def some(begin: Any, pixels: int) -> None:
            few = registers(count * lanes, "uint16")
            for place in range(0, count * lanes, size):
                store(few, spread(T.uint16(0), size), place, size)
            with T.serial(0, pixels) as pixel:
                at = T.bind((start + begin + pixel) * channels + first)
                for place in range(0, count * lanes, size):
                    more = T.Cast(f"uint16x{size}", vector(image, at + place, size))
                    store(few, vector(few, place, size) + more, place, size)
            for place in range(0, count * lanes, lanes):
                more = T.Cast(f"int32x{lanes}", vector(few, place, lanes))
                store(sums, vector(sums, place, lanes) + more, place, lanes)

        full, rest = divmod(area, SUMMED_IN_HALVES)
        if full:
            with T.serial(0, full) as block:
                some(block * SUMMED_IN_HALVES, SUMMED_IN_HALVES)
        if rest:
            some(full * SUMMED_IN_HALVES, rest)

    def body(image: Any, output: Any, numbers: Numbers) -> None:
        zeros = T.bind(T.Cast("int32", numbers(Number.ZERO_READ)) * area)
        with row_loop(key.batch * blocks.count, target, key.batch * area * channels) as block:
            n, first = T.bind(block // blocks.count), T.bind(blocks.start(block % blocks.count))
            sums = registers(count * lanes, "int32")
            for v in range(count):
                with lane_loop(lanes) as i:
                    T.buffer_store(sums, T.int32(0) - zeros, [v * lanes + i])
            if in_halves:
                add_in_halves(image, sums, n * area, first)
            else:
                add(image, sums, n * area, first)
            for v in range(count):
                with lane_loop(lanes) as i:
                    place = v * lanes + i
                    value = T.Cast(FLOAT32, sums[place]) * (numbers(Number.STEP_READ) * number(1 / area))
                    value = apply_epilogue(value, unclipped(key), None, None)
                    T.buffer_store(output, made_of(key, value, numbers), [n * channels + first + place])

    return numbered_kernel(key, activations(key, image_shape(key, channels)), (key.batch, 1, 1, channels), body)
