"""Convolutions of volumes as tensor expressions, in the form that dlight's rule for matrix products expects."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import te

from aap_hw.compile.code.convolution import weighted_arguments
from aap_hw.compile.code.function import KernelFunction, apply_epilogue
from aap_hw.compile.families.volume import VolumeShape
from aap_hw.compile.gpu.scheduling import KERNELS, gpu_kernel, padded
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import GpuTarget


@KERNELS.register("conv3d", "depthwise_conv3d")
def volume(address: Address, target: GpuTarget) -> KernelFunction:
    """A ``conv3d`` or ``depthwise_conv3d`` kernel; its weight is (C_out, KD, KH, KW, C_in / groups)."""
    key, width_in, width_out = address.key, address.width_in, address.width_out
    shape = VolumeShape.of(key)
    groups = shape.groups if key.op == "conv3d" else width_in
    read, made = width_in // groups, width_out // groups
    output_shape = shape.output(width_out)
    arguments = weighted_arguments(address, shape.volume(width_in), (width_out, *shape.kernel, read))

    def compute(image: Any, *others: Any) -> Any:
        *residual, weight, bias = others
        source = padded(image, shape.axes, width_in)
        taps = [te.reduce_axis((0, extent), name="tap") for extent in shape.kernel]
        channel = te.reduce_axis((0, read), name="channel")

        def product(n: Any, *at: Any) -> Any:
            *places, c = at
            first = 0 if groups == 1 else c // made * read
            windows = zip(places, taps, shape.axes, strict=True)
            pixel = [place * axis.stride + tap * axis.dilation for place, tap, axis in windows]
            return te.sum(source(n, *pixel, first + channel) * weight(c, *taps, channel), axis=[*taps, channel])

        sums = te.compute(output_shape, product, name="sums")

        def value(*at: Any) -> Any:
            return apply_epilogue(sums(*at), key.epilogue, bias[at[-1]], residual[0](*at) if residual else None)

        return te.compute(output_shape, value, name="output")

    def pack(dense: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(dense.reshape(width_out, read, *shape.kernel).transpose(0, 2, 3, 4, 1))

    return gpu_kernel(key, arguments, output_shape, compute, target, pack)
