"""Convolutions and linear layers as tensor expressions, in the form that dlight's rule for matrix products expects.

There is one sum of products, with padding before it and the epilogue after it; dlight inlines both. It turns a
convolution into an implicit matrix product: pixels x (taps and input channels) times (taps and input channels) x output
channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import te

from aap_hw.compile.code.convolution import weighted_arguments
from aap_hw.compile.code.function import KernelFunction, apply_epilogue
from aap_hw.compile.families import weight_shape
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.gpu.scheduling import KERNELS, gpu_kernel, padded
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import GpuTarget


@KERNELS.register("conv2d", "depthwise_conv2d", "linear")
def weighted(address: Address, target: GpuTarget) -> KernelFunction:
    """A ``conv2d``, ``depthwise_conv2d`` or ``linear`` kernel; its weight is (C_out, KH, KW, C_in / groups)."""
    key, width_in, width_out = address.key, address.width_in, address.width_out
    shape, in_order = ConvolutionShape.of(key), weight_shape(address)
    output_shape = shape.output(width_out)
    arguments = weighted_arguments(
        address, shape.image(width_in), (width_out, *shape.kernel, in_order[1]), key.types.weight
    )

    def compute(image: Any, *others: Any) -> Any:
        *residual, weight, bias = others
        around = padded(image, (shape.rows, shape.columns), width_in, is_planar=shape.planar)
        sums = _sums(around, weight, shape, width_out, width_in // in_order[1])

        def value(*at: Any) -> Any:
            added = residual[0](*at) if residual else None
            return apply_epilogue(sums(*at), key.epilogue, bias[at[-1]], added)

        return te.compute(output_shape, value, name="output")

    def pack(dense: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(dense.reshape(in_order).transpose(0, 2, 3, 1))

    return gpu_kernel(key, arguments, output_shape, compute, target, pack)


def _sums(image: Any, weight: Any, shape: ConvolutionShape, width_out: int, groups: int) -> Any:
    """The convolution without its epilogue."""
    (kh, kw), (sh, sw), (dh, dw) = shape.kernel, shape.stride, shape.dilation
    rows, columns = te.reduce_axis((0, kh), name="row"), te.reduce_axis((0, kw), name="column")
    read, made = int(weight.shape[-1]), width_out // groups
    channels = [te.reduce_axis((0, read), name="channel")] if read > 1 or groups == 1 else []

    def product(n: Any, y: Any, x: Any, c: Any) -> Any:
        channel = channels[0] if channels else 0
        first = 0 if groups == 1 else c // made * read
        pixel = image(n, y * sh + rows * dh, x * sw + columns * dw, first + channel)
        return te.sum(pixel * weight(c, rows, columns, channel), axis=[rows, columns, *channels])

    return te.compute((shape.batch, shape.out_height, shape.out_width, width_out), product, name="sums")
