"""The table of kernels for CPUs, and how the weights of those that arrange them anew lie in memory."""

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
    """How a kernel has its weight: an array of this shape, and what makes it of PyTorch's."""

    shape: Shape
    pack: Callable[[np.ndarray], np.ndarray]

    @property
    def elements(self) -> int:
        """Numbers in the array: more than in the weight where tiles overlap."""
        return math.prod(self.shape)


PACKINGS: Registry[Callable[[Address, CpuTarget], Packing]] = Registry()
"""How the weights of an operator are packed; others are taken as they are."""
