"""The tables of kernels for CPUs, and of how their weights are packed: of float32 kernels, and of quantised ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.families import Shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.errors import UserError
from aap_hw.registry import Registry

KERNELS: Registry[Callable[[Address, CpuTarget], KernelFunction]] = Registry()
"""What builds the kernels of an operator; importing the package fills it."""


@dataclass(frozen=True)
class Packing:
    """The packed weight of a kernel: its shape, and the function that makes it from PyTorch's."""

    shape: Shape
    pack: Callable[[np.ndarray], np.ndarray]

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


def built(address: Address, target: CpuTarget) -> KernelFunction:
    """The code of a kernel.

    Raises
    ------
    UserError : the operator has no code that computes in this precision.
    """
    key = address.key
    kernels = QUANTIZED if key.types.is_quantized else KERNELS
    if key.op not in kernels:
        raise UserError(f"the kernel {key} has no code in this version: {key.op} does not compute in {key.precision}")
    return kernels[key.op](address, target)


def packing_of(address: Address, target: CpuTarget) -> Packing | None:
    """How a kernel's weights are packed, if they are."""
    packings = QUANTIZED_PACKINGS if address.key.types.is_quantized else PACKINGS
    return packings[address.key.op](address, target) if address.key.op in packings else None
