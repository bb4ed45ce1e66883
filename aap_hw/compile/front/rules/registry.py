"""The table of rules: which function makes kernels of which operator.

A rule is called once for each operator of its name that no kernel before it took along, in the program's order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch.fx import Node

if TYPE_CHECKING:
    from aap_hw.compile.front.partition import Partition

Rule = Callable[["Partition", Node], None]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the operators with these names."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register
