"""Dense convolutions and linear layers on a CPU: one register-tiled loop nest for all of them.

A tile of pixels times a few vectors of output channels is accumulated in registers over the whole reduction.
Weights are packed so that one tile's weights are contiguous. A grouped convolution is several small ones that read the
same image. `winograd` takes over those 3x3 convolutions for which it is faster; depthwise ones are in `depthwise`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.cpu.emit import Steps, vector
from aap_hw.compile.cpu.kernels import KERNELS, PACKINGS, Packing
from aap_hw.compile.cpu.padding import Border, padded_image
from aap_hw.compile.cpu.tiles import Tile, accumulate, choose_tile, run_of
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
from aap_hw.compile.cpu.winograd import build_winograd, choose_winograd, transformed
from aap_hw.compile.families import weight_shape
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.families.pitch import pitch_of
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


@KERNELS.register("conv2d", "linear")
def convolution(address: Address, target: CpuTarget) -> KernelFunction:
    """Dense and grouped convolutions, and linear layers."""
    if (size := choose_winograd(address, target)) is not None:
        return build_winograd(address, size, target)
    return _build_direct(address, target)


@PACKINGS.register("conv2d", "linear")
def packing(address: Address, target: CpuTarget) -> Packing:
    """Slices of weights, one for each tile of output channels, one behind the other."""
    if (size := choose_winograd(address, target)) is not None:
        return transformed(address, size, target)
    shape, (width_out, read, kh, kw) = ConvolutionShape.of(address.key), weight_shape(address)
    made, (tile, _) = width_out // shape.groups, _tile(address, target)
    slices = shape.groups * Steps(made, tile.channels).count

    def pack(dense: np.ndarray) -> np.ndarray:
        return np.concatenate([each.ravel() for each in slices_of(dense, shape.groups, made, (kh, kw), tile)])

    return Packing((slices * kh * kw * read * tile.channels,), pack)


def _is_joined(address: Address, target: CpuTarget) -> bool:
    """Whether the columns of a window lie side by side in memory."""
    shape, width_in = ConvolutionShape.of(address.key), address.width_in
    return shape.groups == 1 and shape.dilation[1] == 1 and width_in == pitch_of(address.key, "input", width_in, target)


def _tile(address: Address, target: CpuTarget) -> tuple[Tile, int]:
    """The register tile of a kernel, and for how many steps of its innermost loop a pixel is loaded at once."""
    shape = ConvolutionShape.of(address.key)
    read, made = channels_of_group(address, shape.groups)
    run = run_of(read * (shape.kernel[1] if _is_joined(address, target) else 1), target)
    return choose_tile(shape.pixel_rows[1], made, target, address.key.types.sum, run), run


def _build_direct(address: Address, target: CpuTarget) -> KernelFunction:
    key, width_in, width_out = address.key, address.width_in, address.width_out
    shape = ConvolutionShape.of(key)
    (kh, kw), (sh, sw), (dh, dw) = shape.kernel, shape.stride, shape.dilation
    read, made = channels_of_group(address, shape.groups)
    pitch_in, pitch_out = pitch_of(key, "input", width_in, target), pitch_of(key, "output", width_out, target)
    rows, row = shape.pixel_rows
    tile, run = _tile(address, target)
    along, deep = Steps(row, tile.pixels), Steps(made, tile.channels)
    slices = shape.groups * deep.count
    slice_size = kh * kw * read * tile.channels
    border = Border.of(shape)
    height, width = border.around
    # Extents of the loops of the reduction, and how far a step of each goes in the image and in the weights.
    reduction = [(kh, dh * width * pitch_in, kw * read), (kw, dw * pitch_in, read), (read, 1, 1)]
    if _is_joined(address, target):
        reduction[1:] = [(kw * read, 1, 1)]
    extents, image_strides, weight_strides = zip(*reduction, strict=True)
    # A register is set to the bias as quickly as to zero, and an addition is saved. Not timed on x86.
    begins_with_bias = target.multiplies_by_lane and key.epilogue[:1] == ("bias",)
    steps = key.epilogue[1:] if begins_with_bias else key.epilogue

    def body(image: Any, *others: Any) -> None:
        *residual, weights, bias, output = others
        source = padded_image(image, border, pitch_in, target)

        def compute_tile(number: Any, pixels: Any) -> None:
            """One register tile: a slice of the output channels at a few pixels of one row."""
            group, first = first_channel(number, shape.groups, made, deep)
            y = T.bind(0 if rows == 1 else pixels // along.count)
            x = T.bind(along.start(pixels if rows == 1 else pixels % along.count))
            line = (y // shape.out_height * height + y % shape.out_height * sh) * width
            corner = T.bind((x if shape.is_pointwise else line + x * sw) * pitch_in + group * read)

            def pixel(*indices: Any) -> Any:
                *taps, p = indices
                return vector(source, corner + p * sw * pitch_in + offset(taps, image_strides), run)

            def weight(*indices: Any) -> Any:
                *taps, v = indices
                at = number * slice_size + offset(taps, weight_strides) * tile.channels + v * tile.lanes
                return vector(weights, at, tile.lanes)

            def place_made(p: int, c: Any) -> Any:
                return (y * row + x + p) * pitch_out + c

            def place_added(p: int, c: Any) -> Any:
                return (y * row + x + p) * width_out + c

            def bias_of(v: int) -> Any:
                return vector(bias, first + v * tile.lanes, tile.lanes)

            begin = bias_of if begins_with_bias else None
            sums = accumulate(tile, extents, pixel, weight, key.types.sum, run=run, begin=begin)
            store_tile(key, tile, sums, first, (residual, bias, output), place_made, place_added, steps)

        outermost = weights_outermost(address, shape.image(width_in), target)
        slice_loops(slices, rows * along.count, compute_tile, target, slices_outermost=outermost)

    packed = packing(address, target)
    return weighted_kernel(address, shape.image(pitch_in), packed, shape.output(pitch_out), body)
