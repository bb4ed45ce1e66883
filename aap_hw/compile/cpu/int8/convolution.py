"""Convolutions and linear layers of bytes on a CPU: dot products of four inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.quantized import Number
from aap_hw.compile.cpu.dots import DotPlan
from aap_hw.compile.cpu.emit import vector
from aap_hw.compile.cpu.int8.epilogue import LONG, finished, quantized_kernel
from aap_hw.compile.cpu.isa import dot_product
from aap_hw.compile.cpu.kernels import QUANTIZED, QUANTIZED_PACKINGS, Packing
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget


def _plan(address: Address, target: CpuTarget) -> DotPlan:
    # The constants of a function of many steps want registers, too: with full tiles, sums were spilled for them.
    most = None if LONG.isdisjoint(address.key.epilogue) else target.registers // 2 - 2
    return DotPlan.of(address, target, dot_product, most=most)


@QUANTIZED_PACKINGS.register("conv2d", "linear")
def packing(address: Address, target: CpuTarget) -> Packing:
    """Slices of weights, one for each tile of output channels, one behind the other."""
    return _plan(address, target).packing


@QUANTIZED.register("conv2d", "linear")
def convolution(address: Address, target: CpuTarget) -> KernelFunction:
    """Dense and grouped convolutions, and linear layers."""
    key, width_out, plan = address.key, address.width_out, _plan(address, target)
    # The last vector may reach behind the last channel.
    order = np.minimum(np.arange(width_out + plan.deep.extent - plan.made), width_out - 1)

    def body(image: Any, *others: Any) -> None:
        *residual, weights, starts, factors, numbers, output = others
        whole = {n: T.bind(numbers[int(n)]) for n in Number}
        zero = T.bind(T.Cast(image.dtype, whole[Number.ZERO_READ]))

        def made_of(total: Any, channel: Any, place: Any) -> Any:
            added = residual[0][place] if residual else None
            factor, summand = factors[channel], factors[len(order) + channel]
            return finished(key, total, factor, summand, whole.__getitem__, added)

        plan.write(
            image, weights, output, made_of, target, zero, lambda channel: vector(starts, channel, plan.tile.lanes)
        )

    image = plan.shape.image(address.width_in)
    return quantized_kernel(address, image, plan.packing, order, plan.dot.shift, body)
