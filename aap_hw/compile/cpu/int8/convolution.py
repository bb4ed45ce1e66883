"""Convolutions and linear layers of bytes on a CPU: the loops of float32's, with dot products of four inputs.

What a window reads of a row lies side by side in memory, all its channels included, and is taken four bytes at a time.
The last four may overlap those before; the weights of what was read already are zero. So any width will do, and a
first layer of three channels wastes little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.quantized import Number
from aap_hw.compile.cpu.emit import Steps, lane_loop, lanes_for, loop, scratch, vector
from aap_hw.compile.cpu.int8.epilogue import finished, quantized_kernel
from aap_hw.compile.cpu.isa import FEWEST_LANES, GROUP, DotProduct, dot_product
from aap_hw.compile.cpu.kernels import QUANTIZED, QUANTIZED_PACKINGS, Packing
from aap_hw.compile.cpu.padding import Border, padded_image
from aap_hw.compile.cpu.tiles import Tile, accumulate, cheapest_tile
from aap_hw.compile.cpu.weighted import channels_of_group, first_channel, slice_loops, weights_outermost
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


@dataclass(frozen=True)
class _Plan:
    """How a kernel reads and multiplies.

    Attributes
    ----------
    shape : its sizes.
    read, made : channels that a group reads and makes.
    dot, tile : instructions and register tile.
    """

    shape: ConvolutionShape
    read: int
    made: int
    dot: DotProduct
    tile: Tile

    @classmethod
    def of(cls, address: Address, target: CpuTarget) -> _Plan:
        """The plan of a kernel for a CPU."""
        shape = ConvolutionShape.of(address.key)
        read, made = channels_of_group(address, shape.groups)
        channels = max(made, FEWEST_LANES)
        lanes = max(lanes_for(channels, target, address.key.types.sum), FEWEST_LANES)
        dot, row = dot_product(lanes, target), _tiled(shape)[1]
        tile = cheapest_tile(row, channels, lanes, target.registers, lambda p, v: dot.fits(p, v, target), dot.costs)
        return cls(shape, read, made, dot, tile)

    @property
    def is_joined(self) -> bool:
        """Whether all that a window reads of a row lies side by side."""
        return self.shape.groups == 1 and self.shape.dilation[1] == 1

    @property
    def wide(self) -> int:
        """Channels that a group has where it is read: at least four, or the image is copied to have as many."""
        row = self.shape.kernel[1] * self.read if self.is_joined else self.read
        return self.read if row >= GROUP else GROUP

    @property
    def taps(self) -> tuple[int, int]:
        """Rows of a window, and how many pieces a row has that lie apart."""
        kh, kw = self.shape.kernel
        return kh, 1 if self.is_joined else kw

    @property
    def steps(self) -> Steps:
        """Steps of four bytes over such a piece."""
        return Steps(self.shape.kernel[1] // self.taps[1] * self.wide, GROUP)

    @property
    def deep(self) -> Steps:
        """Tiles over the channels that a group makes."""
        return Steps(max(self.made, FEWEST_LANES), self.tile.channels)

    @property
    def slice_shape(self) -> tuple[int, ...]:
        """Of the weights of a tile."""
        return *self.taps, self.steps.count, self.tile.channels, GROUP

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """(slice, row, piece, step, channel, byte)."""
        groups, (rows, pieces), steps, deep = self.shape.groups, self.taps, self.steps, self.deep
        filters = weight.reshape(groups, self.made, self.read, *self.shape.kernel).transpose(0, 1, 3, 4, 2)
        gap = deep.extent - self.made
        filters = np.pad(filters, [(0, 0), (0, gap), (0, 0), (0, 0), (0, self.wide - self.read)])
        filters = filters.reshape(groups, deep.extent, rows, pieces, steps.extent)
        bytes_ = np.zeros((*filters.shape[:-1], steps.count, GROUP), np.int8)
        for k in range(steps.count):
            again = k * GROUP - steps.start(k)
            bytes_[..., k, again:] = filters[..., k * GROUP : (k + 1) * GROUP]
        slices = [bytes_[:, s : s + self.tile.channels] for s in map(deep.start, range(deep.count))]
        packed = np.stack(slices, axis=1).transpose(0, 1, 3, 4, 5, 2, 6)
        return np.ascontiguousarray(packed.reshape(-1, *self.slice_shape))


@QUANTIZED_PACKINGS.register("conv2d", "linear")
def packing(address: Address, target: CpuTarget) -> Packing:
    """Slices of weights, one for each tile of output channels, one behind the other."""
    plan = _Plan.of(address, target)
    return Packing((plan.shape.groups * plan.deep.count, *plan.slice_shape), plan.pack)


def _tiled(shape: ConvolutionShape) -> tuple[int, int]:
    """Rows of output pixels that tiles lie in, and pixels of a row: a 1x1 kernel treats all pixels as one long row."""
    rows, row = shape.batch * shape.out_height, shape.out_width
    is_pointwise = (shape.kernel, shape.stride, shape.padding) == ((1, 1), (1, 1), (0, 0))
    return (1, rows * row) if is_pointwise else (rows, row)


@QUANTIZED.register("conv2d", "linear")
def convolution(address: Address, target: CpuTarget) -> KernelFunction:
    """Dense and grouped convolutions, and linear layers."""
    key, width_in, width_out = address.key, address.width_in, address.width_out
    plan, shape = _Plan.of(address, target), ConvolutionShape.of(key)
    tile, deep, steps, (rows_of_window, pieces) = plan.tile, plan.deep, plan.steps, plan.taps
    (_, sw), (sh, _), (dh, dw) = shape.stride, shape.stride, shape.dilation
    pitch, made = shape.groups * plan.wide, plan.made
    rows, row = _tiled(shape)
    along, border = Steps(row, tile.pixels), Border.of(shape)
    height, width = border.around
    packed = packing(address, target)
    slice_size = packed.elements // packed.shape[0]
    # The last vector may reach behind the last channel.
    order = np.minimum(np.arange(width_out + deep.extent - made), width_out - 1)

    def body(image: Any, *others: Any) -> None:
        *residual, weights, starts, factors, numbers, output = others
        whole = {n: T.bind(numbers[int(n)]) for n in Number}
        zero = T.bind(T.Cast(image.dtype, whole[Number.ZERO_READ]))
        source = padded_image(image, border, width_in, target, zero)
        if plan.wide != plan.read:
            source = widened(source, shape.batch * height * width * shape.groups, plan.read, target)

        def compute_tile(number: Any, pixels: Any) -> None:
            group, first = first_channel(number, shape.groups, made, deep)
            y = T.bind(0 if rows == 1 else pixels // along.count)
            x = T.bind(along.start(pixels if rows == 1 else pixels % along.count))
            line = y * width if rows == 1 else (y // shape.out_height * height + y % shape.out_height * sh) * width
            corner = T.bind((line + x * sw) * pitch + group * plan.wide)

            def pixel(ry: Any, rx: Any, step: Any, p: int) -> Any:
                at = corner + p * sw * pitch + ry * (dh * width * pitch) + rx * (dw * pitch) + steps.start(step)
                return T.reinterpret("int32", vector(source, at, GROUP))

            def weight(ry: Any, rx: Any, step: Any, v: int) -> Any:
                block = (ry * pieces + rx) * steps.count + step
                at = number * slice_size + (block * tile.channels + v * tile.lanes) * GROUP
                return vector(weights, at, tile.lanes * GROUP)

            sums = accumulate(
                tile,
                (rows_of_window, pieces, steps.count),
                pixel,
                weight,
                key.types.sum,
                add=plan.dot.add,
                begin=lambda v: vector(starts, first + v * tile.lanes, tile.lanes),
            )
            for v in range(tile.vectors):
                for p in range(tile.pixels):
                    c = first + v * tile.lanes
                    at = T.bind((y * row + x + p) * width_out + c)
                    with lane_loop(tile.lanes) if made >= tile.lanes else T.serial(0, made) as i:
                        added = residual[0][at + i] if residual else None
                        factor, summand = factors[c + i], factors[len(order) + c + i]
                        value = finished(key, sums(p, v, i), factor, summand, whole.__getitem__, added)
                        T.buffer_store(output, value, [at + i])

        outermost = weights_outermost(address, shape.image(width_in), target)
        slice_loops(packed.shape[0], rows * along.count, compute_tile, target, slices_outermost=outermost)

    return quantized_kernel(address, shape.image(width_in), packed, order, plan.dot.shift, body)


def widened(image: Any, pieces: int, read: int, target: CpuTarget) -> Any:
    """The image with four bytes in place of the ``read`` fewer of each piece; what is behind them is zero."""
    wide = scratch(pieces * GROUP, image.dtype)
    with loop(pieces, target) as piece:
        for c in range(GROUP):
            value = image[piece * read + c] if c < read else T.uint8(0)
            T.buffer_store(wide, value, [piece * GROUP + c])
    return wide
