"""Transposed convolutions on GPUs: the convolution of stride 1 of the input with zeros between its pixels.

That is a sum over one window, as dlight's rule for matrix products reads it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import te, tirx

from aap_hw.compile.code.convolution import weighted_arguments
from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import KernelFunction, apply_epilogue
from aap_hw.compile.families import image_shape
from aap_hw.compile.families.transposed import TransposedAxis, TransposedShape
from aap_hw.compile.gpu.scheduling import KERNELS, gpu_kernel
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import GpuTarget


@KERNELS.register("conv_transpose2d", "depthwise_conv_transpose2d")
def transposed(address: Address, target: GpuTarget) -> KernelFunction:
    """A transposed convolution; its weight is (C_out, KH, KW, C_in / groups), turned by 180 degrees."""
    key, width_in, width_out = address.key, address.width_in, address.width_out
    shape = TransposedShape.of(key)
    groups = width_in if key.op == "depthwise_conv_transpose2d" else shape.groups
    read, made = width_in // groups, width_out // groups
    output_shape = shape.output(width_out)
    arguments = weighted_arguments(address, image_shape(key, width_in), (width_out, *shape.kernel, read))

    def compute(image: Any, *others: Any) -> Any:
        *residual, weight, bias = others
        spread = _spread(image, shape, width_in)
        rows, columns = (te.reduce_axis((0, extent), name="tap") for extent in shape.kernel)
        channels = [te.reduce_axis((0, read), name="channel")] if read > 1 or groups == 1 else []

        def product(n: Any, y: Any, x: Any, c: Any) -> Any:
            channel = channels[0] if channels else 0
            first = 0 if groups == 1 else c // made * read
            pixel = spread(n, y + rows, x + columns, first + channel)
            return te.sum(pixel * weight(c, rows, columns, channel), axis=[rows, columns, *channels])

        sums = te.compute(output_shape, product, name="sums")

        def value(*at: Any) -> Any:
            return apply_epilogue(sums(*at), key.epilogue, bias[at[-1]], residual[0](*at) if residual else None)

        return te.compute(output_shape, value, name="output")

    def pack(dense: np.ndarray) -> np.ndarray:
        turned = dense.reshape(width_out, read, *shape.kernel)[..., ::-1, ::-1]
        return np.ascontiguousarray(turned.transpose(0, 2, 3, 1))

    return gpu_kernel(key, arguments, output_shape, compute, target, pack)


def _spread(image: Any, shape: TransposedShape, channels: int) -> Any:
    """The input with zeros between its pixels and around them."""
    rows, columns = shape.rows, shape.columns

    def source(axis: TransposedAxis, at: Any) -> tuple[Any, Any]:
        """Which input lies at a place, and whether one does."""
        behind = at - (axis.kernel - 1 - axis.padding)
        is_one = tirx.all(behind >= 0, behind < axis.size * axis.stride, tirx.floormod(behind, axis.stride) == 0)
        return tirx.floordiv(behind, axis.stride), is_one

    def pixel(n: Any, y: Any, x: Any, c: Any) -> Any:
        (row, is_row), (column, is_column) = source(rows, y), source(columns, x)
        return tirx.if_then_else(tirx.all(is_row, is_column), image(n, row, column, c), number(0.0))

    extents = (axis.made + axis.kernel - 1 for axis in (rows, columns))
    return te.compute((shape.batch, *extents, channels), pixel, name="padded")
