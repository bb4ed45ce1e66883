"""Sums of many values: several vectors of partial sums, in blocks, so that float32 stays accurate for any number.

The error of a sum in float32 grows with the length of its longest chain of additions, not with the number of values.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from aap_hw.compile.cpu.emit import constant, lanes_for, registers, store, vector
from aap_hw.compile.keys.target import CpuTarget

# Independent vectors that hide the latency of an addition.
VECTORS_AT_ONCE = 4
# Additions to one partial sum before it goes to the sum of them.
LONGEST_CHAIN = 128

Vector = Callable[[Any, int], Any]


def vector_sums(count: int, vectors: int, lanes: int, type_: str, value: Vector) -> Any:
    """A buffer with the sum of ``value(i, v)`` over i < ``count`` as a vector of ``lanes``, for each v.

    With few vectors there are several partial sums for each, which are added at the end.
    """
    apart = max(1, min(VECTORS_AT_ONCE // vectors, count))
    size = apart * vectors * lanes
    turns, sums = count // apart, registers(size, type_)

    def add(turn: Any, into: Any, at_once: int = apart) -> None:
        for u in range(at_once):
            for v in range(vectors):
                at = (u * vectors + v) * lanes
                store(into, vector(into, at, lanes) + value(turn + u, v), at, lanes)

    def clear(buffer: Any) -> None:
        for at in range(0, size, lanes):
            store(buffer, constant(0.0, lanes, type_), at, lanes)

    clear(sums)
    if turns <= 2 * LONGEST_CHAIN:
        with T.serial(0, turns) as turn:
            add(turn * apart, sums)
    else:
        # One loop for blocks of all lengths: of several in a row LLVM keeps the sums of one in memory.
        parts = registers(size, type_)
        with T.serial(0, -(-turns // LONGEST_CHAIN)) as block:
            first = T.bind(block * LONGEST_CHAIN)
            length = T.bind(T.min(LONGEST_CHAIN, turns - first)) if turns % LONGEST_CHAIN else LONGEST_CHAIN
            clear(parts)
            with T.serial(0, length) as turn:
                add((first + turn) * apart, parts)
            for at in range(0, size, lanes):
                store(sums, vector(sums, at, lanes) + vector(parts, at, lanes), at, lanes)
    for left in range(turns * apart, count):
        add(left, sums, 1)
    for at in range(vectors * lanes, size, lanes):
        own = at % (vectors * lanes)
        store(sums, vector(sums, own, lanes) + vector(sums, at, lanes), own, lanes)
    return sums


def row_sum(extent: int, target: CpuTarget, type_: str, value: Callable[[Any, int], Any]) -> Any:
    """The sum of a row; ``value(i, lanes)`` are its values from i on."""
    lanes = lanes_for(extent, target, type_)
    full, tail = divmod(extent, lanes)
    sums = vector_sums(full, 1, lanes, type_, lambda i, _: value(i * lanes, lanes))
    if tail:  # the last vector, without its overlap with the one before
        is_new = T.ramp(0, 1, lanes) >= T.broadcast(lanes - tail, lanes)
        last = T.Select(is_new, value(extent - lanes, lanes), constant(0.0, lanes, type_))
        store(sums, vector(sums, 0, lanes) + last, 0, lanes)
    return folded(sums, lanes, operator.add)


def row_extreme(extent: int, target: CpuTarget, type_: str, value: Callable[[Any, int], Any], combine: Any) -> Any:
    """The largest or smallest value of a row; ``value(i, lanes)`` are its values from i on."""
    lanes = lanes_for(extent, target, type_)
    full, tail = divmod(extent, lanes)
    found = vector_extremes(full, 1, lanes, type_, lambda i, _: value(i * lanes, lanes), combine)
    if tail:
        store(found, combine(vector(found, 0, lanes), value(extent - lanes, lanes)), 0, lanes)
    return folded(found, lanes, combine)


def vector_extremes(count: int, vectors: int, lanes: int, type_: str, value: Vector, combine: Any) -> Any:
    """A buffer with the largest or smallest ``value(i, v)`` over i < ``count`` as a vector, for each v."""
    apart = max(1, min(VECTORS_AT_ONCE // vectors, count))
    size = apart * vectors * lanes
    turns, found = count // apart, registers(size, type_)

    def take(first: Any, at_once: int) -> None:
        for u in range(at_once):
            for v in range(vectors):
                at = (u * vectors + v) * lanes
                store(found, combine(vector(found, at, lanes), value(first + u, v)), at, lanes)

    for u in range(apart):
        for v in range(vectors):
            store(found, value(u, v), (u * vectors + v) * lanes, lanes)
    if turns > 1:
        with T.serial(0, turns - 1) as turn:
            take((turn + 1) * apart, apart)
    for left in range(turns * apart, count):
        take(left, 1)
    for at in range(vectors * lanes, size, lanes):
        own = at % (vectors * lanes)
        store(found, combine(vector(found, own, lanes), vector(found, at, lanes)), own, lanes)
    return found


def folded(buffer: Any, lanes: int, combine: Callable[[Any, Any], Any]) -> Any:
    """The lanes of the first vector of a buffer, combined into one value."""
    while lanes > 1:
        lanes //= 2
        store(buffer, combine(vector(buffer, 0, lanes), vector(buffer, lanes, lanes)), 0, lanes)
    return T.bind(buffer[0])
