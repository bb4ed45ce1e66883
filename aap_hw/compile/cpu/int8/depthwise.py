"""Depthwise convolutions of bytes on a CPU: four taps of a column for one dot product.

The bytes of four rows are interleaved, so that each channel has its four taps of a column side by side. All windows
that the column belongs to use them, and so does the row below where its windows lie within the same four rows. Sums are
in the order of `interleaving`, and come back to that of the channels when they become bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.quantized import Number, unclipped
from aap_hw.compile.cpu.depthwise import repeated
from aap_hw.compile.cpu.dots import widened
from aap_hw.compile.cpu.emit import Steps, lane_loop, loop, registers, spread, store, vector
from aap_hw.compile.cpu.int8.epilogue import finished, quantized_kernel
from aap_hw.compile.cpu.int8.interleaving import Block, Rows
from aap_hw.compile.cpu.isa import GROUP, DotProduct, dot_product, to_bytes
from aap_hw.compile.cpu.kernels import QUANTIZED, QUANTIZED_PACKINGS, Packing
from aap_hw.compile.cpu.padding import Border, padded_image
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import FLOAT32
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.errors import UserError

LONGEST = 7
"""Pixels of a tile at most; 7 divides the usual image sizes."""
MOST_ROWS = 2
"""Rows of a tile at most."""
OVERHEAD = 16
"""Cost of a block of channels beside its bytes, in bytes."""


@dataclass(frozen=True)
class _Plan:
    """How a kernel goes through its channels and pixels."""

    shape: ConvolutionShape
    channels: int
    block: Block
    dot: DotProduct
    rows: Rows
    length: int

    @classmethod
    def of(cls, address: Address, target: CpuTarget) -> _Plan:
        """The plan of a kernel for a CPU."""
        shape, channels = ConvolutionShape.of(address.key), address.width_out
        read = max(channels, GROUP)
        sizes = [2**n for n in range(2, target.lanes_of("uint8").bit_length()) if 2**n <= read]
        block = Block(min(sizes, key=lambda size: Steps(read, size).count * (size + OVERHEAD)))
        lengths = range(1, min(LONGEST, shape.out_width) + 1)
        length = min(lengths, key=lambda length: (Steps(shape.out_width, length).count * (length + 2), -length))
        # With gaps between the rows that a window reads, the rows of two windows lie between each other.
        most = min(MOST_ROWS, shape.out_height) if shape.rows.dilation == 1 else 1
        # And of windows with more than four rows the registers hold one row's sums.
        several = [Rows(shape.rows, count) for count in range(most, 1, -1)]
        rows = next((rows for rows in several if rows.quads == 1), Rows(shape.rows, 1))
        return cls(shape, channels, block, dot_product(block.lanes, target), rows, length)

    @property
    def deep(self) -> Steps:
        """Blocks over the channels."""
        return Steps(max(self.channels, GROUP), self.block.channels)

    @property
    def order(self) -> np.ndarray:
        """Channels of all blocks in the order of the sums; of places behind the last channel, that one."""
        starts = np.array([[self.deep.start(i)] for i in range(self.deep.count)])
        channels: np.ndarray = np.minimum(starts + np.array(self.block.order), self.channels - 1)
        return channels.ravel()

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """(block, use of a quad, column, vector, lane, place in the quad)."""
        block = self.block
        return self.deep.count, len(self.rows.uses), self.shape.kernel[1], block.vectors, block.lanes, GROUP

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """The weights as ``packed_shape`` says, zero where a quad has rows that a window does not read."""
        filters = weight.reshape(self.channels, *self.shape.kernel)[self.order]
        blocks, uses, columns, *lanes, _ = self.packed_shape
        packed = np.zeros((blocks, uses, columns, math.prod(lanes), GROUP), np.int8)
        for use, (row, quad) in enumerate(self.rows.uses):
            for place in range(GROUP):
                if (tap := self.rows.tap(row, quad, place)) is not None:
                    packed[:, use, :, :, place] = filters[:, tap].reshape(blocks, -1, columns).transpose(0, 2, 1)
        return packed.reshape(self.packed_shape)

    @property
    def columns(self) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Columns that a tile reads, counted from its first, and the pixels and taps that use each."""
        stride, dilation = self.shape.stride[1], self.shape.dilation[1]
        taps = [(p, rx) for p in range(self.length) for rx in range(self.shape.kernel[1])]
        for column in sorted({p * stride + rx * dilation for p, rx in taps}):
            yield column, [(p, rx) for p, rx in taps if p * stride + rx * dilation == column]


@QUANTIZED_PACKINGS.register("depthwise_conv2d")
def packing(address: Address, target: CpuTarget) -> Packing:
    """Block by block, each vector's weights in the order of its lanes."""
    plan = _Plan.of(address, target)
    return Packing(plan.packed_shape, plan.pack, address.key.types.weight)


@QUANTIZED.register("depthwise_conv2d")
def depthwise(address: Address, target: CpuTarget) -> KernelFunction:
    """One filter for each channel, or several; then the image is copied with every channel repeated as often."""
    key, width_in, channels = address.key, address.width_in, address.width_out
    if channels % width_in:
        raise UserError(f"the kernel {key} cannot have {width_in} -> {channels} channels: it makes as many of each")
    plan, shape = _Plan.of(address, target), ConvolutionShape.of(key)
    block, deep, rows, length = plan.block, plan.deep, plan.rows, plan.length
    kw, (sh, sw), (dh, dw) = shape.kernel[1], shape.stride, shape.dilation
    down, along = Steps(shape.out_height, rows.count), Steps(shape.out_width, length)
    border, pitch = Border.of(shape), max(channels, GROUP)
    # Either the quads of a window wait for its last column, or the sums of all windows do that share a column.
    is_gathered = kw * rows.quads + rows.count <= kw * rows.count + rows.quads
    plain = Border(shape.batch, shape.size, planar=shape.planar)
    is_repeated = width_in != channels
    is_plain = block.vectors == GROUP and key.types.made == "uint8" and {*unclipped(key)} <= {"bias"}
    height, width = border.around
    packed, order, size = packing(address, target), plan.order, block.lanes * GROUP

    def body(image: Any, *others: Any) -> None:
        *residual, weights, starts, factors, numbers, output = others
        whole = {n: T.bind(numbers[int(n)]) for n in Number}
        zero = T.bind(T.Cast(image.dtype, whole[Number.ZERO_READ]))
        zero_made = T.bind(T.Cast("int16", whole[Number.ZERO_MADE]))
        lowest = T.bind(T.Cast("uint8", whole[Number.ZERO_MADE] + whole[Number.LOWEST]))
        if is_repeated:
            image = padded_image(image, plain, width_in, target)
            image = repeated(image, shape, width_in, width_in, channels // width_in, target)
        around = replace(border, planar=False) if is_repeated else border
        source = padded_image(image, around, channels, target, zero)
        if channels < GROUP:
            source = widened(source, shape.batch * height * width, channels, GROUP, target)

        def bytes_of(totals: Sequence[Any], first: Any, factors: Any) -> Any:
            """The sums of a block as bytes, if nothing but bounds stands between."""
            lanes, values = block.lanes, list[Any]()
            for v, total in enumerate(totals):
                factor, offset = (vector(factors, begin + first + v * lanes, lanes) for begin in (0, len(order)))
                value = T.Cast(f"{FLOAT32}x{lanes}", total) * factor + offset
                values.append(T.min(value, spread(whole[Number.HIGHEST], lanes)))
            made = to_bytes(values, zero_made, lanes, target)
            return T.max(made, spread(lowest, block.channels))

        def pixel_done(totals: Sequence[Any], step: Any, c: Any, pixel: Any) -> None:
            """Write the outputs of one pixel."""
            at = T.bind(pixel * channels + c)
            if is_plain:
                store(output, bytes_of(totals, step * block.channels, factors), at, block.channels)
                return
            sums, made = registers(block.channels, key.types.sum), registers(block.channels, key.types.made)
            for v, total in enumerate(totals):
                first = T.bind(step * block.channels + v * block.lanes)
                store(sums, total, v * block.lanes, block.lanes)
                with lane_loop(block.lanes) as i:
                    added = residual[0][at + block.channel(v, i)] if residual else None
                    factor, offset = factors[first + i], factors[len(order) + first + i]
                    value = finished(key, sums[v * block.lanes + i], factor, offset, whole.__getitem__, added)
                    T.buffer_store(made, value, [v * block.lanes + i])
            inverse = [block.order.index(place) for place in range(block.channels)]
            if channels < block.channels:
                for place in range(channels):
                    T.buffer_store(output, made[inverse[place]], [at + place])
            else:
                vectors = [T.bind(vector(made, v * block.lanes, block.lanes)) for v in range(block.vectors)]
                in_order = tirx.Shuffle(vectors, inverse) if len(vectors) > 1 else vectors[0]
                store(output, in_order, at, block.channels)

        def tile_at(n: Any, y: Any, x: Any, step: Any) -> None:
            c = T.bind(deep.start(step))
            corner = T.bind(((n * height + y * sh) * width + x * sw) * pitch + c)
            first_weight = T.bind(step * math.prod(packed.shape[1:]))
            quads: dict[tuple[int, int], list[Any]] = {}
            sums: dict[tuple[int, int], list[Any]] = {}

            def build(column: int) -> None:
                for quad in range(rows.quads):
                    places = [min(quad * GROUP + place, rows.last) for place in range(GROUP)]
                    starts_ = {place: corner + (place * dh * width + column) * pitch for place in places}
                    values = {place: T.bind(vector(source, at, block.channels)) for place, at in starts_.items()}
                    quads[column, quad] = [
                        T.bind(T.reinterpret(f"int32x{block.lanes}", each))
                        for each in block.interleaved([values[place] for place in places])
                    ]

            def add(p: int, rx: int) -> None:
                for use, (row, quad) in enumerate(rows.uses):
                    totals = sums.setdefault((p, row), list(begin))
                    for v in range(block.vectors):
                        at = first_weight + ((use * kw + rx) * block.vectors + v) * size
                        taps = quads[p * sw + rx * dw, quad][v]
                        totals[v] = T.bind(plan.dot.add(totals[v], taps, vector(weights, at, size)))

            begin = [
                T.bind(vector(starts, step * block.channels + v * block.lanes, block.lanes))
                for v in range(block.vectors)
            ]
            for column, uses in plan.columns:
                build(column)
                for p, rx in uses:
                    if not is_gathered:
                        add(p, rx)
                    if rx == kw - 1:
                        for each in range(kw if is_gathered else 0):
                            add(p, each)
                        for row in range(rows.count):
                            line = (n * shape.out_height + y + row) * shape.out_width
                            pixel_done(sums.pop((p, row)), step, c, line + x + p)

        with loop(shape.batch * down.count, target) as line:
            n, y = T.bind(line // down.count), T.bind(down.start(line % down.count))
            with T.serial(0, deep.count) as step, T.serial(0, along.count) as i:
                tile_at(n, y, T.bind(along.start(i)), step)

    return quantized_kernel(address, shape.image(width_in), packed, order, plan.dot.shift, body)
