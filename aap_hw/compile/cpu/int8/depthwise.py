"""Depthwise convolutions of bytes on a CPU: four taps of a column for one dot product.

The bytes of four rows are interleaved, so that each channel has its four taps of a column side by side. All windows
that the column belongs to use them. Vectors of bytes are interleaved within each 128 bits, as such instructions do; so
the sums of a block of channels are in another order than the channels, and are brought back when they become bytes.
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
from aap_hw.compile.cpu.emit import Steps, lane_loop, loop, registers, spread, store, vector
from aap_hw.compile.cpu.int8.convolution import widened
from aap_hw.compile.cpu.int8.epilogue import finished, quantized_kernel
from aap_hw.compile.cpu.isa import GROUP, DotProduct, dot_product, to_bytes
from aap_hw.compile.cpu.kernels import QUANTIZED, QUANTIZED_PACKINGS, Packing
from aap_hw.compile.cpu.padding import Border, padded_image
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import FLOAT32
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.errors import UserError

LANE_BYTES = 16
"""Bytes within which vectors are interleaved."""
LONGEST = 7
"""Pixels of a tile at most; 7 divides the usual image sizes."""
OVERHEAD = 16
"""Cost of a block of channels beside its bytes, in bytes."""


@dataclass(frozen=True)
class _Block:
    """Channels that are computed together.

    Attributes
    ----------
    channels : how many.
    vectors : vectors of sums for them; the j-th has of each 128 bits' channels four, from the 4j-th on.
    """

    channels: int

    @property
    def piece(self) -> int:
        """Channels within which bytes are interleaved."""
        return min(self.channels, LANE_BYTES)

    @property
    def vectors(self) -> int:
        """Vectors of sums."""
        return self.piece // GROUP

    @property
    def lanes(self) -> int:
        """Sums of a vector."""
        return self.channels // self.vectors

    def channel(self, vector: int, lane: Any) -> Any:
        """Whose sum is in a lane of a vector; the lane may be an expression."""
        return lane // GROUP * self.piece + vector * GROUP + lane % GROUP

    @property
    def order(self) -> list[int]:
        """The channels vector by vector, lane by lane."""
        return [self.channel(v, lane) for v in range(self.vectors) for lane in range(self.lanes)]

    def interleaved(self, rows: Sequence[Any]) -> list[Any]:
        """Four vectors of bytes, as vectors with the four bytes of each channel side by side."""
        if self.piece < LANE_BYTES:
            taken = [row * self.channels + c for c in self.order for row in range(GROUP)]
            size = self.lanes * GROUP
            return [tirx.Shuffle(list(rows), taken[v * size : (v + 1) * size]) for v in range(self.vectors)]
        pairs = [self._halves(rows[i], rows[i + 1], 1) for i in (0, 2)]
        return [T.bind(each) for low, high in zip(*pairs, strict=True) for each in self._halves(low, high, 2)]

    def _halves(self, one: Any, other: Any, size: int) -> list[Any]:
        """Units of so many bytes of two vectors in turn: those of the first half of each 128 bits, then the others."""
        half = LANE_BYTES // 2
        return [
            T.bind(
                tirx.Shuffle(
                    [one, other],
                    [
                        source * self.channels + first + start + unit + byte
                        for first in range(0, self.channels, LANE_BYTES)
                        for unit in range(0, half, size)
                        for source in (0, 1)
                        for byte in range(size)
                    ],
                )
            )
            for start in (0, half)
        ]


@dataclass(frozen=True)
class _Plan:
    """How a kernel goes through its channels and pixels."""

    shape: ConvolutionShape
    channels: int
    block: _Block
    dot: DotProduct
    length: int

    @classmethod
    def of(cls, address: Address, target: CpuTarget) -> _Plan:
        """The plan of a kernel for a CPU."""
        shape, channels = ConvolutionShape.of(address.key), address.width_out
        read = max(channels, GROUP)
        sizes = [2**n for n in range(2, target.lanes_of("uint8").bit_length()) if 2**n <= read]
        block = _Block(min(sizes, key=lambda size: Steps(read, size).count * (size + OVERHEAD)))
        lengths = range(1, min(LONGEST, shape.out_width) + 1)
        length = min(lengths, key=lambda length: (Steps(shape.out_width, length).count * (length + 2), -length))
        return cls(shape, channels, block, dot_product(block.lanes, target), length)

    @property
    def deep(self) -> Steps:
        """Blocks over the channels."""
        return Steps(max(self.channels, GROUP), self.block.channels)

    @property
    def quads(self) -> int:
        """Groups of four rows of a window."""
        return math.ceil(self.shape.kernel[0] / GROUP)

    @property
    def order(self) -> np.ndarray:
        """Channels of all blocks in the order of the sums; of places behind the last channel, that one."""
        starts = np.array([[self.deep.start(i)] for i in range(self.deep.count)])
        channels: np.ndarray = np.minimum(starts + np.array(self.block.order), self.channels - 1)
        return channels.ravel()

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """(block, group of rows, column, vector, lane, row)."""
        block = self.block
        return self.deep.count, self.quads, self.shape.kernel[1], block.vectors, block.lanes, GROUP

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """The weights as ``packed_shape`` says, zero for rows behind the last."""
        kh, kw = self.shape.kernel
        filters = np.pad(weight.reshape(self.channels, kh, kw), [(0, 0), (0, self.quads * GROUP - kh), (0, 0)])
        filters = filters[self.order].reshape(self.deep.count, -1, self.quads, GROUP, kw)
        return np.ascontiguousarray(filters.transpose(0, 2, 4, 1, 3).reshape(self.packed_shape))

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
    return Packing(plan.packed_shape, plan.pack)


@QUANTIZED.register("depthwise_conv2d")
def depthwise(address: Address, target: CpuTarget) -> KernelFunction:
    """One filter for each channel, or several; then the image is copied with every channel repeated as often."""
    key, width_in, channels = address.key, address.width_in, address.width_out
    if channels % width_in:
        raise UserError(f"the kernel {key} cannot have {width_in} -> {channels} channels: it makes as many of each")
    plan, shape = _Plan.of(address, target), ConvolutionShape.of(key)
    block, deep, length = plan.block, plan.deep, plan.length
    (kh, kw), (sh, sw), dh = shape.kernel, shape.stride, shape.dilation[0]
    along, border, pitch = Steps(shape.out_width, length), Border.of(shape), max(channels, GROUP)
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
            source = widened(source, shape.batch * height * width, channels, target)

        def bytes_of(totals: Sequence[Any], first: Any, factors: Any) -> Any:
            """The sums of a block as bytes, if nothing but bounds stands between."""
            lanes, values = block.lanes, list[Any]()
            for v, total in enumerate(totals):
                factor, offset = (vector(factors, begin + first + v * lanes, lanes) for begin in (0, len(order)))
                value = T.Cast(f"{FLOAT32}x{lanes}", total) * factor + offset
                values.append(T.min(value, spread(whole[Number.HIGHEST], lanes)))
            made = to_bytes(values, zero_made, lanes, target)
            return T.max(made, spread(lowest, block.channels))

        def pixel_done(sums: Any, p: int, step: Any, c: Any, pixel: Any) -> None:
            """Write the outputs of one pixel of a tile."""
            at = T.bind(pixel * channels + c)
            if is_plain:
                places = [(p * block.vectors + v) * block.lanes for v in range(block.vectors)]
                totals = [vector(sums, place, block.lanes) for place in places]
                store(output, bytes_of(totals, step * block.channels, factors), at, block.channels)
                return
            made = registers(block.channels, key.types.made)
            for v in range(block.vectors):
                first = T.bind(step * block.channels + v * block.lanes)
                with lane_loop(block.lanes) as i:
                    added = residual[0][at + block.channel(v, i)] if residual else None
                    total = sums[(p * block.vectors + v) * block.lanes + i]
                    factor, offset = factors[first + i], factors[len(order) + first + i]
                    value = finished(key, total, factor, offset, whole.__getitem__, added)
                    T.buffer_store(made, value, [v * block.lanes + i])
            inverse = [block.order.index(place) for place in range(block.channels)]
            if channels < block.channels:
                for place in range(channels):
                    T.buffer_store(output, made[inverse[place]], [at + place])
            else:
                vectors = [T.bind(vector(made, v * block.lanes, block.lanes)) for v in range(block.vectors)]
                in_order = tirx.Shuffle(vectors, inverse) if len(vectors) > 1 else vectors[0]
                store(output, in_order, at, block.channels)

        def tile_at(line: Any, n: Any, y: Any, x: Any, step: Any) -> None:
            c = T.bind(deep.start(step))
            sums = registers(length * block.channels, key.types.sum)
            for v in range(block.vectors):
                begin = T.bind(vector(starts, step * block.channels + v * block.lanes, block.lanes))
                for p in range(length):
                    store(sums, begin, (p * block.vectors + v) * block.lanes, block.lanes)
            corner = T.bind(((n * height + y * sh) * width + x * sw) * pitch + c)
            first_weight = T.bind(step * (plan.quads * kw * block.vectors * size))
            for column, used in plan.columns:
                for quad in range(plan.quads):
                    rows = [min(quad * GROUP + row, kh - 1) * dh * width + column for row in range(GROUP)]
                    values = {row: T.bind(vector(source, corner + row * pitch, block.channels)) for row in {*rows}}
                    taps = [
                        T.bind(T.reinterpret(f"int32x{block.lanes}", each))
                        for each in block.interleaved([values[row] for row in rows])
                    ]
                    for (p, rx), v in ((use, v) for use in used for v in range(block.vectors)):
                        at = (p * block.vectors + v) * block.lanes
                        weight = ((quad * kw + rx) * block.vectors + v) * size
                        total = plan.dot.add(
                            vector(sums, at, block.lanes), taps[v], vector(weights, first_weight + weight, size)
                        )
                        store(sums, total, at, block.lanes)
                for p, rx in used:
                    if rx == kw - 1:
                        pixel_done(sums, p, step, c, line * shape.out_width + x + p)

        with loop(shape.batch * shape.out_height, target) as line:
            n, y = T.bind(line // shape.out_height), T.bind(line % shape.out_height)
            with T.serial(0, deep.count) as step, T.serial(0, along.count) as i:
                tile_at(line, n, y, T.bind(along.start(i)), step)

    return quantized_kernel(address, shape.image(width_in), packed, order, plan.dot.shift, body)
