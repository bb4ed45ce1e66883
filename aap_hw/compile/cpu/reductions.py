"""Reductions along one axis: with vectors along it if it is the last axis, else along the axes behind it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import KernelFunction, activations
from aap_hw.compile.code.reductions import finished
from aap_hw.compile.cpu.emit import Steps, constant, lane_loop, lanes_for, registers, spread, store, vector
from aap_hw.compile.cpu.kernels import KERNELS
from aap_hw.compile.cpu.loops import light_kernel, row_loop
from aap_hw.compile.cpu.places import place_of_extreme
from aap_hw.compile.cpu.pooling import vectors_at_once
from aap_hw.compile.cpu.sums import row_extreme, row_sum, vector_extremes, vector_sums
from aap_hw.compile.families.reductions import Reduction
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget

Value = Callable[[Any, Any], Any]
"""``value(i, which)`` is a vector: along the axis, ``which`` lanes from i on; behind it, vector ``which`` at i."""

Summary = Callable[[Any], Any]
"""``summary(which)`` is the result as a vector: of ``which`` lanes, or vector ``which``."""


class Total(Protocol):
    """Sums up vectors."""

    def __call__(self, value: Value, factor: float = 1.0) -> Summary:
        """The sum of all ``value(i, which)`` over i, times a factor."""


def _summary(kind: str, reduced: int, value: Value, total: Total, extreme: Callable[[Any], Summary]) -> Summary:
    """The sum or extreme value that a reduction is computed from."""
    if kind in ("amax", "amin"):
        return extreme(T.max if kind == "amax" else T.min)
    if kind in ("sum", "mean"):
        return total(value)
    mean = total(value, 1 / reduced) if kind in ("var", "std") else None

    def square(i: Any, which: Any) -> Any:
        difference = value(i, which) if mean is None else value(i, which) - mean(which)
        return difference * difference

    return total(square)


@KERNELS.register("reduce")
def reduction(address: Address, target: CpuTarget) -> KernelFunction:
    """A reduction along an axis."""
    key, shape = address.key, Reduction.of(address)
    if key.attribute("of") in ("argmax", "argmin"):
        return place_of_extreme(address, target)
    type_ = key.types.sum

    def made(found: Any) -> Any:
        return finished(key, shape.reduced, found)

    return light_kernel(
        key, activations(key, shape.source), shape.output, reduction_loops(address, target, type_, vector, made)
    )


def reduction_loops(
    address: Address,
    target: CpuTarget,
    type_: str,
    read: Callable[[Any, Any, int], Any],
    made: Callable[[Any], Any],
) -> Callable[[Any, Any], None]:
    """What writes the loops of a reduction, given the buffers of what is read and made.

    It computes in a type: ``read(buffer, index, lanes)`` is a vector of what is read, and ``made(found)`` is what is
    stored for a sum or extreme value.
    """
    shape, values = Reduction.of(address), math.prod(Reduction.of(address).source)
    kind = address.key.attribute("of")
    lanes = lanes_for(shape.inner, target, type_)
    count = vectors_at_once(shape.inner, lanes)
    blocks = Steps(shape.inner, count * lanes)

    def along(image: Any, output: Any) -> None:
        def total(value: Value, factor: float = 1.0) -> Summary:
            result = T.bind(row_sum(shape.reduced, target, type_, value) * number(factor, type_))
            return lambda lanes: spread(result, lanes)

        with row_loop(shape.outer, target, values) as row:
            first = T.bind(row * shape.reduced)

            def value(i: Any, lanes: int) -> Any:
                return read(image, first + i, lanes)

            def extreme(combine: Any) -> Summary:
                return lambda _: row_extreme(shape.reduced, target, type_, value, combine)

            found = _summary(kind, shape.reduced, value, total, extreme)(1)
            T.buffer_store(output, made(found), [row])

    def behind(image: Any, output: Any) -> None:
        def total(value: Value, factor: float = 1.0) -> Summary:
            sums = vector_sums(shape.reduced, count, lanes, type_, value)
            return lambda v: vector(sums, v * lanes, lanes) * constant(factor, lanes, type_)

        with row_loop(shape.outer * blocks.count, target, values) as block:
            row, place = T.bind(block // blocks.count), T.bind(blocks.start(block % blocks.count))

            def value(i: Any, v: int) -> Any:
                return read(image, (row * shape.reduced + i) * shape.inner + place + v * lanes, lanes)

            def extreme(combine: Any) -> Summary:
                found = vector_extremes(shape.reduced, count, lanes, type_, value, combine)
                return lambda v: vector(found, v * lanes, lanes)

            found = _summary(kind, shape.reduced, value, total, extreme)
            results = registers(lanes, type_)
            for v in range(count):
                store(results, found(v), 0, lanes)
                with lane_loop(lanes) as lane:
                    at = row * shape.inner + place + v * lanes + lane
                    T.buffer_store(output, made(results[lane]), [at])

    return along if shape.inner == 1 else behind
