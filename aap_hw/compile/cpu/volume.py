"""Convolutions of volumes on a CPU: the loop nest of `convolution` with the planes of a window as one loop more.

Planes are padded on their own. Those that a window has outside of the volume its outermost loop leaves out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.convolution import weighted_arguments
from aap_hw.compile.code.function import KernelFunction, apply_epilogue
from aap_hw.compile.cpu.emit import Steps, Tensor, kernel_code, lane_loop, loop, vector
from aap_hw.compile.cpu.kernels import KERNELS, PACKINGS, Packing
from aap_hw.compile.cpu.padding import Border, padded_image
from aap_hw.compile.cpu.tiles import Tile, accumulate, choose_tile
from aap_hw.compile.families import weight_elements
from aap_hw.compile.families.volume import VolumeShape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import BYTES
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.errors import UserError


def _tile(address: Address, target: CpuTarget) -> Tile:
    shape = VolumeShape.of(address.key)
    return choose_tile(shape.columns.windows, address.width_out // shape.groups, target, address.key.types.sum)


@PACKINGS.register("conv3d")
def packing(address: Address, target: CpuTarget) -> Packing:
    """The weights that one tile needs side by side, a slice of the output channels behind the other."""
    shape, tile = VolumeShape.of(address.key), _tile(address, target)
    read, made = address.width_in // shape.groups, address.width_out // shape.groups
    deep = Steps(made, tile.channels)

    def pack(dense: np.ndarray) -> np.ndarray:
        filters = dense.reshape(shape.groups, made, read, *shape.kernel).transpose(0, 3, 4, 5, 2, 1)
        starts = [deep.start(part) for part in range(deep.count)]
        return np.concatenate([group[..., s : s + tile.channels].ravel() for group in filters for s in starts])

    return Packing((shape.groups * deep.count * math.prod(shape.kernel) * read * tile.channels,), pack)


@KERNELS.register("conv3d")
def volume(address: Address, target: CpuTarget) -> KernelFunction:
    """Dense and grouped convolutions of volumes."""
    key, width_in, width_out = address.key, address.width_in, address.width_out
    shape, tile = VolumeShape.of(key), _tile(address, target)
    if width_in % shape.groups or width_out % shape.groups:
        raise UserError(
            f"the kernel {key} cannot have {width_in} -> {width_out} channels: its groups do not divide them"
        )
    planes, rows, columns = shape.axes
    read, made = width_in // shape.groups, width_out // shape.groups
    along, deep = Steps(columns.windows, tile.pixels), Steps(made, tile.channels)
    slices, plane_of_weights = shape.groups * deep.count, rows.kernel * columns.kernel * read * tile.channels
    border = Border(key.batch * planes.size, (rows.size, columns.size), rows.around, columns.around)
    height, width = border.around
    steps = [(rows.dilation * width * width_in, columns.kernel * read), (columns.dilation * width_in, read), (1, 1)]
    extents = [rows.kernel, columns.kernel, read]
    if columns.dilation == 1 and read == width_in:  # the columns of a window lie side by side in memory
        extents[1:], steps[1:] = [columns.kernel * read], [(1, 1)]
    steps.insert(0, (planes.dilation * height * width * width_in, plane_of_weights // tile.channels))
    output_shape, packed = shape.output(width_out), packing(address, target)
    arguments = weighted_arguments(address, shape.volume(width_in), packed.shape)

    def body(image: Any, *others: Any) -> None:
        *residual, weights, bias, output = others
        source = padded_image(image, border, width_in, target)

        def compute_tile(number: Any, place: Any) -> None:
            """One register tile: a slice of the output channels at a few pixels of one row."""
            group, part = (0, number) if shape.groups == 1 else (number // deep.count, number % deep.count)
            channel, x = T.bind(group * made + deep.start(part)), T.bind(along.start(place % along.count))
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
                offset = sum(tap * step for tap, (step, _) in zip(taps, steps, strict=True))
                return source[corner + p * columns.stride * width_in + offset]

            def weight(*indices: Any) -> Any:
                *taps, v = indices
                offset = sum(tap * step for tap, (_, step) in zip(taps, steps, strict=True))
                return vector(weights, start + offset * tile.channels + v * tile.lanes, tile.lanes)

            sums = accumulate(tile, [T.max(end - begin, 0), *extents], pixel, weight, key.types.sum)
            for v in range(tile.vectors):
                for p in range(tile.pixels):
                    c = channel + v * tile.lanes
                    at = T.bind((line * columns.windows + x + p) * width_out + c)
                    with lane_loop(tile.lanes) as i:
                        added = residual[0][at + i] if residual else None
                        value = apply_epilogue(sums(p, v, i), key.epilogue, bias[c + i], added)
                        T.buffer_store(output, value, [at + i])

        places = key.batch * planes.windows * rows.windows * along.count
        weights_bytes = weight_elements(address) * BYTES[key.types.weight]
        if weight_elements(address) > math.prod(shape.volume(width_in)) or weights_bytes > target.l2_bytes // 2:
            with loop(slices * places, target) as i:
                compute_tile(T.bind(i // places), T.bind(i % places))
        else:
            with loop(places, target) as place, T.serial(0, slices) as number:
                compute_tile(number, place)

    tensors = [Tensor(argument.role, argument.shape, argument.type) for argument in arguments]
    code = kernel_code([*tensors, Tensor("output", output_shape, key.types.made)], body)
    return KernelFunction(code, tuple(arguments), output_shape, key.types.made, packed.pack)
