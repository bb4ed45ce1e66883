"""Depthwise convolutions of bytes on a CPU: four taps of a column for one dot product.

The bytes of four rows are interleaved, so that each channel has its four taps of a column side by side. All windows
that the column belongs to use them, and so does the row below where its windows lie within the same four rows. Sums are
in the order of `interleaving`, and come back to that of the channels when they become bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.quantized import Number
from aap_hw.compile.cpu.depthwise import repeated
from aap_hw.compile.cpu.dots import widened
from aap_hw.compile.cpu.emit import loop, registers, scratch, store, vector
from aap_hw.compile.cpu.int8.depthwise_plan import Plan, weights_of_vector
from aap_hw.compile.cpu.int8.epilogue import CURVES, bounds_of, quantized_kernel, reals
from aap_hw.compile.cpu.int8.gated import Constants, Gated, with_table
from aap_hw.compile.cpu.int8.storing import to_bytes
from aap_hw.compile.cpu.isa import GROUP
from aap_hw.compile.cpu.kernels import QUANTIZED, QUANTIZED_PACKINGS, Packing
from aap_hw.compile.cpu.opaque import UNKNOWN_COUNT, unknown
from aap_hw.compile.cpu.padding import Border, padded_image
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import BYTES, FLOAT32
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.errors import UserError

Held = dict[int, list[list[Any]]]
"""Vectors of int32: of columns their quads, or of pixels their sums."""


class _Kept:
    """What one turn of a loop leaves to the next."""

    def __init__(self, held: Held, lanes: int) -> None:
        self._lanes = lanes
        self._buffers = {
            at: [[registers(lanes, "int32") for _ in vectors] for vectors in each] for at, each in held.items()
        }
        self.write(held)

    def write(self, held: Held) -> None:
        """Keep these."""
        assert held.keys() == self._buffers.keys()
        for at, each in self._buffers.items():
            for buffers, vectors in zip(each, held[at], strict=True):
                for buffer, value in zip(buffers, vectors, strict=True):
                    store(buffer, value, 0, self._lanes)

    def read(self) -> Held:
        """What was kept."""
        return {
            at: [[T.bind(vector(buffer, 0, self._lanes)) for buffer in buffers] for buffers in each]
            for at, each in self._buffers.items()
        }


@QUANTIZED_PACKINGS.register("depthwise_conv2d")
def packing(address: Address, target: CpuTarget) -> Packing:
    """Block by block, each vector's weights in the order of its lanes."""
    plan = Plan.of(address, target)
    type_ = "int16" if plan.in_halves else address.key.types.weight
    numbers = (len(plan.windows) + 2) * len(plan.order)  # what sums begin with, factors and offsets
    constant_bytes = BYTES[type_] * math.prod(plan.packed_shape) + BYTES[FLOAT32] * numbers
    return Packing(plan.packed_shape, plan.pack, type_, constant_bytes)


@QUANTIZED.register("depthwise_conv2d")
def depthwise(address: Address, target: CpuTarget) -> KernelFunction:
    """One filter for each channel, or several; then the image is copied with every channel repeated as often."""
    key, width_in, channels = address.key, address.width_in, address.width_out
    if channels % width_in:
        raise UserError(f"the kernel {key} cannot have {width_in} -> {channels} channels: it makes as many of each")
    given, plan = ConvolutionShape.of(key), Plan.of(address, target)
    shape, block, deep, rows, down = plan.shape, plan.block, plan.deep, plan.rows, plan.down
    (height, width), kw, (sh, sw), (top, left) = shape.size, shape.kernel[1], shape.stride, shape.padding
    dw, together = shape.columns.dilation, plan.together
    # The sums of rows wait in memory for an epilogue that wants the registers for itself.
    is_curved = key.types.made == "uint8" and not CURVES.isdisjoint(key.epilogue)
    in_turns = is_curved and target.multiplies_by_lane and block.vectors == GROUP
    gated = Gated.of(key, math.prod(shape.kernel)) if in_turns else None
    pitch = max(channels, GROUP)
    packed, order, lanes, size = packing(address, target), plan.order, block.lanes, weights_of_vector(plan)

    def body(image: Any, *others: Any) -> None:
        *residual, weights, starts, factors, numbers, table, output = with_table(others, gated)
        whole = {n: T.bind(numbers[int(n)]) for n in Number}
        bounds = bounds_of(key, whole.__getitem__)
        source = image
        if width_in != channels:
            plain = Border(given.batch, given.size, planar=given.planar)
            source = padded_image(image, plain, width_in, target)
            source = repeated(source, given, width_in, width_in, channels // width_in, target)
        if plan.is_padded:
            is_planar = given.planar and source is image
            border = Border(given.batch, given.size, given.rows.around, given.columns.around, is_planar)
            zero = T.bind(T.Cast(image.dtype, whole[Number.ZERO_READ]))
            source = padded_image(source, border, channels, target, zero)
        if channels < GROUP:
            source = widened(source, shape.batch * height * width, channels, GROUP, target)

        def reals_of(totals: Sequence[Any], first: Any, at: Any) -> list[Any]:
            """The numbers that the sums of a block come to, in steps if bytes are made."""

            def added(v: int, i: Any) -> Any:
                return residual[0][at + block.channel(v, i)]

            sums = [(total, first + v * lanes) for v, total in enumerate(totals)]
            constants, add = (factors, len(order)), added if residual else None
            return reals(key, sums, lanes, constants, whole.__getitem__, add, target)

        def pixels_done(sums: Sequence[Sequence[Any]], step: Any, c: Any, pixels: Sequence[Any]) -> None:
            """Write the outputs of pixels."""
            places = [T.bind(pixel * channels + c) for pixel in pixels]
            first = T.bind(step * block.channels)
            several = [reals_of(totals, first, at) for totals, at in zip(sums, places, strict=True)]
            if key.types.made != "uint8":
                inverse = [block.order.index(place) for place in range(block.channels)]
                made = [tirx.Shuffle(values, inverse) if len(values) > 1 else values[0] for values in several]
            else:
                made = to_bytes(several, bounds, lanes, target)
            for values, at in zip(made, places, strict=True):
                if channels >= block.channels:
                    store(output, values, at, block.channels)
                    continue
                few = registers(block.channels, "uint8" if key.types.made == "uint8" else FLOAT32)
                store(few, values, 0, block.channels)
                for place in range(channels):
                    T.buffer_store(output, few[place], [at + place])

        def row_at(n: Any, tile: Any, kind: Any, step: Any) -> None:
            """A row of pixels of a block of channels, or the rows that are computed together."""
            c, y = T.bind(deep.start(step)), T.bind(down.start(tile))
            first_weight = T.bind((kind * deep.count + step) * math.prod(packed.shape[2:]))
            first_start = T.bind(kind * (rows.count * len(plan.ends) * len(order)) + step * block.channels)
            lines, made_at = {}, []
            sums_of_rows = scratch(rows.count * shape.out_width * block.channels, key.types.sum) if in_turns else None
            for place in range(rows.last + 1):
                row = y * sh - top + place * shape.rows.dilation
                if plan.reads_outside:
                    row = T.max(T.min(row, height - 1), 0)
                lines[place] = T.bind(((n * height + row) * width - left) * pitch + c)
            for row in range(rows.count):
                made_at.append(T.bind((n * shape.out_height + y + row) * shape.out_width))

            def quads_of(column: Any) -> list[list[Any]]:
                found = []
                for quad in range(rows.quads):
                    places = [min(quad * GROUP + place, rows.last) for place in range(GROUP)]
                    values = {p: T.bind(vector(source, lines[p] + column * pitch, block.channels)) for p in places}
                    interleaved = block.interleaved([values[place] for place in places])
                    taps = [T.reinterpret(f"int32x{lanes}", each) for each in interleaved]
                    found.append([T.bind(plan.dot.prepare(each, lanes)) for each in taps])
                return found

            def begin(x: Any) -> list[list[Any]]:
                firsts = [first_start + plan.window(0, row, plan.reached(x)) * len(order) for row in range(rows.count)]
                return [
                    [T.bind(vector(starts, first + v * lanes, lanes)) for v in range(block.vectors)] for first in firsts
                ]

            def add(sums: list[list[Any]], quads: list[list[Any]], rx: int) -> None:
                for use, (row, quad) in enumerate(rows.uses):
                    for v in range(block.vectors):
                        at, taps = first_weight + ((use * kw + rx) * block.vectors + v) * size, quads[quad][v]
                        if plan.dot.add_halves is None:
                            total = plan.dot.add(sums[row][v], taps, vector(weights, at, size))
                        else:
                            parts = [vector(weights, at + part * (size // 2), size // 2) for part in range(2)]
                            total = plan.dot.add_halves(sums[row][v], taps, parts)
                        sums[row][v] = T.bind(total)

            def finish(done: Iterable[tuple[int, Any]], x: Any) -> None:
                for p, sums in done:
                    if sums_of_rows is None:
                        pixels_done(sums, step, c, [line + (x + p) for line in made_at])
                        continue
                    for (row, totals), v in itertools.product(enumerate(sums), range(block.vectors)):
                        at = ((row * shape.out_width + x + p) * block.vectors + v) * lanes
                        store(sums_of_rows, totals[v], at, lanes)

            def uses_of(x: Any, column: int) -> list[tuple[int, int]]:
                """Pixels and taps that use a column; both pixels and columns are counted from those of ``x``."""
                return [(p, rx) for p, rx in plan.uses(column) if not isinstance(x, int) or x + p < shape.out_width]

            def inside(x: Any) -> list[int]:
                return [rx for rx, is_there in enumerate(plan.reached(x)) if is_there]

            def built(x: Any, columns: Iterable[int]) -> Held:
                used = [each for each in columns if any(rx in inside(x + p) for p, rx in uses_of(x, each))]
                return {column: quads_of(x * sw + column) for column in used}

            def summed(x: Any, columns: Iterable[int], waiting: Held, fresh: Held) -> list[tuple[int, Any]]:
                """Go on with columns, which are ``fresh``; returns the pixels that they end, with their sums.

                ``waiting`` holds the quads of columns before, or the sums of pixels.
                """
                done = []
                for column in columns:
                    if plan.is_gathered and column in fresh:
                        waiting[column] = fresh[column]
                    for p, rx in uses_of(x, column):
                        taps = inside(x + p)
                        if not plan.is_gathered and rx in taps:
                            if rx == taps[0]:
                                waiting[p] = begin(x + p)
                            add(waiting[p], fresh[column], rx)
                        if rx == kw - 1:
                            sums = begin(x + p) if plan.is_gathered or not taps else waiting.pop(p)
                            for each in taps if plan.is_gathered else ():
                                add(sums, waiting[p * sw + each * dw], each)
                            done.append((p, sums))
                return done

            def later(held: Held, pixels: int, *, by_column: bool) -> Held:
                """What is held, counted from so many pixels later on."""
                shift = pixels * sw if by_column else pixels
                return {at - shift: each for at, each in held.items() if at >= shift}

            def columns_of(p: int) -> range:
                """The columns of a pixel's window that the one before does not have."""
                return range(p * sw + plan.overlap, p * sw + shape.columns.reach)

            def pixels(x: int, count: int, waiting: Held, fresh: Held) -> Held:
                """So many pixels from a known place on; returns what waits behind them."""
                for p in range(count):
                    missing = [column for column in columns_of(p) if column not in fresh]
                    finish(summed(x, columns_of(p), waiting, {**fresh, **built(x, missing)}), x)
                return later(waiting, count, by_column=plan.is_gathered)

            def along_row() -> None:
                waiting: Held = {}
                summed(0, range(plan.overlap), waiting, built(0, range(plan.overlap)))
                inner, ahead = plan.inner, max((shape.columns.reach - 1) // sw, together)
                turns = (len(inner) - ahead) // together
                if turns < 3:
                    pixels(0, shape.out_width, waiting, {})
                    return
                if not plan.looks_ahead:
                    group = [column for p in range(together) for column in columns_of(p)]
                    waiting = pixels(0, inner.start, waiting, {})
                    several = _Kept(waiting, lanes)
                    with T.serial(0, turns) as turn:
                        x, waiting = T.bind(inner.start + turn * together), several.read()
                        finish(summed(x, group, waiting, built(x, group)), x)
                        several.write(later(waiting, together, by_column=plan.is_gathered))
                    after = inner.start + turns * together
                    pixels(after, shape.out_width - after, several.read(), {})
                    return
                # Each turn builds the columns of the next and finishes the pixels of the one before, as processors do
                # not look far enough ahead.
                group = [column for p in range(together) for column in columns_of(p)]
                next_group = [column + together * sw for column in group]
                first = inner.start
                waiting = pixels(0, first, waiting, {})
                done = summed(first, group, waiting, built(first, group))
                fresh = later(built(first, next_group), together, by_column=True)
                waiting = later(waiting, together, by_column=plan.is_gathered)
                kept = [_Kept(held, lanes) for held in (waiting, fresh, dict(done))]
                with T.serial(0, turns - 1) as turn:
                    x = T.bind(first + (turn + 1) * together)
                    waiting, fresh, ready = (each.read() for each in kept)
                    done = summed(x, group, waiting, fresh)
                    finish(ready.items(), x - together)
                    fresh = later(built(x, next_group), together, by_column=True)
                    waiting = later(waiting, together, by_column=plan.is_gathered)
                    for each, held in zip(kept, (waiting, fresh, dict(done)), strict=True):
                        each.write(held)
                waiting, fresh, ready = (each.read() for each in kept)
                after = first + turns * together
                finish(ready.items(), after - together)
                pixels(after, shape.out_width - after, waiting, fresh)

            along_row()
            if sums_of_rows is not None:
                known = None
                if gated is not None:
                    # LLVM would read the table before all loops and, as there are not as many registers, keep it on the
                    # stack.
                    here = T.bind(unknown(T.int32(0)))
                    known = Constants.of((factors, len(order)), here + step * block.channels, table, here)
                # Rows of the output follow each other, and so do their sums.
                with T.serial(0, rows.count * shape.out_width) as i:
                    totals = [
                        vector(sums_of_rows, (i * block.vectors + v) * lanes, lanes) for v in range(block.vectors)
                    ]
                    if gated is not None and known is not None:
                        at = T.bind((made_at[0] + i) * channels + c)
                        store(output, gated.bytes_of(totals, known), at, block.channels)
                    else:
                        pixels_done([totals], step, c, [made_at[0] + i])

        importing = T.attr(T.int32(0), "pragma_import_llvm", UNKNOWN_COUNT) if gated is not None else nullcontext()
        with importing, loop(shape.batch * down.count, target) as line:
            n, tile = T.bind(line // down.count), T.bind(line % down.count)
            kind = T.bind(plan.kind(tile))
            with T.serial(0, deep.count) as step:
                row_at(n, tile, kind, step)

    return quantized_kernel(
        address,
        given.image(width_in),
        packed,
        order,
        plan.dot.shift,
        body,
        reached=plan.windows,
        gated=gated,
    )
