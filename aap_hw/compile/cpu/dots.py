"""Convolutions and linear layers by dot products of a few inputs: how they read and multiply, in any precision.

What a window reads of a row lies side by side in memory, all its channels included, and is taken a few values at a
time. The last few may overlap those before; the weights of what was read already are zero. So any width will do, and a
first layer of three channels wastes little.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.cpu.emit import Steps, constant, lane_loop, lanes_for, loop, scratch, spread, store, vector
from aap_hw.compile.cpu.isa import FEWEST_LANES, DotProduct, signed
from aap_hw.compile.cpu.kernels import Packing
from aap_hw.compile.cpu.opaque import anchored
from aap_hw.compile.cpu.padding import Border, padded_image
from aap_hw.compile.cpu.tiles import Costs, Tile, accumulate, cheapest_tile, lane_in_all
from aap_hw.compile.cpu.weighted import channels_of_group, first_channel, slice_loops, weights_outermost
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import FLOAT32
from aap_hw.compile.keys.target import CpuTarget

CHANNELS_OF_TILE, FEWEST_USES = 16, 4
"""About as many output channels are computed at once. A copy of the image pays if so many tiles read each value."""


@dataclass(frozen=True)
class DotPlan:
    """How a kernel reads and multiplies.

    Attributes
    ----------
    address : the kernel.
    shape : its sizes.
    read, made : channels that a group reads and makes.
    dot, tile : instructions and register tile.
    is_signed : the image is copied with its bytes as the instructions like them; else each tile makes them so.
    """

    address: Address
    shape: ConvolutionShape
    read: int
    made: int
    dot: DotProduct
    tile: Tile
    is_signed: bool = False

    @classmethod
    def of(
        cls,
        address: Address,
        target: CpuTarget,
        dot_of: Callable[[int, CpuTarget], DotProduct],
        sums: str | None = None,
        allows: Callable[[int, int], bool] = lambda pixels, vectors: True,
    ) -> DotPlan:
        """The plan of a kernel for a CPU; ``dot_of`` gives the instructions for vectors of so many sums.

        ``sums`` is their type, if it is not that of the kernel. ``allows`` says of a tile's pixels and vectors whether
        the kernel can have such.
        """
        shape = ConvolutionShape.of(address.key)
        read, made = channels_of_group(address, shape.groups)
        channels = max(made, FEWEST_LANES)
        lanes = max(lanes_for(channels, target, sums or address.key.types.sum), FEWEST_LANES)
        dot, row = dot_of(lanes, target), shape.pixel_rows[1]
        (kh, kw), (sh, sw) = shape.kernel, shape.stride
        uses = kh * kw * made / (sh * sw * CHANNELS_OF_TILE)
        of_signed = dot.of_signed if Border.of(shape).is_copied or uses >= FEWEST_USES else None
        plan = cls(address, shape, read, made, of_signed or dot, Tile(1, 1, lanes), of_signed is not None)
        run = plan.run

        def fits(pixels: int, vectors: int) -> bool:
            return plan.dot.fits(pixels, vectors, target, run) and allows(pixels, vectors)

        tile = cheapest_tile(row, channels, lanes, target.registers, fits, plan.costs)
        return replace(plan, tile=tile)

    @property
    def is_copied(self) -> bool:
        """Whether windows may be read beyond their ends, in a copy of the image, by loads for several steps."""
        return self.dot.run > 1 and (self.is_signed or Border.of(self.shape).is_copied)

    @property
    def is_joined(self) -> bool:
        """Whether all that a window reads of a row lies side by side."""
        return self.shape.groups == 1 and self.shape.dilation[1] == 1

    @property
    def wide(self) -> int:
        """Channels that a group has where it is read: enough for a dot product, or the image is copied to have them."""
        row = self.shape.kernel[1] * self.read if self.is_joined else self.read
        return self.read if row >= self.dot.group else self.dot.group

    @property
    def taps(self) -> tuple[int, int]:
        """Rows of a window, and how many pieces a row has that lie apart."""
        kh, kw = self.shape.kernel
        return kh, 1 if self.is_joined else kw

    @property
    def steps(self) -> Steps:
        """Steps of a dot product over such a piece."""
        extent, group = self.shape.kernel[1] // self.taps[1] * self.wide, self.dot.group
        return Steps(-(-extent // group) * group if self.is_copied else extent, group)

    @property
    def run(self) -> int:
        """Steps for which one load brings the values of a pixel: these must follow each other without an overlap."""
        if self.is_copied:
            return self.dot.run
        steps = self.steps
        return self.dot.run if steps.extent % steps.length == 0 and steps.count >= self.dot.run else 1

    @property
    def costs(self) -> Costs:
        """Of a tile, beside what the instructions do."""
        steps = self.taps[0] * self.taps[1] * self.steps.count
        return replace(self.dot.costs, run=self.run, parting=self.dot.costs.parting / steps)

    @property
    def deep(self) -> Steps:
        """Tiles over the channels that a group makes."""
        return Steps(max(self.made, FEWEST_LANES), self.tile.channels)

    @property
    def cycles(self) -> float:
        """Estimated cycles of the whole kernel."""
        rows, row = self.shape.pixel_rows
        steps = rows * self.shape.groups * self.taps[0] * self.taps[1] * self.steps.count
        return steps * self.tile.cycles(row, max(self.made, FEWEST_LANES), self.costs)

    @property
    def slice_shape(self) -> tuple[int, ...]:
        """Of the weights of a tile."""
        return *self.taps, self.steps.count, self.tile.channels, self.dot.group

    @property
    def packing(self) -> Packing:
        """Slices of weights, one for each tile of output channels, one behind the other."""
        return Packing(
            (self.shape.groups * self.deep.count, *self.slice_shape), self._pack, self.address.key.types.weight
        )

    def _pack(self, weight: np.ndarray) -> np.ndarray:
        """(slice, row, piece, step, channel, place in the dot product); with ``pairs_apart``, pairs before channels."""
        groups, (rows, pieces), steps, deep = self.shape.groups, self.taps, self.steps, self.deep
        group = self.dot.group
        filters = weight.reshape(groups, self.made, self.read, *self.shape.kernel).transpose(0, 1, 3, 4, 2)
        gap = deep.extent - self.made
        filters = np.pad(filters, [(0, 0), (0, gap), (0, 0), (0, 0), (0, self.wide - self.read)])
        filters = filters.reshape(groups, deep.extent, rows, pieces, -1)
        filters = np.pad(filters, [(0, 0)] * 4 + [(0, steps.extent - filters.shape[-1])])
        taken = np.zeros((*filters.shape[:-1], steps.count, group), weight.dtype)
        for k in range(steps.count):
            again = k * group - steps.start(k)
            taken[..., k, again:] = filters[..., k * group : (k + 1) * group]
        slices = [taken[:, s : s + self.tile.channels] for s in map(deep.start, range(deep.count))]
        packed = np.stack(slices, axis=1).transpose(0, 1, 3, 4, 5, 2, 6)
        if self.dot.pairs_apart:
            vectors = packed.reshape(*packed.shape[:-2], self.tile.vectors, self.tile.lanes, 2, 2)
            packed = vectors.swapaxes(-2, -3)
        return np.ascontiguousarray(packed.reshape(-1, *self.slice_shape))

    def write(
        self,
        image: Any,
        weights: Any,
        output: Any,
        finished: Callable[[Any, Any, Any], Any],
        target: CpuTarget,
        padding: Any = 0.0,
        begin: Callable[[Any], Any] | None = None,
        together: Callable[[Sequence[tuple[Any, Any, Any]]], None] | None = None,
    ) -> None:
        """Write the loops of the kernel.

        ``finished(sum, channel, place)`` is what is stored for a sum; places are those of the output. Around the image
        lies ``padding``. The sums of a vector begin with ``begin(channel)``, that of its first lane, or with 0. With
        ``together`` that stores the sums of a tile instead: vectors, each with channel and place of its first lane.
        """
        address, shape, tile, deep, steps = self.address, self.shape, self.tile, self.deep, self.steps
        group, made, width_out = self.dot.group, self.made, address.width_out
        (_, pieces), (sh, sw), (dh, dw), run = self.taps, shape.stride, shape.dilation, self.run
        pitch, (rows, row), border = shape.groups * self.wide, shape.pixel_rows, Border.of(shape)
        along, (height, width) = Steps(row, tile.pixels), border.around
        slice_size = int(np.prod(self.slice_shape))
        if self.is_signed:
            padding = T.bind(signed(padding))
        # What lies there is multiplied by zeros.
        behind = max(steps.extent, run * group) if self.is_copied else 0
        made_signed = signed if self.is_signed else None
        source = padded_image(image, border, address.width_in, target, padding, made_signed, behind)
        if self.wide != self.read:
            source = widened(source, shape.batch * height * width * shape.groups, self.read, group, target, behind)

        def compute_tile(number: Any, pixels: Any) -> None:
            part, first = first_channel(number, shape.groups, made, deep)
            y = T.bind(0 if rows == 1 else pixels // along.count)
            x = T.bind(along.start(pixels if rows == 1 else pixels % along.count))
            line = y * width if rows == 1 else (y // shape.out_height * height + y % shape.out_height * sh) * width
            corner = T.bind((line + x * sw) * pitch + part * self.wide)

            def pixel(ry: Any, rx: Any, step: Any, p: int) -> Any:
                at = corner + p * sw * pitch + ry * (dh * width * pitch) + rx * (dw * pitch) + steps.start(step)
                if group == 1:
                    return spread(source[at], tile.lanes)
                values = T.reinterpret(f"int32x{run}" if run > 1 else "int32", vector(source, at, run * group))
                if run > 1:
                    values = self.dot.prepare(values, tile.lanes)
                    return anchored(values) if np.prod(self.taps) * -(-steps.count // run) < 4 else values
                value = self.dot.prepare(spread(values, tile.lanes), tile.lanes)
                return value if self.dot.lane is None else self.dot.lane(value, 0, tile.lanes)

            def weight(ry: Any, rx: Any, step: Any, v: int) -> Any:
                block = (ry * pieces + rx) * steps.count + step
                at = number * slice_size + (block * tile.channels + v * tile.lanes) * group
                return vector(weights, at, tile.lanes * group)

            def of_vector(v: int) -> Any:
                assert begin is not None
                return begin(first + v * tile.lanes)

            sums = self._sums(pixel, weight, of_vector if begin is not None else None, target)
            if together is not None:
                places = [(y * row + x + p) * width_out + first for p in range(tile.pixels)]
                parts = itertools.product(enumerate(map(T.bind, places)), range(tile.vectors))
                together([(sums(p, v), first + v * tile.lanes, at + v * tile.lanes) for (p, at), v in parts])
                return
            for v in range(tile.vectors):
                for p in range(tile.pixels):
                    c = first + v * tile.lanes
                    at = T.bind((y * row + x + p) * width_out + c)
                    with lane_loop(tile.lanes) if made >= tile.lanes else T.serial(0, made) as i:
                        T.buffer_store(output, finished(sums(p, v, i), c + i, at + i), [at + i])

        outermost = weights_outermost(address, shape.image(address.width_in), target)
        slices = shape.groups * deep.count
        with self.dot.imported():
            slice_loops(slices, rows * along.count, compute_tile, target, slices_outermost=outermost)

    def _sums(
        self,
        pixel: Callable[..., Any],
        weight: Callable[..., Any],
        begin: Callable[[int], Any] | None,
        target: CpuTarget,
    ) -> Callable[..., Any]:
        """The sums of a tile, as `accumulate` gives them."""
        dot, tile, (rows, pieces), steps = self.dot, self.tile, self.taps, self.steps.count
        type_ = dot.sum or self.address.key.types.sum
        # Not two blocks either: LLVM would unroll them and spill registers.
        if dot.most is None or rows * pieces * steps <= 2 * dot.most:
            return accumulate(
                tile,
                (rows, pieces, steps),
                pixel,
                weight,
                type_,
                of_vectors=True,
                run=self.run,
                lane=dot.lane or lane_in_all,
                add=dot.add,
                begin=begin,
                in_pairs=dot.fits(tile.pixels, tile.vectors, target, self.run, spare=2),
            )
        most, totals = dot.most, scratch(tile.pixels * tile.channels, FLOAT32)

        def place(p: int, v: int) -> int:
            return p * tile.channels + v * tile.lanes

        places = [(p, v) for p in range(tile.pixels) for v in range(tile.vectors)]
        for p, v in places:
            store(totals, constant(0.0, tile.lanes, FLOAT32), place(p, v), tile.lanes)
        with T.serial(0, rows) as ry, T.serial(0, pieces) as rx, T.serial(0, -(-steps // most)) as block:
            first = T.bind(block * most)
            count = T.min(most, steps - first) if steps % most else most
            sums = accumulate(
                tile,
                (count,),
                lambda step, p: pixel(ry, rx, first + step, p),
                lambda step, v: weight(ry, rx, first + step, v),
                type_,
                of_vectors=True,
                add=dot.add,
            )
            for p, v in places:
                total = vector(totals, place(p, v), tile.lanes)
                total = total + T.Cast(f"{FLOAT32}x{tile.lanes}", sums(p, v))
                store(totals, total, place(p, v), tile.lanes)
        return lambda p, v, lane: totals[place(p, v) + lane]


def widened(image: Any, pieces: int, read: int, wide: int, target: CpuTarget, behind: int = 0) -> Any:
    """The image with ``wide`` values in place of the ``read`` fewer of each piece; what is behind them is zero.

    There is room for ``behind`` more values behind all.
    """
    result = scratch(pieces * wide + behind, image.dtype)
    with loop(pieces, target) as piece:
        for c in range(wide):
            value = image[piece * read + c] if c < read else tirx.const(0, image.dtype)
            T.buffer_store(result, value, [piece * wide + c])
    return result
