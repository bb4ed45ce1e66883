"""Reductions along one axis as tensor expressions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import KernelFunction, activations
from aap_hw.compile.code.reductions import finished
from aap_hw.compile.families.reductions import Reduction
from aap_hw.compile.gpu.scheduling import FALLBACK, KERNELS, gpu_kernel
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import GpuTarget

# Those of TVM begin with the largest finite number, and a row may have only infinite ones.
EXTREMES = {
    "max": te.comm_reducer(lambda one, other: te.max(one, other), lambda t: tirx.const(-math.inf, t), "largest"),
    "min": te.comm_reducer(lambda one, other: te.min(one, other), lambda t: tirx.const(math.inf, t), "smallest"),
}


def along(shape: Reduction, name: str, value: Callable[..., Any], combine: Any = te.sum) -> Any:
    """Sums or extreme values along the middle axis."""
    axis = te.reduce_axis((0, shape.reduced), name=f"{name}_axis")
    return te.compute(shape.output, lambda a, b: combine(value(a, axis, b), axis=axis), name=name)


@KERNELS.register("reduce")
def reduction(address: Address, target: GpuTarget) -> KernelFunction:
    """A reduction along an axis."""
    key, shape = address.key, Reduction.of(address)
    kind = key.attribute("of")

    def compute(image: Any) -> Any:
        if kind in ("argmax", "argmin"):
            extreme = along(shape, "extreme", image, EXTREMES[kind[-3:]])

            def place(a: Any, i: Any, b: Any) -> Any:
                last = number(shape.reduced - 1)  # also where all are NaN, which equals nothing
                return tirx.Select(image(a, i, b) == extreme(a, b), tirx.Cast(key.types.sum, i), last)

            found = along(shape, "places", place, te.min)
        elif kind in ("amax", "amin"):
            found = along(shape, "extreme", image, EXTREMES[kind[-3:]])
        elif kind in ("sum", "mean"):
            found = along(shape, "sums", image)
        else:
            sums = along(shape, "means", image) if kind in ("var", "std") else None

            def square(a: Any, i: Any, b: Any) -> Any:
                value = image(a, i, b) if sums is None else image(a, i, b) - sums(a, b) * number(1 / shape.reduced)
                return value * value

            found = along(shape, "squares", square)
        return te.compute(shape.output, lambda *at: finished(key, shape.reduced, found(*at)), name="output")

    return gpu_kernel(key, activations(key, shape.source), shape.output, compute, target, rules=FALLBACK)
