"""Light kernels that summarise pixels: pooling over windows and over whole images."""

from __future__ import annotations

import math
from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction, activations
from aap_hw.compile.code.windows import Summary, axes_of, largest_of, mean_of
from aap_hw.compile.cpu.emit import Steps, constant, lanes_for, store, vector
from aap_hw.compile.cpu.loops import channel_loop, light_kernel, row_loop
from aap_hw.compile.families.shape import image_shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import CpuTarget

# Independent vectors that hide the latency of an addition.
VECTORS_AT_ONCE = 4


def max_pool(address: Address, target: CpuTarget) -> KernelFunction:
    """The largest value of each window."""
    key, channels = address.key, address.width_in
    return _pool(key, channels, target, largest_of(key))


def average_pool(address: Address, target: CpuTarget) -> KernelFunction:
    """The mean of each window."""
    key, channels = address.key, address.width_in
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


def global_average_pool(address: Address, target: CpuTarget) -> KernelFunction:
    """The mean of each channel over a whole image, a few vectors of channels at a time."""
    key, channels = address.key, address.width_in
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
