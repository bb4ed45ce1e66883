"""Softmax over channels, and along one axis, as tensor expressions."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from aap_hw.compile.code.expressions import exp
from aap_hw.compile.code.function import KernelFunction, activations
from aap_hw.compile.families import image_shape
from aap_hw.compile.families.reductions import Reduction
from aap_hw.compile.gpu.reductions import along
from aap_hw.compile.gpu.scheduling import FALLBACK, KERNELS, gpu_kernel
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import GpuTarget


@KERNELS.register("softmax")
def softmax(address: Address, target: GpuTarget) -> KernelFunction:
    """e^(x - max) / sum over the channels of vectors, or of the pixels of an image."""
    key, channels = address.key, address.width_in
    shape = image_shape(key, channels)

    def compute(image: Any) -> Any:
        k, j = te.reduce_axis((0, channels), name="k"), te.reduce_axis((0, channels), name="j")
        largest = te.compute(shape[:-1], lambda *pixel: te.max(image(*pixel, k), axis=k), name="largest")
        powers = te.compute(shape, lambda *at: exp(image(*at) - largest(*at[:-1])), name="powers")
        total = te.compute(shape[:-1], lambda *pixel: te.sum(powers(*pixel, j), axis=j), name="total")
        return te.compute(shape, lambda *at: powers(*at) / total(*at[:-1]), name="output")

    return gpu_kernel(key, activations(key, shape), shape, compute, target)


@KERNELS.register("axis_softmax")
def axis_softmax(address: Address, target: GpuTarget) -> KernelFunction:
    """e^(x - max) / sum along an axis, or its logarithm."""
    key, shape = address.key, Reduction.of(address)

    def compute(image: Any) -> Any:
        largest = along(shape, "largest", image, te.max)
        powers = te.compute(shape.source, lambda a, i, b: exp(image(a, i, b) - largest(a, b)), name="powers")
        total = along(shape, "total", powers)

        def value(a: Any, i: Any, b: Any) -> Any:
            if key.attribute("log"):
                return image(a, i, b) - largest(a, b) - tirx.log(total(a, b))
            return powers(a, i, b) / total(a, b)

        return te.compute(shape.source, value, name="output")

    return gpu_kernel(key, activations(key, shape.source), shape.source, compute, target, rules=FALLBACK)
