"""Kernels made value by value from their definitions, and the mean over an image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import te

from aap_hw.compile.code import DEFINITIONS
from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import KernelFunction, activations, unpacked
from aap_hw.compile.families import image_shape
from aap_hw.compile.gpu.scheduling import KERNELS, gpu_kernel
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import GpuTarget


@KERNELS.register(*DEFINITIONS)
def value_by_value(address: Address, target: GpuTarget) -> KernelFunction:
    """A kernel from its definition."""
    definition = DEFINITIONS[address.key.op](address)
    arguments, shape = definition.arguments, definition.shape

    def compute(*inputs: Any) -> Any:
        return te.compute(shape, lambda *index: definition.value(inputs, *index), name="output")

    made = gpu_kernel(address.key, arguments, shape, compute, target, unpacked(arguments))
    return replace(made, literals=definition.literals)


@KERNELS.register("global_avg_pool2d")
def global_average_pool(address: Address, target: GpuTarget) -> KernelFunction:
    """The mean of each channel over a whole image."""
    key, channels = address.key, address.width_in
    shape = image_shape(key, channels)
    output = key.batch, 1, 1, channels

    def compute(image: Any) -> Any:
        rows, columns = te.reduce_axis((0, shape[1]), name="row"), te.reduce_axis((0, shape[2]), name="column")
        sums = te.compute(
            output, lambda n, y, x, c: te.sum(image(n, y + rows, x + columns, c), axis=[rows, columns]), name="sums"
        )
        return te.compute(output, lambda *at: sums(*at) * number(1 / (shape[1] * shape[2])), name="output")

    return gpu_kernel(key, activations(key, shape), output, compute, target)
