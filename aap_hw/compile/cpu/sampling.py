"""Values read at computed places: whole rows, or all channels of a pixel."""

from __future__ import annotations

import math
from functools import reduce
from operator import add
from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code import DEFINITIONS
from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.sampling import corners_of, gather_arguments, row_number
from aap_hw.compile.cpu.kernels import KERNELS
from aap_hw.compile.cpu.loops import channel_loop, light_kernel, pixel_loop, row_loop
from aap_hw.compile.families import image_shape
from aap_hw.compile.families.sampling import Gather
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


@KERNELS.register("gather")
def gather(address: Address, target: CpuTarget) -> KernelFunction:
    """Row by row."""
    what = Gather.of(address)
    times, rows, values = what.table.shape
    (taken,) = what.index.shape

    def body(table: Any, index: Any, output: Any) -> None:
        with row_loop(times * taken, target, times * taken * values) as row:
            n, k = row // taken, row % taken
            first = T.bind((n * rows + row_number(index[k], rows)) * values)
            with channel_loop(values, target) as i:
                T.buffer_store(output, table[first + i], [row * values + i])

    return light_kernel(address.key, gather_arguments(address), what.shape, body)


@KERNELS.register("grid_sample")
def grid_sample(address: Address, target: CpuTarget) -> KernelFunction:
    """Pixel by pixel: first the place of the point, then all channels."""
    definition, (_, height, width, channels) = (
        DEFINITIONS["grid_sample"](address),
        image_shape(address.key, address.width_in),
    )
    area = math.prod(definition.shape[1:3])

    def body(image: Any, grid: Any, output: Any) -> None:
        with pixel_loop(definition.shape, target) as pixel:
            x, y = T.bind(grid[2 * pixel]), T.bind(grid[2 * pixel + 1])
            first = T.bind(pixel // area * (height * width))
            found = [
                (T.bind((first + each.row * width + each.column) * channels), T.bind(each.weight))
                for each in corners_of(address.key, x, y, T.bind)
            ]
            with channel_loop(channels, target) as c:
                value = reduce(add, [image[start + c] * weight for start, weight in found])
                T.buffer_store(output, value, [pixel * channels + c])

    return light_kernel(address.key, definition.arguments, definition.shape, body)
