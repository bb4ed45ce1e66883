"""The table of rules: which function makes kernels of which operator, and on what.

A rule is called in the program's order, once for each operator of its name that no earlier kernel took along. It
refuses cases that it has no kernel for; the operator then becomes a kernel on the slow path.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

import torch

from aap_hw.registry import Registry

if TYPE_CHECKING:
    from torch.fx import Node

    from aap_hw.compile.front.making import Partition


class Takes(Enum):
    """What a rule knows how to read."""

    IMAGES = auto()
    """Float32 images (N, C, H, W) and vectors (N, C)."""
    ROWS = auto()
    """Images and vectors, and float32 tensors that all have the same rank."""
    ANYTHING = auto()
    """Anything: the rule checks for itself."""


@dataclass(frozen=True)
class Rule:
    """The function that makes the kernels of an operator, and what it can read."""

    make: Callable[[Partition, Node], None]
    takes: Takes

    def is_for(self, tensors: Collection[torch.Tensor]) -> bool:
        """Whether it can be called for an operator that reads and makes these tensors, weights aside."""
        ranks = {tensor.dim() for tensor in tensors}
        is_float = all(tensor.dtype == torch.float32 for tensor in tensors)
        match self.takes:
            case Takes.IMAGES:
                return is_float and ranks <= {2, 4}
            case Takes.ROWS:
                return is_float and (ranks <= {2, 4} or len(ranks) == 1)
            case Takes.ANYTHING:
                return True


RULES: Registry[Rule] = Registry()
"""Rules by operator."""


def rule(
    *names: str, takes: Takes = Takes.IMAGES
) -> Callable[[Callable[[Partition, Node], None]], Callable[[Partition, Node], None]]:
    """Register a function as the rule of the operators with these names."""

    def register(make: Callable[[Partition, Node], None]) -> Callable[[Partition, Node], None]:
        RULES.register(*names)(Rule(make, takes))
        return make

    return register
