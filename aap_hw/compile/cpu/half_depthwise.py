"""Depthwise convolutions in bfloat16 on a CPU: two taps of a column for one dot product.

The values of two rows are interleaved, so that each channel has its two taps of a column side by side, and all windows
that the column belongs to use them. Vectors are interleaved within each 128 bits, as such instructions do. So sums are
in another order than the channels until they are stored. Nothing is padded: rows outside the image are multiplied by
weights of zero, and the tiles at the left and right edge have code of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction, apply_epilogue
from aap_hw.compile.cpu.across import Across
from aap_hw.compile.cpu.emit import Steps, lane_loop, loop, scratch, store, vector
from aap_hw.compile.cpu.isa import PAIR, pair_product
from aap_hw.compile.cpu.kernels import HALF_KERNELS, HALF_PACKINGS, KERNELS, PACKINGS, Packing
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

    @classmethod
    def of(cls, address: Address, target: CpuTarget) -> _Plan | None:
        """The plan of a kernel for a CPU, or None where the kernel of float32 does better."""
        shape, channels = ConvolutionShape.of(address.key), address.width_out
        is_plain = address.width_in == channels and not shape.planar
        if address.key.types.read != BFLOAT16 or not is_plain or channels < PIECE:
            return None
        sizes = [2**n for n in range(3, target.lanes_of(BFLOAT16).bit_length()) if 2**n <= channels]
        return cls(shape, channels, min(sizes, key=lambda size: Steps(channels, size).count * (size + OVERHEAD)))

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
        return [self.channel(v, lane) for v in range(PAIR) for lane in range(self.lanes)]

    def channel(self, vector: int, lane: Any) -> Any:
        """Whose sum is in a lane of a vector; the lane may be an expression."""
        half = PIECE // PAIR
        return lane // half * PIECE + vector * half + lane % half

    @property
    def pairs(self) -> int:
        """Pairs of rows that a window has; the last row may be without another."""
        return -(-self.shape.kernel[0] // PAIR)

    @property
    def insides(self) -> list[tuple[int, range]]:
        """The first row of the output from which on these rows of its windows are in the image."""
        axis, found = self.shape.rows, list[tuple[int, range]]()
        for y in range(axis.windows):
            first = y * axis.stride - axis.padding
            inside = [ry for ry in range(axis.kernel) if 0 <= first + ry * axis.dilation < axis.size]
            rows = range(inside[0], inside[-1] + 1) if inside else range(0)
            if not found or found[-1][1] != rows:
                found.append((y, rows))
        return found

    @property
    def packing(self) -> Packing:
        """(rows inside, block, column, pair, vector, lane, place in the pair), zero where there is no row."""
        deep, (kh, kw) = self.deep, self.shape.kernel
        shape = len(self.insides), deep.count, kw, self.pairs, PAIR, self.lanes, PAIR

        def pack(weight: np.ndarray) -> np.ndarray:
            filters = weight.reshape(self.channels, kh, kw)
            taken = np.zeros((len(self.insides), self.channels, self.pairs * PAIR, kw), weight.dtype)
            for i, (_, rows) in enumerate(self.insides):
                taken[i, :, rows] = filters[:, rows].transpose(1, 0, 2)
            places = np.array([[deep.start(i)] for i in range(deep.count)]) + np.array(self.order)
            taps = taken[:, places].reshape(*shape[:2], PAIR, self.lanes, self.pairs, PAIR, kw)
            return np.ascontiguousarray(taps.transpose(0, 1, 6, 4, 2, 3, 5))

        return Packing(shape, pack, BFLOAT16)

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
    (height, width), (top, left) = shape.size, shape.padding
    (kh, kw), (sh, sw), (dh, dw) = shape.kernel, shape.stride, shape.dilation
    across = Across(shape.columns, min(LONGEST, shape.out_width))
    dot, order = pair_product(lanes, target), plan.order
    in_order = [order.index(place) for place in range(block)]
    _, *steps_after_bias = key.epilogue  # sums begin with the bias

    def body(image: Any, *others: Any) -> None:
        *residual, weights, bias, output = others

        def pixel_done(totals: Sequence[Any], at: Any, sums: Any) -> None:
            """Write the outputs of one pixel."""
            made = []
            for v, total in enumerate(totals):
                store(sums, total, 0, lanes)
                with lane_loop(lanes) as i:
                    added = residual[0][at + plan.channel(v, i)] if residual else None
                    T.buffer_store(sums, apply_epilogue(sums[i], steps_after_bias, None, added), [i])
                made.append(T.bind(vector(sums, 0, lanes)))
            store(output, tirx.Shuffle(made, in_order), at, block)

        def tile_at(lines: Sequence[Any], first_weight: Any, pixel: Any, x: Any, c: Any) -> None:
            """One tile. If ``x`` is an integer, taps outside the image are left out."""
            natural = [vector(bias, c + v * lanes, lanes) for v in range(PAIR)]
            begin = [T.bind(tirx.Shuffle(natural, order[v * lanes : (v + 1) * lanes])) for v in range(PAIR)]
            sums: dict[int, list[Any]] = {p: list(begin) for p in range(across.length)}
            done = scratch(lanes, FLOAT32)  # small enough for the stack, which LLVM turns into registers
            for column in across.offsets:
                taps = [divmod(column - p * sw, dw) for p in range(across.length)]
                uses = [(p, rx) for p, (rx, rest) in enumerate(taps) if rest == 0 and 0 <= rx < kw]
                if not isinstance(x, int) or across.is_inside(x, column):
                    begins = [line + (x * sw - left + column) * channels + c for line in lines]
                    rows = [T.bind(vector(image, at, block)) for at in begins]
                    pairs = [plan.interleaved(rows[i], rows[min(i + 1, kh - 1)]) for i in range(0, kh, PAIR)]
                    for p, rx in uses:
                        for i, pair in enumerate(pairs):
                            for v in range(PAIR):
                                at = first_weight + ((rx * plan.pairs + i) * PAIR + v) * block
                                sums[p][v] = T.bind(dot.add(sums[p][v], pair[v], vector(weights, at, block)))
                for p, rx in uses:
                    if rx == kw - 1:
                        pixel_done(sums.pop(p), T.bind((pixel + x + p) * channels + c), done)

        with dot.imported(), loop(shape.batch * shape.out_height, target) as number:
            n, y = T.bind(number // shape.out_height), T.bind(number % shape.out_height)
            places = [T.max(0, T.min(y * sh - top + ry * dh, height - 1)) for ry in range(kh)]
            lines = [T.bind((n * height + place) * (width * channels)) for place in places]
            variant = sum((T.Cast("int32", y >= start) for start, _ in plan.insides[1:]), T.int32(0))
            weights_of_row = T.bind(variant * math.prod(packed.shape[1:]))
            with T.serial(0, deep.count) as step:
                c = T.bind(deep.start(step))
                first_weight = T.bind(weights_of_row + step * math.prod(packed.shape[2:]))
                with T.serial(0, across.steps.count) as i:
                    across.tile(i, lambda x: tile_at(lines, first_weight, number * shape.out_width, x, c))

    return weighted_kernel(address, shape.image(channels), packed, shape.output(channels), body)
