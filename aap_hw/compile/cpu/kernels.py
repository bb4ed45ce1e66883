"""The tables of kernels for CPUs, and of how their weights are packed, by the precision that they are written for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.cpu.nan import keeping_nan
from aap_hw.compile.families import Shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import FLOAT32, HALVES
from aap_hw.compile.keys.target import CpuTarget, half_precision_of
from aap_hw.errors import UserError
from aap_hw.registry import Registry

KERNELS: Registry[Callable[[Address, CpuTarget], KernelFunction]] = Registry()
"""What builds the kernels of an operator; importing the package fills it."""


@dataclass(frozen=True)
class Packing:
    """The packed weight of a kernel: its shape, the function that makes it from PyTorch's, and the type it gets.

    ``constant_bytes`` is the size of all constants of the kernel where the family's count of them does not say.
    """

    shape: Shape
    pack: Callable[[np.ndarray], np.ndarray]
    type: str = FLOAT32
    constant_bytes: int | None = None

    @property
    def elements(self) -> int:
        """Numbers in the array: more than in the weight where tiles overlap."""
        return math.prod(self.shape)


PACKINGS: Registry[Callable[[Address, CpuTarget], Packing]] = Registry()
"""How an operator's weights are packed; without an entry they are not packed."""

QUANTIZED: Registry[Callable[[Address, CpuTarget], KernelFunction]] = Registry()
"""What builds an operator's kernels that read or make uint8."""

QUANTIZED_PACKINGS: Registry[Callable[[Address, CpuTarget], Packing]] = Registry()
"""How their weights are packed."""


HALF_KERNELS: Registry[Callable[[Address, CpuTarget], KernelFunction]] = Registry()
"""What builds an operator's kernels that multiply in half precision. All others that read it are float32's."""

HALF_PACKINGS: Registry[Callable[[Address, CpuTarget], Packing]] = Registry()
"""How their weights are packed."""


def built(address: Address, target: CpuTarget) -> KernelFunction:
    """The code of a kernel.

    Raises
    ------
    UserError : the operator has no code that computes in this precision.
    """
    key = address.key
    if key.types.is_half and half_precision_of(target) not in (key.types.read, key.types.made):
        raise UserError(
            f"the kernel {key} is not for the CPU of {dict(target.options)}, which has another half precision"
        )
    kernels = QUANTIZED if key.types.is_quantized else KERNELS
    if key.types.read in HALVES and key.op in HALF_KERNELS:
        kernels = HALF_KERNELS
    if key.op not in kernels:
        raise UserError(f"the kernel {key} has no code in this version: {key.op} does not compute in {key.precision}")
    function = kernels[key.op](address, target)
    return function if key.types.is_quantized else replace(function, code=keeping_nan(function.code, target))


def packing_of(address: Address, target: CpuTarget) -> Packing | None:
    """How a kernel's weights are packed, if they are."""
    op, types = address.key.op, address.key.types
    packings = QUANTIZED_PACKINGS if types.is_quantized else PACKINGS
    if types.read in HALVES and op in HALF_PACKINGS:
        packings = HALF_PACKINGS
    return packings[op](address, target) if op in packings else None
