"""Light kernels that summarise pixels: pooling over windows and over whole images."""

from __future__ import annotations

import math
from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code import DEFINITIONS
from aap_hw.compile.code.function import KernelFunction, activations
from aap_hw.compile.cpu.emit import Steps, constant, lanes_for, registers, store, vector
from aap_hw.compile.cpu.kernels import KERNELS
from aap_hw.compile.cpu.loops import channel_loop, light_kernel, row_loop
from aap_hw.compile.cpu.sums import VECTORS_AT_ONCE
from aap_hw.compile.families import image_shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


@KERNELS.register("max_pool2d", "avg_pool2d", "sum_pool2d")
def pool(address: Address, target: CpuTarget) -> KernelFunction:
    """The largest value or the mean of each window."""
    definition, source = DEFINITIONS[address.key.op](address), image_shape(address.key, address.width_in)
    batch, height, width, channels = definition.shape

    def body(image: Any, output: Any) -> None:
        def pixel(n: Any, y: Any, x: Any, c: Any) -> Any:
            return image[((n * source[1] + y) * source[2] + x) * channels + c]

        with row_loop(batch * height, target, math.prod(definition.shape)) as line:
            n, y = line // height, line % height
            with T.serial(0, width) as x, channel_loop(channels, target) as c:
                value = definition.value([pixel], n, y, x, c)
                T.buffer_store(output, value, [(line * width + x) * channels + c])

    return light_kernel(address.key, definition.arguments, definition.shape, body)


@KERNELS.register("global_avg_pool2d")
def global_average_pool(address: Address, target: CpuTarget) -> KernelFunction:
    """The mean of each channel over a whole image, a few vectors of channels at a time."""
    key, channels = address.key, address.width_in
    area = math.prod(key.image)
    lanes = lanes_for(channels, target)
    count = vectors_at_once(channels, lanes)
    blocks = Steps(channels, count * lanes)

    def body(image: Any, output: Any) -> None:
        with row_loop(key.batch * blocks.count, target, key.batch * area * channels) as block:
            n, first = T.bind(block // blocks.count), T.bind(blocks.start(block % blocks.count))
            sums = registers(count * lanes, key.types.sum)
            for v in range(count):
                store(sums, constant(0.0, lanes, sums.dtype), v * lanes, lanes)
            with T.serial(0, area) as pixel:
                at = T.bind((n * area + pixel) * channels + first)
                for v in range(count):
                    total = vector(sums, v * lanes, lanes) + vector(image, at + v * lanes, lanes)
                    store(sums, total, v * lanes, lanes)
            for v in range(count):
                mean = vector(sums, v * lanes, lanes) * constant(1 / area, lanes, sums.dtype)
                store(output, mean, n * channels + first + v * lanes, lanes)

    return light_kernel(key, activations(key, image_shape(key, channels)), (key.batch, 1, 1, channels), body)


def vectors_at_once(channels: int, lanes: int) -> int:
    """How many vectors are summed together: a few, but so that the last ones do not repeat much work."""

    def cost(count: int) -> tuple[int, int]:
        blocks = Steps(channels, count * lanes).count
        return blocks * max(count, VECTORS_AT_ONCE), blocks * count

    return min(range(1, min(channels // lanes, 2 * VECTORS_AT_ONCE) + 1), key=cost)
