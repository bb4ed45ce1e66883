"""Convolutions and linear layers of bytes on a CPU: dot products of four inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.quantized import Number
from aap_hw.compile.cpu.dots import DotPlan
from aap_hw.compile.cpu.emit import scratch, store, vector
from aap_hw.compile.cpu.int8.epilogue import CURVES, LONG, bounds_of, finished, quantized_kernel, reals
from aap_hw.compile.cpu.int8.gated import Constants, Gated, with_table
from aap_hw.compile.cpu.int8.storing import to_bytes
from aap_hw.compile.cpu.isa import FEWEST_LANES, GROUP, dense_product
from aap_hw.compile.cpu.kernels import QUANTIZED, QUANTIZED_PACKINGS, Packing
from aap_hw.compile.cpu.opaque import not_unrolled
from aap_hw.compile.cpu.weighted import channels_of_group
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


def _plan(address: Address, target: CpuTarget) -> DotPlan:
    in_turns, is_long = _is_in_turns(address, target), not LONG.isdisjoint(address.key.epilogue)

    def allows(pixels: int, vectors: int) -> bool:
        if in_turns:
            return vectors == GROUP
        # The constants of a function of many steps want registers, too: with full tiles, sums were spilled for them.
        return not is_long or pixels * vectors <= target.registers // 2 - 2

    return DotPlan.of(address, target, dense_product, allows=allows)


def _is_in_turns(address: Address, target: CpuTarget) -> bool:
    """Whether the sums of a tile wait in memory for their epilogue, which then has the registers for itself."""
    key, (_, made) = address.key, channels_of_group(address, ConvolutionShape.of(address.key).groups)
    of_bytes = target.multiplies_by_lane and key.types.made == "uint8" and made >= GROUP * FEWEST_LANES
    return of_bytes and not CURVES.isdisjoint(key.epilogue)


def _store_words(output: Any, made: Any, words: range, at: Any) -> None:
    """Write some of a vector's words of four bytes; single bytes LLVM would take out of it one by one."""
    vector_of_words, count = T.bind(T.reinterpret("int32x4", made)), len(words)
    for length in (4, 2, 1):
        if count & length:
            done = count & ~(2 * length - 1)
            some = tirx.Shuffle([vector_of_words], list(words[done : done + length]))
            store(output, T.reinterpret(f"uint8x{GROUP * length}", some), at + GROUP * done, GROUP * length)


@QUANTIZED_PACKINGS.register("conv2d", "linear")
def packing(address: Address, target: CpuTarget) -> Packing:
    """Slices of weights, one for each tile of output channels, one behind the other."""
    return _plan(address, target).packing


@QUANTIZED.register("conv2d", "linear")
def convolution(address: Address, target: CpuTarget) -> KernelFunction:
    """Dense and grouped convolutions, and linear layers."""
    key, width_out, plan = address.key, address.width_out, _plan(address, target)
    lanes = plan.tile.lanes
    by_vectors = target.multiplies_by_lane and key.types.made == "uint8" and plan.made >= lanes
    products = math.prod(plan.shape.kernel) * plan.read
    gated = Gated.of(key, products) if _is_in_turns(address, target) else None
    # The last vector may reach behind the last channel.
    order = np.minimum(np.arange(width_out + plan.deep.extent - plan.made), width_out - 1)

    def body(image: Any, *others: Any) -> None:
        *residual, weights, starts, factors, numbers, table, output = with_table(others, gated)
        whole = {n: T.bind(numbers[int(n)]) for n in Number}
        bounds = bounds_of(key, whole.__getitem__) if by_vectors else None
        zero = T.bind(T.Cast(image.dtype, whole[Number.ZERO_READ]))

        def made_of(total: Any, channel: Any, place: Any) -> Any:
            added = residual[0][place] if residual else None
            factor, summand = factors[channel], factors[len(order) + channel]
            return finished(key, total, factor, summand, whole.__getitem__, added)

        def made_in_turns(sums: Sequence[tuple[Any, Any, Any]]) -> None:
            """Pixel by pixel in a loop."""
            assert bounds is not None
            count = GROUP * lanes
            waiting = scratch(len(sums) * lanes, key.types.sum)
            for v, (total, _, _) in enumerate(sums):
                store(waiting, total, v * lanes, lanes)
            _, channel, place = sums[0]
            known = Constants.of((factors, len(order)), channel, table) if gated is not None else None
            with not_unrolled(plan.tile.pixels) as p:
                at = T.bind(place + p * width_out)

                def added(v: int, lane: Any) -> Any:
                    return residual[0][at + v * lanes + lane]

                some = [(vector(waiting, p * count + v * lanes, lanes), channel + v * lanes) for v in range(GROUP)]
                if gated is not None and known is not None:
                    store(output, gated.bytes_of([total for total, _ in some], known), at, count)
                    return
                constants, add = (factors, len(order)), added if residual else None
                values = reals(key, some, lanes, constants, whole.__getitem__, add, target)
                (made,) = to_bytes([values], bounds, lanes, target)
                store(output, made, at, count)

        def made_together(sums: Sequence[tuple[Any, Any, Any]]) -> None:
            """Four vectors of sums at once: their bytes fill a register, and those of one would take as long."""
            assert bounds is not None
            for start in range(0, len(sums), GROUP):
                some = sums[start : start + GROUP]

                def added(v: int, lane: Any, some: Sequence[tuple[Any, Any, Any]] = some) -> Any:
                    return residual[0][some[v][2] + lane]

                channels = [(total, channel) for total, channel, _ in some]
                constants = factors, len(order)
                values = reals(key, channels, lanes, constants, whole.__getitem__, added if residual else None, target)
                filled = [*values, *values[-1:] * (GROUP - len(values))]
                (made,) = to_bytes([filled], bounds, lanes, target)
                # Those of a pixel lie side by side.
                firsts = [v for v in range(len(some)) if v == 0 or (start + v) % plan.tile.vectors == 0]
                for first, end in itertools.pairwise([*firsts, len(some)]):
                    _store_words(output, made, range(first, end), some[first][2])

        def begin(channel: Any) -> Any:
            return vector(starts, channel, lanes)

        together = made_in_turns if _is_in_turns(address, target) else made_together
        plan.write(image, weights, output, made_of, target, zero, begin, together=together if by_vectors else None)

    image = plan.shape.image(address.width_in)
    return quantized_kernel(address, image, plan.packing, order, plan.dot.shift, body, gated=gated)
