"""Products of computed matrices and attention as tensor expressions."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from aap_hw.compile.code.expressions import exp, number
from aap_hw.compile.code.function import KernelFunction, apply_epilogue
from aap_hw.compile.code.products import (
    UNSEEN,
    attention_arguments,
    attention_operands,
    is_seen,
    masked,
    matmul_arguments,
    place,
)
from aap_hw.compile.families.products import AttentionShape, MatmulShape
from aap_hw.compile.gpu.scheduling import KERNELS, gpu_kernel
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import GpuTarget


@KERNELS.register("matmul")
def matmul(address: Address, target: GpuTarget) -> KernelFunction:
    """One product of matrices for each head."""
    key, shape = address.key, MatmulShape.of(address)

    def compute(one: Any, other: Any) -> Any:
        left, right = (other, one) if shape.constant[0] else (one, other)
        k = te.reduce_axis((0, shape.inner), name="k")

        def product(n: Any, h: Any, row: Any, column: Any) -> Any:
            factors = left(place(shape.left, n, h, row, k)), right(place(shape.right, n, h, k, column))
            return te.sum(factors[0] * factors[1], axis=k)

        sums = te.compute(shape.output, product, name="sums")
        return te.compute(shape.output, lambda *at: apply_epilogue(sums(*at), key.epilogue, None, None), name="output")

    return gpu_kernel(key, matmul_arguments(address), shape.output, compute, target)


@KERNELS.register("attention")
def attention(address: Address, target: GpuTarget) -> KernelFunction:
    """softmax(Q K^T * scale + mask) V for each head."""
    key, shape = address.key, AttentionShape.of(address)
    heads = shape.batch, shape.heads, shape.queries

    def compute(*given: Any) -> Any:
        queries, keys, values, *masks = attention_operands(shape, given)
        k = te.reduce_axis((0, shape.inner), name="k")
        a, b, c = (te.reduce_axis((0, shape.keys), name=name) for name in "abc")

        def of_keys(h: Any) -> Any:
            return h if shape.shared == 1 else h // shape.shared

        def product(n: Any, h: Any, q: Any, s: Any) -> Any:
            return te.sum(queries(place(shape.query, n, h, q, k)) * keys(place(shape.key, n, of_keys(h), s, k)), axis=k)

        products = te.compute((*heads, shape.keys), product, name="products")

        def score(n: Any, h: Any, q: Any, s: Any) -> Any:
            result = products(n, h, q, s) * number(shape.scale)
            unseen = number(UNSEEN)
            result = masked(shape, key.attribute("masked") == "unseen", result, masks, n, h, q, s)
            return tirx.Select(s <= q, result, unseen) if key.attribute("causal") else result

        scores = te.compute((*heads, shape.keys), score, name="scores")
        largest = te.compute(heads, lambda *at: te.max(scores(*at, a), axis=a), name="largest")
        powers = te.compute((*heads, shape.keys), lambda *at: exp(scores(*at) - largest(*at[:-1])), name="powers")
        total = te.compute(heads, lambda *at: te.sum(powers(*at, b), axis=b), name="total")

        def by_head(n: Any, one: Any, other: Any) -> tuple[Any, ...]:
            return (n, one, other) if shape.by_head else (n, other, one)

        def weighted(n: Any, one: Any, other: Any, v: Any) -> Any:
            n, h, q = by_head(n, one, other)
            return te.sum(powers(n, h, q, c) * values(place(shape.value, n, of_keys(h), c, v)), axis=c)

        sums = te.compute(shape.output, weighted, name="sums")

        def value(*at: Any) -> Any:
            row = by_head(*at[:3])
            return tirx.Select(is_seen(largest(*row)), sums(*at) / total(*row), number(0.0))

        return te.compute(shape.output, value, name="output")

    return gpu_kernel(key, attention_arguments(address), shape.output, compute, target)
