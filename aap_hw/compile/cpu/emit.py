"""Explicit loop nests for CPU kernels: register tiles, vectors that cover any channel count, padded images.

Thin helpers around TVM's IR builder. A kernel that is written with them says where every value lives; TVM's schedule
primitives would have to prove what is plain here. What a kernel computes is in the module of its operator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.expressions import number
from aap_hw.compile.code.function import OPAQUE
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.keys.precision import FLOAT32
from aap_hw.compile.keys.target import CpuTarget

# Loads hide behind arithmetic but for about this share of a cycle each.
COST_OF_LOAD = 0.15
# Independent accumulators that keep two fused multiply-add units busy over their latency of about five cycles.
ACCUMULATORS_FOR_FULL_RATE = 10
AVX512_BYTES = 64


@dataclass(frozen=True)
class Tensor:
    """A parameter of a kernel; extents may be variables."""

    name: str
    shape: tuple[Any, ...]
    type: str


def kernel_code(tensors: Sequence[Tensor], body: Callable[..., None]) -> tirx.PrimFunc:
    """A PrimFunc over flat buffers, the last one its output.

    ``body`` is called with the buffers and writes the loops. Their declared shapes are what callers see; indices are
    flat. The buffers must not overlap.
    """
    with IRBuilder() as builder, T.prim_func():
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": OPAQUE})
        buffers = [T.arg(tensor.name, T.buffer(tensor.shape, tensor.type)) for tensor in tensors]
        body(*[T.decl_buffer((math.prod(b.shape),), b.dtype, data=b.data) for b in buffers])
    return builder.get()


def scratch(elements: int, type_: str) -> Any:
    """A buffer in memory for intermediate values."""
    return T.alloc_buffer((elements,), type_)


def registers(elements: int, type_: str) -> Any:
    """A buffer for intermediate values that is small enough for registers."""
    return T.alloc_buffer((elements,), type_, scope="local")


def loop(extent: int, target: CpuTarget | None = None) -> Any:
    """A loop from 0; over the target's threads if there are several."""
    return T.parallel(0, extent) if target is not None and target.threads > 1 else T.serial(0, extent)


def vector(buffer: Any, index: Any, lanes: int) -> Any:
    """``lanes`` neighbouring values of a flat buffer."""
    return buffer[T.ramp(index, 1, lanes)] if lanes > 1 else buffer[index]


def store(buffer: Any, value: Any, index: Any, lanes: int) -> None:
    """Write ``lanes`` neighbouring values."""
    T.buffer_store(buffer, value, [T.ramp(index, 1, lanes) if lanes > 1 else index])


def lane_loop(lanes: int) -> Any:
    """A loop over the lanes of one vector, for expressions of single values."""
    return T.vectorized(0, lanes) if lanes > 1 else T.unroll(0, 1)


def constant(value: float, lanes: int, type_: str) -> Any:
    """A vector of one value."""
    return spread(number(value, type_), lanes)


def spread(value: Any, lanes: int) -> Any:
    """A scalar as a vector."""
    return T.broadcast(value, lanes) if lanes > 1 else value


@dataclass(frozen=True)
class Steps:
    """Steps of ``length`` that cover ``extent``; the last one is moved back to end with it, so that no tail is left.

    What the last two steps share is computed twice, with the same result.
    """

    extent: int
    length: int

    @property
    def count(self) -> int:
        """How many steps there are."""
        return math.ceil(self.extent / self.length)

    def start(self, index: Any) -> Any:
        """Where a step begins; ``index`` may be an expression."""
        if isinstance(index, int):
            return min(index * self.length, self.extent - self.length)
        return (
            T.min(index * self.length, self.extent - self.length) if self.extent % self.length else index * self.length
        )


def lanes_for(channels: int, target: CpuTarget, type_: str = FLOAT32) -> int:
    """Vector length for a channel count: the longest that fits, or half a register of AVX-512 where that has no tail.

    Half of a shorter register takes as long as all of it.
    """
    lanes = target.lanes_of(type_)
    half = lanes // 2
    if target.vector_bytes >= AVX512_BYTES and channels % lanes and channels % half == 0:
        return half
    return min(lanes, 1 << (channels.bit_length() - 1))


@dataclass(frozen=True)
class Tile:
    """Register tile: ``pixels`` x ``vectors`` accumulators of ``lanes`` output channels each."""

    pixels: int
    vectors: int
    lanes: int

    @property
    def channels(self) -> int:
        """Output channels of one tile."""
        return self.vectors * self.lanes

    def cycles(self, pixels: int, channels: int) -> float:
        """Estimated cycles that one step of a reduction takes for ``pixels`` x ``channels`` outputs.

        A tile takes a cycle for each accumulator (or each load where there are more of these), and never less than the
        latency of the arithmetic. Work that the last tiles repeat counts.
        """
        accumulators, loads = self.pixels * self.vectors, self.pixels + self.vectors
        step = max(accumulators, loads, ACCUMULATORS_FOR_FULL_RATE) + COST_OF_LOAD * loads
        return step * Steps(pixels, self.pixels).count * Steps(channels, self.channels).count


@functools.cache
def choose_tile(pixels: int, channels: int, target: CpuTarget, type_: str = FLOAT32) -> Tile:
    """The tile that needs the fewest cycles for ``pixels`` x ``channels`` outputs, of those that fit the registers."""
    lanes = lanes_for(channels, target, type_)
    # Beside the accumulators: a vector of weights each, and one pixel's value.
    spare = target.registers + (target.vector_bytes < AVX512_BYTES)
    candidates = [
        Tile(p, v, lanes)
        for v in range(1, min(channels // lanes, target.registers) + 1)
        for p in range(1, min(pixels, target.registers) + 1)
        if p * v + v + 1 < spare
    ]
    return min(candidates, key=lambda tile: (tile.cycles(pixels, channels), -tile.pixels))


def accumulate(
    tile: Tile,
    reduction: Sequence[int],
    pixel: Callable[..., Any],
    weight: Callable[..., Any],
    type_: str,
) -> Callable[[int, int, Any], Any]:
    """Sum pixel x weight over the loops of ``reduction`` in registers.

    ``pixel(*indices, p)`` is the scalar of pixel p, ``weight(*indices, v)`` the v-th vector of weights, both of
    the type that is summed up in. Returns what reads one lane of the sum of (p, v).
    """
    sums = registers(tile.pixels * tile.vectors * tile.lanes, type_)

    def at(p: int, v: int) -> int:
        return (p * tile.vectors + v) * tile.lanes

    for p in range(tile.pixels):
        for v in range(tile.vectors):
            store(sums, constant(0.0, tile.lanes, type_), at(p, v), tile.lanes)
    with ExitStack() as loops:
        indices = [loops.enter_context(T.serial(0, extent)) for extent in reduction]
        weights = [T.bind(weight(*indices, v)) for v in range(tile.vectors)]
        for p in range(tile.pixels):
            value = T.bind(spread(pixel(*indices, p), tile.lanes))
            for v in range(tile.vectors):
                index = at(p, v)
                store(sums, vector(sums, index, tile.lanes) + value * weights[v], index, tile.lanes)
    return lambda p, v, lane: sums[at(p, v) + lane]


def padded_image(
    image: Any, shape: ConvolutionShape, channels: int, target: CpuTarget, padding: tuple[int, int] | None = None
) -> Any:
    """The image as a flat NHWC buffer with zeros around it, as its shape says or as given; itself if it is that."""
    (height, width), (top, left) = shape.size, shape.padding if padding is None else padding
    if (top, left) == (0, 0) and not shape.planar:
        return image
    rows, row = height + 2 * top, (width + 2 * left) * channels
    padded = scratch(shape.batch * rows * row, image.dtype)
    with loop(shape.batch * rows, target) as r:
        n, y = T.bind(r // rows), T.bind(r % rows - top)
        start = T.bind(r * row)
        with T.If(tirx.all(y >= 0, y < height)):
            with T.Then():
                _fill(padded, start, left * channels, target)
                if shape.planar:
                    with T.serial(0, width) as x, T.serial(0, channels) as c:
                        source = ((n * channels + c) * height + y) * width + x
                        T.buffer_store(padded, image[source], [start + (left + x) * channels + c])
                else:
                    _copy(
                        image,
                        (n * height + y) * width * channels,
                        padded,
                        start + left * channels,
                        width * channels,
                        target,
                    )
                _fill(padded, start + (left + width) * channels, left * channels, target)
            with T.Else():
                _fill(padded, start, row, target)
    return padded


def _fill(buffer: Any, start: Any, length: int, target: CpuTarget) -> None:
    if length:
        steps = Steps(length, lanes_for(length, target, buffer.dtype))
        with T.serial(0, steps.count) as i:
            store(buffer, constant(0.0, steps.length, buffer.dtype), start + steps.start(i), steps.length)


def _copy(source: Any, read: Any, buffer: Any, start: Any, length: int, target: CpuTarget) -> None:
    steps = Steps(length, lanes_for(length, target, buffer.dtype))
    with T.serial(0, steps.count) as i:
        at = T.bind(steps.start(i))
        store(buffer, vector(source, read + at, steps.length), start + at, steps.length)
