"""Depthwise convolutions on a CPU: vectors along the channels, a few pixels of a row in registers.

Nothing is padded. Taps outside the image are left out: rows by the bounds of a loop, columns because the tiles at the
left and right edge have code of their own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.convolution import weighted_arguments
from aap_hw.compile.code.function import KernelFunction, apply_epilogue
from aap_hw.compile.cpu.across import Across
from aap_hw.compile.cpu.emit import Steps, Tensor, kernel_code, lane_loop, lanes_for, loop, scratch, store, vector
from aap_hw.compile.cpu.kernels import KERNELS, PACKINGS, Packing
from aap_hw.compile.cpu.padding import Border, padded_image
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.families.pitch import pitch_of
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.errors import UserError

# Channels that are computed for one tile of pixels before the next: their weights and pixels stay in the first cache,
# and what a vector leaves of a cache line is used by the one beside it.
BLOCK = 128
# Pixels of a tile. Their sums, one pixel's values and the row of weights of a usual kernel fit 16 registers; weights of
# a wider one come from the first cache. 7 divides the usual image sizes.
LENGTH = 7


@PACKINGS.register("depthwise_conv2d")
def packing(address: Address, target: CpuTarget) -> Packing:
    """Vector by vector, so that no load crosses a cache line whatever the number of channels."""
    channels, kernel = address.width_out, ConvolutionShape.of(address.key).kernel
    deep = Steps(channels, lanes_for(channels, target, address.key.types.sum))

    def pack(dense: np.ndarray) -> np.ndarray:
        filters = dense.reshape(channels, *kernel)
        steps = [filters[start : start + deep.length] for start in map(deep.start, range(deep.count))]
        return np.ascontiguousarray(np.stack(steps).transpose(0, 2, 3, 1))

    return Packing((deep.count, *kernel, deep.length), pack)


@KERNELS.register("depthwise_conv2d")
def depthwise(address: Address, target: CpuTarget) -> KernelFunction:
    """One filter for each channel, or several; then the image is copied with every channel repeated as often."""
    key, width_in, channels = address.key, address.width_in, address.width_out
    shape = ConvolutionShape.of(key)
    (kh, kw), (sh, sw), (dh, _) = shape.kernel, shape.stride, shape.dilation
    (height, width), (top, left) = shape.size, shape.padding
    read_pitch, pitch_out = pitch_of(key, "input", width_in, target), pitch_of(key, "output", channels, target)
    pitch_in = read_pitch if width_in == channels else channels
    if channels % width_in:
        raise UserError(f"the kernel {key} cannot have {width_in} -> {channels} channels: it makes as many of each")
    lanes = lanes_for(channels, target, key.types.sum)
    length = min(LENGTH, shape.out_width)
    across, deep = Across(shape.columns, length), Steps(channels, lanes)
    block = max(1, BLOCK // lanes)
    blocks = math.ceil(deep.count / block)
    _, *steps_after_bias = key.epilogue  # sums begin with the bias
    output_shape, packed = shape.output(pitch_out), packing(address, target)
    arguments = weighted_arguments(address, shape.image(read_pitch), packed.shape, bias_of_any_width=True)
    # LLVM would fully unroll a short loop over the channels, to more code than fits the first-level cache. So the
    # number of steps is hidden from it: it follows from the length of the bias, which is only known when the kernel is
    # called.
    length_of_bias = tirx.Var("channels", "int32")

    def body(image: Any, *others: Any) -> None:
        *residual, weights, bias, output = others
        source = padded_image(image, Border(shape.batch, shape.size, planar=shape.planar), read_pitch, target)
        if width_in != channels:
            source = repeated(source, shape, width_in, read_pitch, channels // width_in, target)

        def tile_at(n: Any, y: Any, x: Any, step: Any, c: Any) -> None:
            """One tile. If ``x`` is an integer, taps outside the image are left out."""
            sums = scratch(length * lanes, key.types.sum)  # small enough for the stack, which LLVM turns into registers
            for p in range(length):
                store(sums, vector(bias, c, lanes), p * lanes, lanes)
            first = T.bind(y * sh - top)
            begin = T.bind(T.max(0, (dh - 1 - first) // dh)) if top else 0
            end = T.bind(T.min(kh, (height - first + dh - 1) // dh))
            with T.serial(begin, end) as ry:
                row = T.bind(((n * height + first + ry * dh) * width + x * sw - left) * pitch_in + c)
                taps = [T.bind(vector(weights, ((step * kh + ry) * kw + rx) * lanes, lanes)) for rx in range(kw)]
                across.add_row(sums, taps, lambda offset: vector(source, row + offset * pitch_in, lanes), x, lanes)
            for p in range(length):
                pixel = (n * shape.out_height + y) * shape.out_width + x + p
                at = T.bind(pixel * pitch_out + c)
                with lane_loop(lanes) as i:
                    added = residual[0][pixel * channels + c + i] if residual else None
                    value = apply_epilogue(sums[p * lanes + i], steps_after_bias, None, added)
                    T.buffer_store(output, value, [at + i])

        with loop(key.batch * shape.out_height, target) as line:
            n, y = T.bind(line // shape.out_height), T.bind(line % shape.out_height)
            with T.serial(0, blocks) as number:
                first, last = T.bind(number * block), tirx.ceildiv(length_of_bias, lanes)
                end = T.bind(T.min(first + block, last) if blocks > 1 else last)
                # One loop for all kinds of tiles: LLVM would unroll a loop with a small body, and spill registers.
                with T.serial(0, across.steps.count) as i, T.serial(first, end) as step:
                    c = T.bind(deep.start(step))
                    across.tile(i, lambda x: tile_at(n, y, x, step, c))

    tensors = [Tensor(a.role, (length_of_bias,) if a.any_width else a.shape, a.type) for a in arguments]
    code = kernel_code([*tensors, Tensor("output", output_shape, key.types.made)], body)

    return KernelFunction(code, tuple(arguments), output_shape, key.types.made, packed.pack)


def repeated(image: Any, shape: ConvolutionShape, channels: int, pitch: int, times: int, target: CpuTarget) -> Any:
    """The images with every channel repeated ``times`` times, side by side."""
    pixels = shape.batch * math.prod(shape.size)
    repeated = scratch(pixels * channels * times, image.dtype)
    with loop(pixels, target) as pixel, T.serial(0, channels) as c:
        for i in range(times):
            T.buffer_store(repeated, image[pixel * pitch + c], [(pixel * channels + c) * times + i])
    return repeated
