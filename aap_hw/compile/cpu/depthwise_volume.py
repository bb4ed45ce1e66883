"""Depthwise convolutions of volumes on a CPU: like those of images, inside a loop over the planes of a window.

Nothing is padded; see `across`.
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
from aap_hw.compile.cpu.depthwise import BLOCK, LENGTH
from aap_hw.compile.cpu.emit import Steps, Tensor, kernel_code, lane_loop, lanes_for, loop, scratch, store, vector
from aap_hw.compile.cpu.kernels import KERNELS, PACKINGS, Packing
from aap_hw.compile.families.volume import VolumeShape
from aap_hw.compile.families.windows import Axis
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.errors import UserError


@PACKINGS.register("depthwise_conv3d")
def packing(address: Address, target: CpuTarget) -> Packing:
    """Vector by vector, so that no load crosses a cache line whatever the number of channels."""
    channels, kernel = address.width_out, VolumeShape.of(address.key).kernel
    deep = Steps(channels, lanes_for(channels, target, address.key.types.sum))

    def pack(dense: np.ndarray) -> np.ndarray:
        filters = dense.reshape(channels, math.prod(kernel))
        return np.stack([filters[start : start + deep.length].T for start in map(deep.start, range(deep.count))])

    return Packing((deep.count, math.prod(kernel), deep.length), pack)


@KERNELS.register("depthwise_conv3d")
def depthwise_volume(address: Address, target: CpuTarget) -> KernelFunction:
    """Convolutions of each channel by itself."""
    key, channels = address.key, address.width_out
    if address.width_in != channels:
        raise UserError(f"the kernel {key} cannot have {address.width_in} -> {channels} channels: it makes one of each")
    shape = VolumeShape.of(key)
    planes, rows, columns = shape.axes
    lanes = lanes_for(channels, target, key.types.sum)
    across, deep = Across(columns, min(LENGTH, columns.windows)), Steps(channels, lanes)
    block = max(1, BLOCK // lanes)
    blocks = math.ceil(deep.count / block)
    _, *steps_after_bias = key.epilogue  # sums begin with the bias
    output_shape, packed = shape.output(channels), packing(address, target)
    arguments = weighted_arguments(address, shape.volume(channels), packed.shape, bias_of_any_width=True)
    length_of_bias = tirx.Var("channels", "int32")  # so that LLVM does not unroll the steps along them; see `depthwise`

    def body(image: Any, *others: Any) -> None:
        *residual, weights, bias, output = others

        def tile_at(n: Any, z: Any, y: Any, x: Any, step: Any, c: Any) -> None:
            """One tile. If ``x`` is an integer, taps outside the image are left out."""
            sums = scratch(across.length * lanes, key.types.sum)
            for p in range(across.length):
                store(sums, vector(bias, c, lanes), p * lanes, lanes)
            front, top = T.bind(z * planes.stride - planes.padding), T.bind(y * rows.stride - rows.padding)
            left = x * columns.stride - columns.padding
            with T.serial(*_taps_inside(planes, front)) as rz, T.serial(*_taps_inside(rows, top)) as ry:
                plane = n * planes.size + front + rz * planes.dilation
                row = plane * rows.size + top + ry * rows.dilation
                pixel = T.bind((row * columns.size + left) * channels + c)
                first = T.bind(((step * planes.kernel + rz) * rows.kernel + ry) * columns.kernel)
                taps = [T.bind(vector(weights, (first + rx) * lanes, lanes)) for rx in range(columns.kernel)]
                across.add_row(sums, taps, lambda offset: vector(image, pixel + offset * channels, lanes), x, lanes)
            for p in range(across.length):
                line = (n * planes.windows + z) * rows.windows + y
                at = T.bind((line * columns.windows + x + p) * channels + c)
                with lane_loop(lanes) as i:
                    added = residual[0][at + i] if residual else None
                    value = apply_epilogue(sums[p * lanes + i], steps_after_bias, None, added)
                    T.buffer_store(output, value, [at + i])

        with loop(key.batch * planes.windows * rows.windows, target) as line:
            y, plane = T.bind(line % rows.windows), T.bind(line // rows.windows)
            z, n = T.bind(plane % planes.windows), T.bind(plane // planes.windows)
            with T.serial(0, blocks) as number:
                first, last = T.bind(number * block), tirx.ceildiv(length_of_bias, lanes)
                end = T.bind(T.min(first + block, last) if blocks > 1 else last)
                with T.serial(0, across.steps.count) as i, T.serial(first, end) as step:
                    c = T.bind(deep.start(step))
                    across.tile(i, lambda x: tile_at(n, z, y, x, step, c))

    tensors = [Tensor(a.role, (length_of_bias,) if a.any_width else a.shape, a.type) for a in arguments]
    code = kernel_code([*tensors, Tensor("output", output_shape, key.types.made)], body)
    return KernelFunction(code, tuple(arguments), output_shape, key.types.made, packed.pack)


def _taps_inside(axis: Axis, first: Any) -> tuple[Any, Any]:
    """The range of a window's taps that lie inside the volume; empty where it misses the volume."""
    begin = T.bind(T.max(0, (axis.dilation - 1 - first) // axis.dilation)) if axis.padding else 0
    end = T.min(axis.kernel, (axis.size - first + axis.dilation - 1) // axis.dilation)
    return begin, T.bind(T.max(begin, end))
