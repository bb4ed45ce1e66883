"""Convolutions and linear layers of bytes on a CPU: dot products of four inputs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.quantized import Number
from aap_hw.compile.cpu.dots import DotPlan
from aap_hw.compile.cpu.emit import store, vector
from aap_hw.compile.cpu.int8.epilogue import LONG, bounds_of, finished, quantized_kernel, reals
from aap_hw.compile.cpu.isa import GROUP, dense_product, to_bytes
from aap_hw.compile.cpu.kernels import QUANTIZED, QUANTIZED_PACKINGS, Packing
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


def _plan(address: Address, target: CpuTarget) -> DotPlan:
    # The constants of a function of many steps want registers, too: with full tiles, sums were spilled for them.
    most = None if LONG.isdisjoint(address.key.epilogue) else target.registers // 2 - 2
    return DotPlan.of(address, target, dense_product, most=most)


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
    # The last vector may reach behind the last channel.
    order = np.minimum(np.arange(width_out + plan.deep.extent - plan.made), width_out - 1)

    def body(image: Any, *others: Any) -> None:
        *residual, weights, starts, factors, numbers, output = others
        whole = {n: T.bind(numbers[int(n)]) for n in Number}
        bounds = bounds_of(whole.__getitem__) if by_vectors else None
        zero = T.bind(T.Cast(image.dtype, whole[Number.ZERO_READ]))

        def made_of(total: Any, channel: Any, place: Any) -> Any:
            added = residual[0][place] if residual else None
            factor, summand = factors[channel], factors[len(order) + channel]
            return finished(key, total, factor, summand, whole.__getitem__, added)

        def made_together(sums: Sequence[tuple[Any, Any, Any]]) -> None:
            """Four vectors of sums at once: their bytes fill a register, and those of one would take as long."""
            assert bounds is not None
            for start in range(0, len(sums), GROUP):
                some = sums[start : start + GROUP]

                def added(v: int, lane: Any, some: Sequence[tuple[Any, Any, Any]] = some) -> Any:
                    return residual[0][some[v][2] + lane]

                channels = [(total, channel) for total, channel, _ in some]
                constants = factors, len(order)
                values = reals(key, channels, lanes, constants, whole.__getitem__, added if residual else None)
                filled = [*values, *values[-1:] * (GROUP - len(values))]
                (made,) = to_bytes([filled], bounds, lanes, target)
                # Those of a pixel lie side by side.
                firsts = [v for v in range(len(some)) if v == 0 or (start + v) % plan.tile.vectors == 0]
                for first, end in itertools.pairwise([*firsts, len(some)]):
                    part = tirx.Shuffle([made], list(range(first * lanes, end * lanes)))
                    store(output, part, some[first][2], (end - first) * lanes)

        def begin(channel: Any) -> Any:
            return vector(starts, channel, lanes)

        plan.write(image, weights, output, made_of, target, zero, begin, together=made_together if by_vectors else None)

    image = plan.shape.image(address.width_in)
    return quantized_kernel(address, image, plan.packing, order, plan.dot.shift, body)
