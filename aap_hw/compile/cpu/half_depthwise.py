"""Depthwise convolutions in bfloat16 on a CPU: two taps of a column for one dot product.

The values of two rows are interleaved, so that each channel has its two taps of a column side by side, and all windows
that the column belongs to use them. Vectors are interleaved within each 128 bits, as such instructions do. So sums are
in another order than the channels until they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction, apply_epilogue
from aap_hw.compile.cpu.emit import Steps, constant, lane_loop, loop, registers, store, vector
from aap_hw.compile.cpu.isa import PAIR, pair_product
from aap_hw.compile.cpu.kernels import HALF_KERNELS, HALF_PACKINGS, KERNELS, PACKINGS, Packing
from aap_hw.compile.cpu.padding import Border, padded_image
from aap_hw.compile.cpu.weighted import weighted_kernel
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import BFLOAT16, FLOAT32
from aap_hw.compile.keys.target import CpuTarget

PIECE = 8
"""Channels within which rows are interleaved: 128 bits."""
LONGEST = 7
"""Pixels of a tile at most; 7 divides the usual image sizes."""
OVERHEAD = 8
"""Cost of a block of channels beside its values, in values."""


@dataclass(frozen=True)
class _Plan:
    """How a kernel goes through its channels and pixels."""

    shape: ConvolutionShape
    channels: int
    block: int
    length: int

    @classmethod
    def of(cls, address: Address, target: CpuTarget) -> _Plan | None:
        """The plan of a kernel for a CPU, or None where the kernel of float32 does better."""
        shape, channels = ConvolutionShape.of(address.key), address.width_out
        if address.key.types.read != BFLOAT16 or address.width_in != channels or channels < PIECE:
            return None
        sizes = [2**n for n in range(3, target.lanes_of(BFLOAT16).bit_length()) if 2**n <= channels]
        block = min(sizes, key=lambda size: Steps(channels, size).count * (size + OVERHEAD))
        lengths = range(1, min(LONGEST, shape.out_width) + 1)
        length = min(lengths, key=lambda length: (Steps(shape.out_width, length).count * (length + 2), -length))
        return cls(shape, channels, block, length)

    @property
    def lanes(self) -> int:
        """Sums of a vector."""
        return self.block // PAIR

    @property
    def deep(self) -> Steps:
        """Blocks over the channels."""
        return Steps(self.channels, self.block)

    @property
    def order(self) -> list[int]:
        """The channels of a block in the order of its sums, vector by vector."""
        half = PIECE // PAIR
        return [lane // half * PIECE + v * half + lane % half for v in range(PAIR) for lane in range(self.lanes)]

    @property
    def pairs(self) -> int:
        """Pairs of rows that a window has; the last row may be without another."""
        return -(-self.shape.kernel[0] // PAIR)

    @property
    def packing(self) -> Packing:
        """(block, column, pair, vector, lane, place in the pair), zero where a row is without another."""
        deep, (kh, kw) = self.deep, self.shape.kernel
        shape = deep.count, kw, self.pairs, PAIR, self.lanes, PAIR

        def pack(weight: np.ndarray) -> np.ndarray:
            filters = np.pad(weight.reshape(self.channels, kh, kw), [(0, 0), (0, self.pairs * PAIR - kh), (0, 0)])
            blocks = np.stack([filters[deep.start(i) + np.array(self.order)] for i in range(deep.count)])
            taps = blocks.reshape(deep.count, PAIR, self.lanes, self.pairs, PAIR, kw)
            return np.ascontiguousarray(taps.transpose(0, 5, 3, 1, 2, 4))

        return Packing(shape, pack, BFLOAT16)

    @property
    def columns(self) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Columns that a tile reads, counted from its first, and the pixels and taps that use each."""
        stride, dilation = self.shape.stride[1], self.shape.dilation[1]
        taps = [(p, rx) for p in range(self.length) for rx in range(self.shape.kernel[1])]
        for column in sorted({p * stride + rx * dilation for p, rx in taps}):
            yield column, [(p, rx) for p, rx in taps if p * stride + rx * dilation == column]

    def interleaved(self, one: Any, other: Any) -> list[Any]:
        """Two vectors of values, as vectors with the two values of each channel side by side, as int32."""
        rows = [T.reinterpret(f"int16x{self.block}", row) for row in (one, other)]
        taken = [row * self.block + c for c in self.order for row in range(PAIR)]
        halves = [tirx.Shuffle(rows, taken[v * self.block : (v + 1) * self.block]) for v in range(PAIR)]
        return [T.bind(T.reinterpret(f"int32x{self.lanes}", half)) for half in halves]


@HALF_PACKINGS.register("depthwise_conv2d")
def packing(address: Address, target: CpuTarget) -> Packing:
    """Block by block, each vector's weights in the order of its lanes."""
    plan = _Plan.of(address, target)
    return PACKINGS[address.key.op](address, target) if plan is None else plan.packing


@HALF_KERNELS.register("depthwise_conv2d")
def depthwise(address: Address, target: CpuTarget) -> KernelFunction:
    """One filter for each channel."""
    key, channels, plan = address.key, address.width_out, _Plan.of(address, target)
    if plan is None:
        return KERNELS[key.op](address, target)
    shape, block, deep, lanes, packed = plan.shape, plan.block, plan.deep, plan.lanes, plan.packing
    (kh, kw), (sh, sw), (dh, _) = shape.kernel, shape.stride, shape.dilation
    along, border, dot = Steps(shape.out_width, plan.length), Border.of(shape), pair_product(lanes, target)
    height, width = border.around
    in_order = [plan.order.index(place) for place in range(block)]

    def body(image: Any, *others: Any) -> None:
        *residual, weights, bias, output = others
        source = padded_image(image, border, channels, target)

        def pixel_done(sums: Sequence[Any], c: Any, pixel: Any) -> None:
            """Write the outputs of one pixel."""
            at, totals = T.bind(pixel * channels + c), registers(block, FLOAT32)
            for v in range(PAIR):
                half = tirx.Shuffle(list(sums), in_order[v * lanes : (v + 1) * lanes])
                store(totals, half, v * lanes, lanes)
                with lane_loop(lanes) as i:
                    place = v * lanes + i
                    added = residual[0][at + place] if residual else None
                    value = apply_epilogue(totals[place], key.epilogue, bias[c + place], added)
                    T.buffer_store(output, value, [at + place])

        def tile_at(line: Any, corner: Any, x: Any, step: Any, c: Any) -> None:
            first_weight = T.bind(step * math.prod(packed.shape[1:]))
            sums: dict[int, list[Any]] = {}
            for column, uses in plan.columns:
                rows = [
                    T.bind(vector(source, corner + (row * dh * width + column) * channels, block)) for row in range(kh)
                ]
                pairs = [plan.interleaved(rows[i], rows[min(i + 1, kh - 1)]) for i in range(0, kh, PAIR)]
                for p, rx in uses:
                    totals = sums.setdefault(p, [constant(0.0, lanes, FLOAT32)] * PAIR)
                    for i, pair in enumerate(pairs):
                        for v in range(PAIR):
                            at = first_weight + ((rx * plan.pairs + i) * PAIR + v) * block
                            totals[v] = T.bind(dot.add(totals[v], pair[v], vector(weights, at, block)))
                    if rx == kw - 1:
                        pixel_done(sums.pop(p), c, line * shape.out_width + x + p)

        with dot.imported(), loop(shape.batch * shape.out_height, target) as line:
            row = T.bind((line // shape.out_height * height + line % shape.out_height * sh) * width)
            with T.serial(0, deep.count) as step, T.serial(0, along.count) as i:
                x, c = T.bind(along.start(i)), T.bind(deep.start(step))
                tile_at(line, T.bind((row + x * sw) * channels + c), x, step, c)

    return weighted_kernel(address, shape.image(channels), packed, shape.output(channels), body)
