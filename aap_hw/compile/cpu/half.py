"""Convolutions and linear layers that multiply in half precision on a CPU.

All other kernels in half precision are those of float32, which round what they store. So are 3x3 convolutions where
Winograd's way is faster: its transforms would lose too much in half precision.
"""

from __future__ import annotations

from typing import Any

from aap_hw.compile.code.function import KernelFunction, apply_epilogue
from aap_hw.compile.cpu.dots import DotPlan
from aap_hw.compile.cpu.isa import half_product, pair_product
from aap_hw.compile.cpu.kernels import HALF_KERNELS, HALF_PACKINGS, Packing
from aap_hw.compile.cpu.weighted import weighted_kernel
from aap_hw.compile.cpu.winograd import build_winograd, choose_winograd, transformed
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import FLOAT16
from aap_hw.compile.keys.target import CpuTarget


def _plan(address: Address, target: CpuTarget) -> DotPlan:
    if address.key.types.read == FLOAT16:
        return DotPlan.of(address, target, half_product, FLOAT16)
    return DotPlan.of(address, target, pair_product)


@HALF_PACKINGS.register("conv2d", "linear")
def packing(address: Address, target: CpuTarget) -> Packing:
    """Slices of weights, one for each tile of output channels, one behind the other."""
    plan = _plan(address, target)
    if (size := choose_winograd(address, target, plan.cycles)) is not None:
        return transformed(address, size, target)
    return plan.packing


@HALF_KERNELS.register("conv2d", "linear")
def convolution(address: Address, target: CpuTarget) -> KernelFunction:
    """Dense and grouped convolutions, and linear layers."""
    key, plan = address.key, _plan(address, target)
    if (size := choose_winograd(address, target, plan.cycles)) is not None:
        return build_winograd(address, size, target)

    def body(image: Any, *others: Any) -> None:
        *residual, weights, bias, output = others

        def made_of(total: Any, channel: Any, place: Any) -> Any:
            added = residual[0][place] if residual else None
            return apply_epilogue(total, key.epilogue, bias[channel], added)

        plan.write(image, weights, output, made_of, target)

    shape = plan.shape
    return weighted_kernel(address, shape.image(address.width_in), plan.packing, shape.output(address.width_out), body)
