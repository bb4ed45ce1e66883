"""Convolutions of volumes on a CPU: the loop nest of `convolution` with one more loop over the planes of a window.

Each plane is padded. The planes of a window that lie outside the volume are left out by the bounds of that loop.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.cpu.emit import Steps, vector
from aap_hw.compile.cpu.kernels import KERNELS, PACKINGS, Packing
from aap_hw.compile.cpu.padding import Border, padded_image
from aap_hw.compile.cpu.tiles import Tile, accumulate, choose_tile
from aap_hw.compile.cpu.weighted import (
    channels_of_group,
    first_channel,
    offset,
    slice_loops,
    slices_of,
    store_tile,
    weighted_kernel,
    weights_outermost,
)
from aap_hw.compile.families.volume import VolumeShape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


def _tile(address: Address, target: CpuTarget) -> Tile:
    shape = VolumeShape.of(address.key)
    return choose_tile(shape.columns.windows, address.width_out // shape.groups, target, address.key.types.sum)


@PACKINGS.register("conv3d")
def packing(address: Address, target: CpuTarget) -> Packing:
    """Slices of weights, one for each tile of output channels, one behind the other."""
    shape, tile = VolumeShape.of(address.key), _tile(address, target)
    read, made = address.width_in // shape.groups, address.width_out // shape.groups
    slices = shape.groups * Steps(made, tile.channels).count

    def pack(dense: np.ndarray) -> np.ndarray:
        return np.concatenate([each.ravel() for each in slices_of(dense, shape.groups, made, shape.kernel, tile)])

    return Packing((slices * math.prod(shape.kernel) * read * tile.channels,), pack)


@KERNELS.register("conv3d")
def volume(address: Address, target: CpuTarget) -> KernelFunction:
    """Dense and grouped convolutions of volumes."""
    key, width_in, width_out = address.key, address.width_in, address.width_out
    shape, tile = VolumeShape.of(key), _tile(address, target)
    planes, rows, columns = shape.axes
    read, made = channels_of_group(address, shape.groups)
    along, deep = Steps(columns.windows, tile.pixels), Steps(made, tile.channels)
    slices, plane_of_weights = shape.groups * deep.count, rows.kernel * columns.kernel * read * tile.channels
    border = Border(key.batch * planes.size, (rows.size, columns.size), rows.around, columns.around)
    height, width = border.around
    # Extents of the loops of the reduction, and the stride of each in the image and in the weights. Of the planes, only
    # those inside the volume are visited.
    reduction = [
        (planes.kernel, planes.dilation * height * width * width_in, plane_of_weights // tile.channels),
        (rows.kernel, rows.dilation * width * width_in, columns.kernel * read),
        (columns.kernel, columns.dilation * width_in, read),
        (read, 1, 1),
    ]
    if columns.dilation == 1 and read == width_in:  # the columns of a window lie side by side in memory
        reduction[2:] = [(columns.kernel * read, 1, 1)]
    extents, image_strides, weight_strides = zip(*reduction, strict=True)

    def body(image: Any, *others: Any) -> None:
        *residual, weights, bias, output = others
        source = padded_image(image, border, width_in, target)

        def compute_tile(number: Any, place: Any) -> None:
            """One register tile: a slice of the output channels at a few pixels of one row."""
            group, channel = first_channel(number, shape.groups, made, deep)
            x = T.bind(along.start(place % along.count))
            line = T.bind(place // along.count)
            y, z, n = line % rows.windows, line // rows.windows % planes.windows, line // rows.windows // planes.windows
            first = T.bind(z * planes.stride - planes.padding)
            begin = T.bind(T.max(0, (planes.dilation - 1 - first) // planes.dilation))
            end = T.bind(T.min(planes.kernel, (planes.size - first + planes.dilation - 1) // planes.dilation))
            plane = n * planes.size + first + begin * planes.dilation
            row = (plane * height + y * rows.stride) * width + x * columns.stride
            corner = T.bind(row * width_in + group * read)
            start = T.bind(((number * planes.kernel) + begin) * plane_of_weights)

            def pixel(*indices: Any) -> Any:
                *taps, p = indices
                return source[corner + p * columns.stride * width_in + offset(taps, image_strides)]

            def weight(*indices: Any) -> Any:
                *taps, v = indices
                at = start + offset(taps, weight_strides) * tile.channels + v * tile.lanes
                return vector(weights, at, tile.lanes)

            def place_made(p: int, c: Any) -> Any:
                return (line * columns.windows + x + p) * width_out + c

            sums = accumulate(tile, [T.max(end - begin, 0), *extents[1:]], pixel, weight, key.types.sum)
            store_tile(key, tile, sums, channel, (residual, bias, output), place_made)

        places = key.batch * planes.windows * rows.windows * along.count
        outermost = weights_outermost(address, shape.volume(width_in), target)
        slice_loops(slices, places, compute_tile, target, slices_outermost=outermost)

    return weighted_kernel(address, shape.volume(width_in), packing(address, target), shape.output(width_out), body)
