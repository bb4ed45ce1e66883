"""The table of kernels for CPUs, and the table of how their weights are packed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.families import Shape
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget
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
