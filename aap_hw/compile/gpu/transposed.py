"""Transposed convolutions on a GPU: a convolution of stride 1 over the input with zeros between its pixels.

This is a sum over one window, the form that dlight's rule for matrix products expects.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import te, tirx

from aap_hw.compile.code.convolution import weighted_arguments
from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import KernelFunction, apply_epilogue
from aap_hw.compile.families.transposed import TransposedAxis, TransposedShape
from aap_hw.compile.gpu.scheduling import KERNELS, gpu_kernel
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import GpuTarget


@KERNELS.register("conv_transpose2d", "conv_transpose3d", "depthwise_conv_transpose2d")
def transposed(address: Address, target: GpuTarget) -> KernelFunction:
    """A transposed convolution; its weight is (C_out, KH, KW, C_in / groups), rotated by 180 degrees."""
    key, width_in, width_out = address.key, address.width_in, address.width_out
    shape = TransposedShape.of(key)
    groups = width_in if key.op == "depthwise_conv_transpose2d" else shape.groups
    read, made = width_in // groups, width_out // groups
    output_shape = shape.output(width_out)
    arguments = weighted_arguments(address, shape.input(width_in), (width_out, *shape.kernel, read))

    def compute(image: Any, *others: Any) -> Any:
        *residual, weight, bias = others
        spread = _spread(image, shape, width_in)
        taps = [te.reduce_axis((0, extent), name="tap") for extent in shape.kernel]
        channels = [te.reduce_axis((0, read), name="channel")] if read > 1 or groups == 1 else []

        def product(n: Any, *at: Any) -> Any:
            *places, c = at
            channel = channels[0] if channels else 0
            first = 0 if groups == 1 else c // made * read
            pixel = spread(n, *(place + tap for place, tap in zip(places, taps, strict=True)), first + channel)
            return te.sum(pixel * weight(c, *taps, channel), axis=[*taps, *channels])

        sums = te.compute(output_shape, product, name="sums")

        def value(*at: Any) -> Any:
            return apply_epilogue(sums(*at), key.epilogue, bias[at[-1]], residual[0](*at) if residual else None)

        return te.compute(output_shape, value, name="output")

    def pack(dense: np.ndarray) -> np.ndarray:
        turned = np.flip(dense.reshape(width_out, read, *shape.kernel), tuple(range(2, 2 + len(shape.kernel))))
        return np.ascontiguousarray(np.moveaxis(turned, 1, -1))

    return gpu_kernel(key, arguments, output_shape, compute, target, pack)


def _spread(image: Any, shape: TransposedShape, channels: int) -> Any:
    """The input with zeros between its pixels and around them."""

    def source(axis: TransposedAxis, at: Any) -> tuple[Any, Any]:
        """The index of the input at a place, and whether there is one."""
        behind = at - (axis.kernel - 1 - axis.padding)
        is_one = tirx.all(behind >= 0, behind < axis.size * axis.stride, tirx.floormod(behind, axis.stride) == 0)
        return tirx.floordiv(behind, axis.stride), is_one

    def pixel(n: Any, *at: Any) -> Any:
        *places, c = at
        inputs, exist = zip(*(source(axis, place) for axis, place in zip(shape.axes, places, strict=True)), strict=True)
        return tirx.if_then_else(tirx.all(*exist), image(n, *inputs, c), number(0.0))

    extents = (axis.made + axis.kernel - 1 for axis in shape.axes)
    return te.compute((shape.batch, *extents, channels), pixel, name="padded")
