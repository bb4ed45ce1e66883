"""Values in their order and running sums as tensor expressions: nothing that threads would have to wait for."""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx

from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import KernelFunction, activations
from aap_hw.compile.code.order import BLOCK, comes_before
from aap_hw.compile.families.order import ordered_shape
from aap_hw.compile.families.reductions import Reduction
from aap_hw.compile.gpu.scheduling import FALLBACK, KERNELS, gpu_kernel
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import GpuTarget


@KERNELS.register("argsort")
def argsort(address: Address, target: GpuTarget) -> KernelFunction:
    """The rank of a value is how many come before it; then each rank looks for its value."""
    key, shape, made = address.key, Reduction.of(address), ordered_shape(address)

    def compute(image: Any) -> Any:
        other, place = (te.reduce_axis((0, shape.reduced), name=name) for name in ("other", "place"))

        def is_ahead(a: Any, i: Any, b: Any) -> Any:
            one, two = image(a, other, b), image(a, i, b)
            # Not "no one comes before the other": TVM turns that round as if every value were a number.
            is_equal = tirx.any(one == two, tirx.all(tirx.isnan(one), tirx.isnan(two)))
            found = tirx.any(comes_before(key, one, two), tirx.all(other < i, is_equal))
            return te.sum(tirx.Select(found, tirx.const(1, "int32"), tirx.const(0, "int32")), axis=other)

        ranks = te.compute(shape.source, is_ahead, name="ranks")

        def found(a: Any, k: Any, b: Any) -> Any:
            here = tirx.Select(ranks(a, place, b) == k, tirx.Cast(key.types.made, place), number(0.0))
            return te.sum(here, axis=place)

        return te.compute(made, found, name="output")

    return gpu_kernel(key, activations(key, shape.source), made, compute, target, rules=FALLBACK)


@KERNELS.register("cumsum")
def cumsum(address: Address, target: GpuTarget) -> KernelFunction:
    """Sums of blocks; then each value adds those of the blocks before it and the values of its own up to itself."""
    key, shape = address.key, Reduction.of(address)
    blocks = math.ceil(shape.reduced / BLOCK)

    def compute(image: Any) -> Any:
        inside, before, here = (
            te.reduce_axis((0, length), name=name)
            for length, name in ((BLOCK, "inside"), (blocks, "before"), (BLOCK, "here"))
        )

        def if_at_most(a: Any, i: Any, b: Any, last: Any) -> Any:
            return tirx.if_then_else(i <= last, image(a, te.min(i, shape.reduced - 1), b), number(0.0))

        totals = te.compute(
            (shape.outer, blocks, shape.inner),
            lambda a, i, b: te.sum(if_at_most(a, i * BLOCK + inside, b, shape.reduced - 1), axis=inside),
            name="totals",
        )
        ahead = te.compute(
            (shape.outer, blocks, shape.inner),
            lambda a, i, b: te.sum(tirx.if_then_else(before < i, totals(a, before, b), number(0.0)), axis=before),
            name="ahead",
        )
        own = te.compute(
            shape.source,
            lambda a, i, b: te.sum(if_at_most(a, i // BLOCK * BLOCK + here, b, i), axis=here),
            name="own",
        )
        return te.compute(shape.source, lambda a, i, b: ahead(a, i // BLOCK, b) + own(a, i, b), name="output")

    return gpu_kernel(key, activations(key, shape.source), shape.source, compute, target, rules=FALLBACK)
