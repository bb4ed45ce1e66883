"""Transposed convolutions with few output channels on a CPU: vectors lie along the sum.

One output channel fills no vector. But the inputs of a row of taps lie side by side in memory with all their channels.
So each output is a product of two vectors, whose lanes are added up at the end. Phases may share what they read: all
outputs that belong to one input pixel are then sums over the same window, with zero weights where a phase has no tap.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction, apply_epilogue
from aap_hw.compile.cpu.emit import AVX512_BYTES, Steps, loop, vector
from aap_hw.compile.cpu.kernels import Packing
from aap_hw.compile.cpu.padding import Border, padded_image
from aap_hw.compile.cpu.tiles import ACCUMULATORS_FOR_FULL_RATE, Tile, accumulate, choose_tile
from aap_hw.compile.cpu.weighted import weighted_kernel
from aap_hw.compile.families import image_shape
from aap_hw.compile.families.transposed import TransposedAxis, TransposedShape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget

# Cost of loading a vector that may span two cache lines, in multiplications.
COST_OF_LOAD = 1.5
# Cost of adding up the lanes of a vector and storing the sum, in multiplications.
COST_OF_SUM = 10


@dataclass(frozen=True)
class _Windows:
    """The windows that the outputs of one input pixel read along an axis: one for all phases, or one for each."""

    axis: TransposedAxis
    is_shared: bool

    @property
    def count(self) -> int:
        return 1 if self.is_shared else len(self.axis.phases)

    @property
    def phases(self) -> int:
        """Phases that share a window."""
        return len(self.axis.phases) // self.count

    def first(self, window: Any) -> Any:
        """First input of a window, for the first outputs."""
        return min(map(self.axis.first, self.axis.phases)) if self.is_shared else self.axis.first(window)

    def length(self, window: Any) -> Any:
        """How many inputs a window has."""
        ends = [self.axis.first(phase) + self.axis.taps(phase) for phase in self.axis.phases]
        return max(ends) - self.first(0) if self.is_shared else self.axis.taps(window)

    @property
    def lengths(self) -> list[int]:
        return [self.length(window) for window in range(self.count)]

    @property
    def border(self) -> tuple[int, int]:
        """Zeros that the input must have before and behind it."""
        starts = [self.first(window) for window in range(self.count)]
        outputs = self.axis.outputs(0)  # windows are also read where a phase has one output fewer
        ends = [start + length + outputs - 1 for start, length in zip(starts, self.lengths, strict=True)]
        return max(0, *(-start for start in starts)), max(0, *(end - self.axis.size for end in ends))

    def tap(self, window: int, phase: int, place: int) -> int | None:
        """The tap that a phase has at a place of a window, or None."""
        last = self.axis.first(phase) - self.first(window) + self.axis.taps(phase) - 1
        tap = self.axis.remainder(phase) + self.axis.stride * (last - place)
        return tap if 0 <= tap < self.axis.kernel else None


@dataclass(frozen=True)
class _Plan:
    """Windows, and the register tile: pixels times outputs, with lanes along a row of a window."""

    rows: _Windows
    columns: _Windows
    channels: int
    outputs: int
    tile: Tile

    def steps(self, window: Any) -> tuple[Any, Any]:
        """Values in a row of a window, and how many vectors cover it."""
        extent = self.columns.length(window) * self.channels
        return extent, (extent + self.tile.lanes - 1) // self.tile.lanes

    @property
    def places(self) -> int:
        """Vectors in the longest row."""
        return max(int(self.steps(window)[1]) for window in range(self.columns.count))

    @property
    def cycles(self) -> float:
        """Estimated cycles for a row of the input."""
        pixels, tile = self.columns.axis.outputs(0), self.tile
        p, o = tile.pixels, tile.vectors
        step = max(p * o, ACCUMULATORS_FOR_FULL_RATE, COST_OF_LOAD * (p + o))
        windows = itertools.product(self.rows.lengths, range(self.columns.count))
        tiles = Steps(pixels, p).count * Steps(self.outputs, o).count
        return tiles * sum(length * float(self.steps(i)[1]) * step + COST_OF_SUM * p * o for length, i in windows)


@functools.cache
def _plan(address: Address, target: CpuTarget) -> _Plan:
    shape, spare = TransposedShape.of(address.key), target.registers + (target.vector_bytes < AVX512_BYTES)

    def candidates() -> Iterator[_Plan]:
        for shared in itertools.product((False, True), repeat=2):
            rows, columns = (_Windows(axis, s) for axis, s in zip((shape.rows, shape.columns), shared, strict=True))
            outputs = rows.phases * columns.phases * address.width_out
            shortest = min(filter(None, columns.lengths), default=1) * address.width_in
            lanes = min(target.lanes_of(address.key.types.sum), 1 << (shortest.bit_length() - 1))
            for o in range(1, min(outputs, target.registers) + 1):
                for p in range(1, min(columns.axis.outputs(0), target.registers) + 1):
                    if p * o + o + 1 < spare:
                        yield _Plan(rows, columns, address.width_in, outputs, Tile(p, o, lanes))

    return min(candidates(), key=lambda plan: (plan.cycles, -plan.tile.pixels))


def is_narrow(address: Address, target: CpuTarget) -> bool:
    """Whether vectors along the sum are estimated to be faster than vectors along the output channels."""
    shape, type_ = TransposedShape.of(address.key), address.key.types.sum
    few = address.width_out < target.lanes_of(type_)
    if address.key.op != "conv_transpose2d" or shape.groups > 1 or not few:
        return False
    pixels = shape.columns.outputs(0)
    wide = choose_tile(pixels, address.width_out, target, type_).cycles(pixels, address.width_out)
    return _plan(address, target).cycles < math.prod(shape.kernel) * address.width_in * wide


def narrow_packing(address: Address, target: CpuTarget) -> Packing:
    """The weights of each output in the order of its window in memory, zero where there is no tap.

    Where two vectors overlap, the second has zeros.
    """
    plan, shape = _plan(address, target), TransposedShape.of(address.key)
    rows, columns, lanes = plan.rows, plan.columns, plan.tile.lanes
    tiles, tall = Steps(plan.outputs, plan.tile.vectors), max(rows.lengths)

    def window_of(filters: np.ndarray, i: int, j: int) -> np.ndarray:
        """(tile, row, vector, output of the tile, lane) of the window i down and j across."""
        extent, count = plan.steps(j)
        taps = np.zeros((plan.outputs, tall, columns.lengths[j], plan.channels), filters.dtype)
        by_phase = taps.reshape(rows.phases, columns.phases, address.width_out, *taps.shape[1:])
        for down, across, y, x in np.ndindex(rows.phases, columns.phases, tall, columns.lengths[j]):
            row, column = rows.tap(i, i + down, y), columns.tap(j, j + across, x)
            if row is not None and column is not None:
                by_phase[down, across, :, y, x] = filters[:, :, row, column]
        lines = taps.reshape(plan.outputs, tall, extent)
        vectors = np.zeros((plan.outputs, tall, plan.places, lanes), filters.dtype)
        for k in range(count):
            new = max(0, k * lanes + lanes - extent)
            vectors[:, :, k, new:] = lines[:, :, k * lanes : (k + 1) * lanes]
        chosen = [vectors[(s := tiles.start(t)) : s + plan.tile.vectors] for t in range(tiles.count)]
        return np.stack(chosen).transpose(0, 2, 3, 1, 4)

    def pack(dense: np.ndarray) -> np.ndarray:
        filters = dense.reshape(address.width_out, address.width_in, *shape.kernel)
        windows = [window_of(filters, i, j) for i in range(rows.count) for j in range(columns.count)]
        return np.ascontiguousarray(np.stack(windows))

    return Packing((rows.count * columns.count, tiles.count, tall, plan.places, plan.tile.vectors, lanes), pack)


def build_narrow(address: Address, target: CpuTarget) -> KernelFunction:
    """Code of a transposed convolution with few output channels."""
    key, width_in, width_out = address.key, address.width_in, address.width_out
    shape, plan, packed = TransposedShape.of(key), _plan(address, target), narrow_packing(address, target)
    rows, columns, tile = plan.rows, plan.columns, plan.tile
    border = Border(key.batch, key.image, rows.border, columns.border)
    height, width = border.around
    lines, along = shape.rows.outputs(0), Steps(shape.columns.outputs(0), tile.pixels)
    tiles, lanes = Steps(plan.outputs, tile.vectors), tile.lanes
    block = math.prod(packed.shape[3:])
    is_whole = shape.rows.made % shape.rows.stride == shape.columns.made % shape.columns.stride == 0

    def body(image: Any, *others: Any) -> None:
        *residual, weights, bias, output = others
        source = padded_image(image, border, width_in, target)

        def compute_tile(n: Any, y: Any, x: Any, window: Any, number: Any) -> None:
            """One register tile: a few outputs of one window at a few pixels."""
            i, j = window // columns.count, window % columns.count
            first_row = n * height + y + rows.first(i) + border.rows[0]
            corner = T.bind((first_row * width + x + columns.first(j) + border.columns[0]) * width_in)
            start = T.bind((window * tiles.count + number) * max(rows.lengths) * block)
            extent, count = plan.steps(j)

            def pixel(row: Any, step: Any, p: int) -> Any:
                at = (row * width + p) * width_in + T.min(step * lanes, extent - lanes)
                return vector(source, corner + at, lanes)

            def weight(row: Any, step: Any, o: int) -> Any:
                return vector(weights, start + row * block + (step * tile.vectors + o) * lanes, lanes)

            sums = accumulate(tile, (rows.length(i), count), pixel, weight, key.types.sum, of_vectors=True)
            for o in range(tile.vectors):
                index = tiles.start(number) + o
                down, across = index // width_out // columns.phases, index // width_out % columns.phases
                row = T.bind(y * shape.rows.stride + i + down)
                line = T.bind((n * shape.rows.made + row) * shape.columns.made)
                for p in range(tile.pixels):
                    column = T.bind((x + p) * shape.columns.stride + j + across)
                    with ExitStack() as guards:
                        if not is_whole:
                            exists = tirx.all(row < shape.rows.made, column < shape.columns.made)
                            guards.enter_context(T.If(exists))
                            guards.enter_context(T.Then())
                        c = index % width_out
                        at = T.bind((line + column) * width_out + c)
                        added = residual[0][at] if residual else None
                        value = apply_epilogue(_added_up(sums(p, o), lanes), key.epilogue, bias[c], added)
                        T.buffer_store(output, value, [at])

        with loop(key.batch * lines * along.count, target) as place:
            n, y = T.bind(place // (lines * along.count)), T.bind(place // along.count % lines)
            x = T.bind(along.start(place % along.count))
            with _turns(rows.count * columns.count) as window, _turns(tiles.count) as number:
                compute_tile(n, y, x, window, number)

    return weighted_kernel(address, image_shape(key, width_in), packed, shape.output(width_out), body)


def _turns(count: int) -> Any:
    """A loop, or no loop if it has one iteration."""
    return nullcontext(0) if count == 1 else T.serial(0, count)


def _added_up(value: Any, lanes: int) -> Any:
    """The sum of a vector's lanes, by adding halves."""
    while lanes > 1:
        lanes //= 2
        value = T.bind(value)
        value = tirx.Shuffle([value], list(range(lanes))) + tirx.Shuffle([value], list(range(lanes, 2 * lanes)))
    return T.bind(value)
