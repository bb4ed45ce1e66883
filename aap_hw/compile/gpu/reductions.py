"""Reductions and softmax along one axis as tensor expressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from aap_hw.compile.code.expressions import exp, number
from aap_hw.compile.code.function import KernelFunction, activations
from aap_hw.compile.code.reductions import finished
from aap_hw.compile.families.reductions import Reduction
from aap_hw.compile.gpu.scheduling import FALLBACK, KERNELS, gpu_kernel
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import GpuTarget


def _along(shape: Reduction, name: str, value: Callable[..., Any], combine: Any = te.sum) -> Any:
    """Sums or extreme values along the middle axis."""
    axis = te.reduce_axis((0, shape.reduced), name=f"{name}_axis")
    return te.compute(shape.output, lambda a, b: combine(value(a, axis, b), axis=axis), name=name)


@KERNELS.register("reduce")
def reduction(address: Address, target: GpuTarget) -> KernelFunction:
    """One value of those along an axis."""
    key, shape = address.key, Reduction.of(address)
    kind = key.attribute("of")

    def compute(image: Any) -> Any:
        if kind in ("amax", "amin"):
            found = _along(shape, "extreme", image, te.max if kind == "amax" else te.min)
        elif kind in ("sum", "mean"):
            found = _along(shape, "sums", image)
        else:
            sums = _along(shape, "means", image) if kind in ("var", "std") else None

            def square(a: Any, i: Any, b: Any) -> Any:
                value = image(a, i, b) if sums is None else image(a, i, b) - sums(a, b) * number(1 / shape.reduced)
                return value * value

            found = _along(shape, "squares", square)
        return te.compute(shape.output, lambda *at: finished(key, shape.reduced, found(*at)), name="output")

    return gpu_kernel(key, activations(key, shape.source), shape.output, compute, target, rules=FALLBACK)


@KERNELS.register("axis_softmax")
def softmax(address: Address, target: GpuTarget) -> KernelFunction:
    """e^(x - max) / sum along an axis, or its logarithm."""
    key, shape = address.key, Reduction.of(address)

    def compute(image: Any) -> Any:
        largest = _along(shape, "largest", image, te.max)
        powers = te.compute(shape.source, lambda a, i, b: exp(image(a, i, b) - largest(a, b)), name="powers")
        total = _along(shape, "total", powers)

        def value(a: Any, i: Any, b: Any) -> Any:
            if key.attribute("log"):
                return image(a, i, b) - largest(a, b) - tirx.log(total(a, b))
            return powers(a, i, b) / total(a, b)

        return te.compute(shape.source, value, name="output")

    return gpu_kernel(key, activations(key, shape.source), shape.source, compute, target, rules=FALLBACK)
