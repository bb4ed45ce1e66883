"""Products of computed matrices, and attention, head by head with the register tiles of convolutions.

If the rows of the right matrix are contiguous, it is read in place; otherwise it is copied first, one head at a time.
The scores of a few queries stay in the cache until they are multiplied by the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

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
from aap_hw.compile.cpu.emit import Steps, lane_loop, lanes_for, loop, scratch, vector
from aap_hw.compile.cpu.kernels import KERNELS
from aap_hw.compile.cpu.loops import channel_loop, light_kernel
from aap_hw.compile.cpu.sums import row_extreme, row_sum
from aap_hw.compile.cpu.tiles import accumulate, choose_tile
from aap_hw.compile.families.products import AttentionShape, MatmulShape, Walk
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget

# Most queries, and most scores, that are kept at a time.
MOST_QUERIES, MOST_SCORES = 32, 1 << 14


@KERNELS.register("matmul")
def matmul(address: Address, target: CpuTarget) -> KernelFunction:
    """One product of matrices for each head."""
    key, shape = address.key, MatmulShape.of(address)

    def body(one: Any, other: Any, output: Any) -> None:
        left, right = (other, one) if shape.constant[0] else (one, other)
        with loop(shape.batch * shape.heads, target) as head:
            n, h = T.bind(head // shape.heads), T.bind(head % shape.heads)
            columns = _contiguous(right, shape.right, (n, h), (shape.inner, shape.columns), target)

            def value(row: Any, k: Any) -> Any:
                return left[place(shape.left, n, h, row, k)]

            def write(row: Any, column: Any, result: Any) -> None:
                at = (head * shape.rows + row) * shape.columns + column
                T.buffer_store(output, apply_epilogue(result, key.epilogue, None, None), [at])

            _tiles((shape.rows, shape.inner, shape.columns), value, columns, write, key.types.sum, target)

    return light_kernel(key, matmul_arguments(address), shape.output, body)


@KERNELS.register("attention")
def attention(address: Address, target: CpuTarget) -> KernelFunction:
    """softmax(Q K^T * scale + mask) V for each head, a few queries at a time."""
    key, shape = address.key, AttentionShape.of(address)
    type_, keys = key.types.sum, shape.keys
    blocks = math.ceil(shape.queries / max(1, min(MOST_QUERIES, MOST_SCORES // keys)))
    block = Steps(shape.queries, math.ceil(shape.queries / blocks))

    def body(*buffers: Any) -> None:
        *given, output = buffers
        queries, keys_, values, *masks = attention_operands(shape, given)
        with loop(shape.batch * shape.heads, target) as head:
            n, h = T.bind(head // shape.heads), T.bind(head % shape.heads)
            of_keys = n, h if shape.shared == 1 else T.bind(h // shape.shared)
            turned = Walk(shape.key.size, (*shape.key.strides[:2], *shape.key.strides[:1:-1]), shape.key.offset)
            columns = _contiguous(keys_, turned, of_keys, (shape.inner, keys), target, scale=shape.scale)
            rows = _contiguous(values, shape.value, of_keys, (keys, shape.columns), target)
            scores, shares = scratch(block.length * keys, type_), scratch(block.length, type_)
            with T.serial(0, block.count) as step:
                first = T.bind(block.start(step))

                def query(row: Any, k: Any) -> Any:
                    return queries[place(shape.query, n, h, first + row, k)]

                def score(row: Any, column: Any, result: Any) -> None:
                    q = first + row
                    is_hiding = key.attribute("masked") == "unseen"
                    result = masked(shape, is_hiding, result, masks, n, h, q, column)
                    if key.attribute("causal"):
                        result = T.Select(column <= q, result, number(UNSEEN))
                    T.buffer_store(scores, result, [row * keys + column])

                _tiles((block.length, shape.inner, keys), query, columns, score, type_, target)
                with T.serial(0, block.length) as row:
                    _powers(scores, T.bind(row * keys), shares, row, keys, target)

                def write(row: Any, column: Any, result: Any) -> None:
                    q = first + row
                    place_of = head * shape.queries + q if shape.by_head else (n * shape.queries + q) * shape.heads + h
                    T.buffer_store(output, result * shares[row], [place_of * shape.columns + column])

                sizes = block.length, keys, shape.columns
                _tiles(sizes, lambda row, k: scores[row * keys + k], rows, write, type_, target)

    return light_kernel(key, attention_arguments(address), shape.output, body)


def _powers(scores: Any, first: Any, shares: Any, row: Any, keys: int, target: CpuTarget) -> None:
    """Turn a row of scores into e^(x - max), and store one over their sum, or 0 if no key is visible."""
    largest = row_extreme(keys, target, scores.dtype, lambda i, lanes: vector(scores, first + i, lanes), T.max)
    steps = Steps(keys, lanes_for(keys, target))
    if keys % steps.length:  # not in place: overlapping vectors would take the exponential twice
        powers = scratch(keys, scores.dtype)
        with channel_loop(keys, target) as c:
            T.buffer_store(powers, exp(scores[first + c] - largest), [c])
        with channel_loop(keys, target) as c:
            T.buffer_store(scores, powers[c], [first + c])
    else:
        with channel_loop(keys, target) as c:
            T.buffer_store(scores, exp(scores[first + c] - largest), [first + c])
    total = row_sum(keys, target, scores.dtype, lambda i, lanes: vector(scores, first + i, lanes))
    T.buffer_store(shares, T.Select(is_seen(largest), number(1.0) / total, number(0.0)), [row])


Vectors = Callable[[Any, Any, int], Any]
"""``vectors(k, column, lanes)`` are the values of row k of a matrix from a column on."""


def _contiguous(
    buffer: Any, walk: Walk, head: tuple[Any, Any], sizes: tuple[int, int], target: CpuTarget, scale: float = 1.0
) -> Vectors:
    """The matrix of a head, times a factor, with contiguous rows: in place or copied."""
    if walk.strides[3] == 1 and scale == 1.0:
        return lambda k, column, lanes: vector(buffer, place(walk, *head, k, column), lanes)
    inner, columns = sizes
    copy = scratch(inner * columns, buffer.dtype)
    with T.serial(0, columns) as column, T.serial(0, inner) as k:
        T.buffer_store(copy, buffer[place(walk, *head, k, column)] * number(scale), [k * columns + column])
    return lambda k, column, lanes: vector(copy, k * columns + column, lanes)


def _tiles(
    sizes: tuple[int, int, int],
    left: Callable[[Any, Any], Any],
    right: Vectors,
    write: Callable[[Any, Any, Any], None],
    type_: str,
    target: CpuTarget,
) -> None:
    """A product of matrices, ``left(row, k)`` times ``right``, whose results go to ``write(row, column, result)``."""
    rows, inner, columns = sizes
    tile = choose_tile(rows, columns, target, type_)
    along, deep = Steps(rows, tile.pixels), Steps(columns, tile.channels)
    with T.serial(0, deep.count) as part, T.serial(0, along.count) as step:
        first, row = T.bind(deep.start(part)), T.bind(along.start(step))
        sums = accumulate(
            tile,
            [inner],
            lambda k, p: left(row + p, k),
            lambda k, v: right(k, first + v * tile.lanes, tile.lanes),
            type_,
        )
        for v in range(tile.vectors):
            for p in range(tile.pixels):
                with lane_loop(tile.lanes) as lane:
                    write(row + p, first + v * tile.lanes + lane, sums(p, v, lane))
