"""Transposed convolutions of bytes on a CPU: loops over the phases of the output, in dot products of four inputs.

Phases are those of float32's kernels: small convolutions, each with some of the taps. So what a sum begins with, which
takes the zero point's share away, is another for each phase. Only dense ones; grouped and depthwise ones stay in
float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.quantized import Number
from aap_hw.compile.cpu.dots import widened
from aap_hw.compile.cpu.emit import Steps, lane_loop, lanes_for, loop, spread, vector
from aap_hw.compile.cpu.int8.epilogue import LONG, finished, quantized_kernel
from aap_hw.compile.cpu.isa import FEWEST_LANES, DotProduct, dot_product
from aap_hw.compile.cpu.kernels import QUANTIZED, QUANTIZED_PACKINGS, Packing
from aap_hw.compile.cpu.padding import Border, padded_image
from aap_hw.compile.cpu.tiles import Tile, accumulate, cheapest_tile
from aap_hw.compile.cpu.transposed import taps_before
from aap_hw.compile.cpu.weighted import weights_outermost
from aap_hw.compile.families.transposed import TransposedShape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import BYTES, FLOAT32
from aap_hw.compile.keys.target import CpuTarget


@dataclass(frozen=True)
class _Plan:
    """How a kernel reads and multiplies."""

    address: Address
    shape: TransposedShape
    dot: DotProduct
    tile: Tile

    @classmethod
    def of(cls, address: Address, target: CpuTarget) -> _Plan:
        key, shape = address.key, TransposedShape.of(address.key)
        channels = max(address.width_out, FEWEST_LANES)
        lanes = max(lanes_for(channels, target, key.types.sum), FEWEST_LANES)
        dot, shortest = dot_product(lanes, target), shape.columns.outputs(shape.columns.phases[-1])
        # As in `convolution`: the constants of a long epilogue want registers, too.
        most = target.registers if LONG.isdisjoint(key.epilogue) else target.registers // 2 - 2

        def fits(pixels: int, vectors: int) -> bool:
            return dot.fits(pixels, vectors, target) and pixels * vectors <= most

        return cls(address, shape, dot, cheapest_tile(shortest, channels, lanes, target.registers, fits, dot.costs))

    @property
    def wide(self) -> int:
        """Channels that the image has where it is read: enough for a dot product, or it is copied to have them."""
        return max(self.address.width_in, self.dot.group)

    @property
    def steps(self) -> Steps:
        """Steps of a dot product over the channels of a pixel."""
        return Steps(self.wide, self.dot.group)

    @property
    def deep(self) -> Steps:
        """Tiles over the channels that are made."""
        return Steps(max(self.address.width_out, FEWEST_LANES), self.tile.channels)

    @property
    def order(self) -> np.ndarray:
        """The channel at each place; the last vector may reach behind the last channel."""
        return np.minimum(np.arange(self.deep.extent), self.address.width_out - 1)

    @property
    def tap_size(self) -> int:
        """Weights of a tile for one tap."""
        return self.steps.count * self.tile.channels * self.dot.group

    @property
    def slice_size(self) -> int:
        """Weights of a tile for all phases."""
        return math.prod(self.shape.kernel) * self.tap_size

    @property
    def reached(self) -> np.ndarray:
        """Which weights of a channel each phase has, in the order of (channels read, rows, columns)."""
        kinds = []
        for down in self.shape.rows.phases:
            for across in self.shape.columns.phases:
                taps = np.zeros(self.shape.kernel, np.int8)
                rows, columns = self.shape.rows, self.shape.columns
                taps[rows.remainder(down) :: rows.stride, columns.remainder(across) :: columns.stride] = 1
                kinds.append(np.tile(taps.ravel(), self.address.width_in))
        return np.stack(kinds)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """For each tile the taps of all phases in reverse order: (row, column, step, channel, place in the product)."""
        (kh, kw), group, steps, deep = self.shape.kernel, self.dot.group, self.steps, self.deep
        filters = weight.reshape(*weight.shape[:2], kh, kw).transpose(0, 2, 3, 1)  # of lines, they have one axis
        gaps = [(0, deep.extent - len(weight)), (0, 0), (0, 0), (0, self.wide - filters.shape[3])]
        filters, taken = np.pad(filters, gaps), np.zeros((deep.extent, kh, kw, steps.count, group), weight.dtype)
        for k in range(steps.count):
            again = k * group - steps.start(k)
            taken[..., k, again:] = filters[..., k * group : (k + 1) * group]
        packed = []
        for first in map(deep.start, range(deep.count)):
            of_tile = taken[first : first + self.tile.channels].transpose(1, 2, 3, 0, 4)
            for row, column in np.ndindex(self.shape.rows.stride, self.shape.columns.stride):
                phase = of_tile[row :: self.shape.rows.stride, column :: self.shape.columns.stride]
                packed.append(phase[::-1, ::-1].ravel())
        return np.concatenate(packed)

    @property
    def packing(self) -> Packing:
        """Of the weights, one tile after another."""
        type_, numbers = self.address.key.types.weight, (len(self.reached) + 2) * len(self.order)
        elements = self.deep.count * self.slice_size
        return Packing((elements,), self.pack, type_, BYTES[type_] * elements + BYTES[FLOAT32] * numbers)


@QUANTIZED_PACKINGS.register("conv_transpose2d")
def packing(address: Address, target: CpuTarget) -> Packing:
    """Slices of weights, one for each tile of output channels, one behind the other."""
    return _Plan.of(address, target).packing


@QUANTIZED.register("conv_transpose2d")
def transposed(address: Address, target: CpuTarget) -> KernelFunction:
    """Dense transposed convolutions."""
    key, width_in, width_out, plan = address.key, address.width_in, address.width_out, _Plan.of(address, target)
    shape, tile, deep, steps, order = plan.shape, plan.tile, plan.deep, plan.steps, plan.order
    rows, columns, wide = shape.rows, shape.columns, plan.wide
    phases = len(rows.phases) * len(columns.phases)
    lines, along = rows.outputs(0), Steps(columns.outputs(0), tile.pixels)
    border = Border(key.batch, (rows.size, columns.size), rows.border, columns.border)
    height, width = border.around

    def body(image: Any, *others: Any) -> None:
        *residual, weights, starts, factors, numbers, output = others
        whole = {n: T.bind(numbers[int(n)]) for n in Number}
        zero = T.bind(T.Cast(image.dtype, whole[Number.ZERO_READ]))
        source = padded_image(image, border, width_in, target, zero)
        if wide != width_in:
            source = widened(source, key.batch * height * width, width_in, wide, target)

        def compute_tile(number: Any, phase: Any, place: Any) -> None:
            """One register tile: a slice of the output channels at a few pixels of one row of a phase."""
            channel = T.bind(deep.start(number))
            down, across = T.bind(phase // len(columns.phases)), T.bind(phase % len(columns.phases))
            # A phase with fewer rows or columns than the first computes its last ones twice.
            n, line, step = place // (lines * along.count), place // along.count % lines, place % along.count
            y = T.bind(T.min(line, rows.outputs(down) - 1))
            x = T.bind(T.min(step * tile.pixels, columns.outputs(across) - tile.pixels))
            first_row = n * height + y + rows.first(down) + border.rows[0]
            corner = T.bind((first_row * width + x + columns.first(across) + border.columns[0]) * wide)
            tall, broad = T.bind(rows.taps(down)), T.bind(columns.taps(across))
            before = taps_before(rows, rows.remainder(down)) * columns.kernel
            before = before + tall * taps_before(columns, columns.remainder(across))
            start = T.bind(number * plan.slice_size + before * plan.tap_size)

            def pixel(ry: Any, rx: Any, step: Any, p: int) -> Any:
                at = corner + (ry * width + rx + p) * wide + steps.start(step)
                values = spread(T.reinterpret("int32", vector(source, at, plan.dot.group)), tile.lanes)
                return plan.dot.prepare(values, tile.lanes)

            def weight(ry: Any, rx: Any, step: Any, v: int) -> Any:
                at = start + (ry * broad + rx) * plan.tap_size
                at = at + (step * tile.channels + v * tile.lanes) * plan.dot.group
                return vector(weights, at, tile.lanes * plan.dot.group)

            def begin(v: int) -> Any:
                return vector(starts, phase * len(order) + channel + v * tile.lanes, tile.lanes)

            extents = tall, broad, steps.count
            sums = accumulate(
                tile, extents, pixel, weight, key.types.sum, of_vectors=True, add=plan.dot.add, begin=begin
            )
            row = T.bind((n * rows.made + y * rows.stride + down) * columns.made + across)
            for v in range(tile.vectors):
                for p in range(tile.pixels):
                    c = channel + v * tile.lanes
                    at = T.bind((row + (x + p) * columns.stride) * width_out + c)
                    with lane_loop(tile.lanes) if width_out >= tile.lanes else T.serial(0, width_out) as i:
                        factor, summand = factors[c + i], factors[len(order) + c + i]
                        added = residual[0][at + i] if residual else None
                        made = finished(key, sums(p, v, i), factor, summand, whole.__getitem__, added)
                        T.buffer_store(output, made, [at + i])

        places = key.batch * lines * along.count
        with plan.dot.imported():
            if weights_outermost(address, shape.input(width_in), target):
                with loop(deep.count * phases * places, target) as i:
                    rest = T.bind(i // places)
                    compute_tile(T.bind(rest // phases), T.bind(rest % phases), T.bind(i % places))
            else:
                with (
                    loop(places, target) as place,
                    T.serial(0, deep.count) as number,
                    T.serial(0, phases) as phase,
                ):
                    compute_tile(number, phase, place)

    return quantized_kernel(
        address, shape.input(width_in), plan.packing, order, plan.dot.shift, body, reached=plan.reached
    )
