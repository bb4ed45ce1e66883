"""Transposed convolutions on a CPU: one loop nest over the phases of the output, each a small convolution.

Phases with fewer taps than others have shorter loops, so that nothing is multiplied by zero. Where there are few
output channels, vectors along them would be short: that is `narrow`.
"""

from __future__ import annotations

import math
from itertools import repeat
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.cpu.emit import Steps, lanes_for, loop, vector
from aap_hw.compile.cpu.kernels import KERNELS, PACKINGS, Packing
from aap_hw.compile.cpu.narrow import build_narrow, is_narrow, narrow_packing
from aap_hw.compile.cpu.padding import Border, padded_image
from aap_hw.compile.cpu.tiles import Tile, accumulate, choose_tile
from aap_hw.compile.cpu.weighted import (
    channels_of_group,
    first_channel,
    offset,
    slices_of,
    store_tile,
    weighted_kernel,
    weights_outermost,
)
from aap_hw.compile.families.transposed import TransposedAxis, TransposedShape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget

# Pixels of a tile of a depthwise kernel, as in `depthwise`.
LENGTH = 7


@PACKINGS.register("conv_transpose2d", "conv_transpose3d", "depthwise_conv_transpose2d")
def packing(address: Address, target: CpuTarget) -> Packing:
    """For each slice of output channels all phases, each with its taps in reverse order."""
    if is_narrow(address, target):
        return narrow_packing(address, target)
    shape = TransposedShape.of(address.key)
    made, tile = _channels(address)[1], _tile(address, target)
    deep = Steps(made, tile.channels)

    def pack(dense: np.ndarray) -> np.ndarray:
        slices = slices_of(dense, shape.groups, made, shape.kernel, tile)
        strides = [axis.stride for axis in shape.axes]
        phases = [tuple(map(slice, at, repeat(None), strides)) for at in np.ndindex(*strides)]
        last_first = (slice(None, None, -1),) * len(strides)
        taps = [each[phase][last_first] for each in slices for phase in phases]
        return np.concatenate([each.ravel() for each in taps])

    return Packing((shape.groups * deep.count * _slice_size(address, tile),), pack)


@KERNELS.register("conv_transpose2d", "conv_transpose3d", "depthwise_conv_transpose2d")
def transposed(address: Address, target: CpuTarget) -> KernelFunction:
    """Dense, grouped and depthwise transposed convolutions."""
    return build_narrow(address, target) if is_narrow(address, target) else _build(address, target)


def _channels(address: Address) -> tuple[int, int]:
    """Channels that one output channel reads, and channels that one group makes; a depthwise kernel is one group."""
    if _is_depthwise(address):
        return 1, address.width_out
    return channels_of_group(address, TransposedShape.of(address.key).groups)


def _is_depthwise(address: Address) -> bool:
    return address.key.op == "depthwise_conv_transpose2d"


def _tile(address: Address, target: CpuTarget) -> Tile:
    columns, made, type_ = TransposedShape.of(address.key).columns, _channels(address)[1], address.key.types.sum
    shortest = columns.outputs(columns.phases[-1])
    if _is_depthwise(address):
        return Tile(min(LENGTH, shortest), 1, lanes_for(made, target, type_))
    return choose_tile(shortest, made, target, type_)


def _slice_size(address: Address, tile: Tile) -> int:
    return math.prod(TransposedShape.of(address.key).kernel) * _channels(address)[0] * tile.channels


def taps_before(axis: TransposedAxis, remainder: Any) -> Any:
    """How many taps all phases with a smaller remainder have together."""
    return axis.kernel // axis.stride * remainder + T.min(remainder, axis.kernel % axis.stride)


def _build(address: Address, target: CpuTarget) -> KernelFunction:
    key, width_in, width_out = address.key, address.width_in, address.width_out
    shape, (read, made) = TransposedShape.of(key), _channels(address)
    (rows, columns), planes, depthwise = (shape.rows, shape.columns), shape.planes, _is_depthwise(address)
    tile = _tile(address, target)
    deep, slice_size = Steps(made, tile.channels), _slice_size(address, tile)
    slices, phases = shape.groups * deep.count, math.prod(len(axis.phases) for axis in shape.axes)
    lines, along = rows.outputs(0), Steps(columns.outputs(0), tile.pixels)
    images = key.batch * (planes.size if planes else 1)
    border = Border(images, (rows.size, columns.size), rows.border, columns.border)
    height, width = border.around
    # The inputs of a row of taps lie side by side in memory.
    is_row_one_loop = not depthwise and shape.groups == 1

    def body(image: Any, *others: Any) -> None:
        *residual, weights, bias, output = others
        source = padded_image(image, border, width_in, target)

        def compute_tile(number: Any, phase: Any, place: Any) -> None:
            """One register tile: a slice of the output channels at a few pixels of one row of a phase."""
            group, channel = first_channel(number, shape.groups, made, deep)
            down, across = (
                T.bind(each) for each in (phase // len(columns.phases) % len(rows.phases), phase % len(columns.phases))
            )
            # A phase with fewer rows or columns than the first computes its last ones twice.
            n, line, step = place // (lines * along.count), place // along.count % lines, place % along.count
            y = T.bind(T.min(line, rows.outputs(down) - 1) if rows.made % rows.stride else line)
            x = T.bind(T.min(step * tile.pixels, columns.outputs(across) - tile.pixels))
            made_plane = n
            if planes:
                number_of_plane = T.bind(n)
                layer = T.bind(phase // (len(rows.phases) * len(columns.phases)))
                z = T.bind(T.min(number_of_plane % planes.outputs(0), planes.outputs(layer) - 1))
                n = number_of_plane // planes.outputs(0)
                made_plane = n * planes.made + z * planes.stride + layer
                # Planes outside the volume are left out.
                first_plane, thick = T.bind(z + planes.first(layer)), T.bind(planes.taps(layer))
                begin, end = T.bind(T.max(0, 0 - first_plane)), T.bind(T.min(thick, planes.size - first_plane))
                n = T.bind(n * planes.size + first_plane + begin)
            first_row = n * height + y + rows.first(down) + border.rows[0]
            first = (first_row * width + x + columns.first(across) + border.columns[0]) * width_in
            corner = T.bind(first + (channel if depthwise else group * read))
            tall, wide = T.bind(rows.taps(down)), T.bind(columns.taps(across))
            before = taps_before(rows, rows.remainder(down)) * columns.kernel
            before = before + tall * taps_before(columns, columns.remainder(across))
            if planes:
                before = thick * before + taps_before(planes, planes.remainder(layer)) * rows.kernel * columns.kernel
                before = before + begin * tall * wide
            start = T.bind(number * slice_size + before * (read * tile.channels))
            # Extents of the loops of the reduction, and how far a step of each goes in the image and in the weights.
            reduction = [(tall, width * width_in, wide * read), (wide, width_in, read), (read, 1, 1)]
            if depthwise:
                del reduction[2]
            elif is_row_one_loop:
                reduction[1:] = [(wide * read, 1, 1)]
            if planes:
                reduction.insert(0, (T.max(end - begin, 0), height * width * width_in, tall * wide * read))
            extents, image_strides, weight_strides = zip(*reduction, strict=True)

            def pixel(*indices: Any) -> Any:
                *taps, p = indices
                at = corner + p * width_in + offset(taps, image_strides)
                return vector(source, at, tile.lanes) if depthwise else source[at]

            def weight(*indices: Any) -> Any:
                *taps, v = indices
                at = start + offset(taps, weight_strides) * tile.channels + v * tile.lanes
                return vector(weights, at, tile.lanes)

            sums = accumulate(tile, extents, pixel, weight, key.types.sum, of_vectors=depthwise)
            row = T.bind((made_plane * rows.made + y * rows.stride + down) * columns.made + across)

            def place_made(p: int, c: Any) -> Any:
                return (row + (x + p) * columns.stride) * width_out + c

            store_tile(key, tile, sums, channel, (residual, bias, output), place_made)

        places = key.batch * (planes.outputs(0) if planes else 1) * lines * along.count
        if weights_outermost(address, shape.input(width_in), target):
            with loop(slices * phases * places, target) as i:
                rest = T.bind(i // places)
                compute_tile(T.bind(rest // phases), T.bind(rest % phases), T.bind(i % places))
        else:
            with loop(places, target) as place, T.serial(0, slices) as number, T.serial(0, phases) as phase:
                compute_tile(number, phase, place)

    return weighted_kernel(address, shape.input(width_in), packing(address, target), shape.output(width_out), body)
