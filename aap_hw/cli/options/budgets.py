"""What to prune to: budgets of latency, parameters, multiply-accumulates and memory.

A command gets them as ``budgets``, a dictionary by the names that `aap_hw.plan` and `aap_hw.prune` have for them.
"""

from __future__ import annotations

import re
from typing import Any

import click

from aap_hw.cli.options.grouping import as_one


class BudgetText(click.ParamType[Any]):
    """A budget of a resource, such as ``20ms``, ``0.02s`` or ``55%`` of latency; with ``several``, a list of them."""

    def __init__(self, name: str, resource: str, *, several: bool = False) -> None:
        self.name, self._resource, self._several = name, resource, several

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text into a Budget, or a tuple of Budgets; bad text is a UserError that says what to type."""
        from aap_hw.policy.budget import RESOURCES, Budget

        if not isinstance(value, str):
            return value
        resource = RESOURCES[self._resource]
        # One number with a comma in it, as half the world writes them, is told from a list.
        if self._several and "," in value and not re.fullmatch(r"\d+,\d+ *[^\d,]*", value.strip()):
            return tuple(Budget.parse(each.strip(), resource) for each in value.split(","))
        return Budget.parse(value, resource)


_LATENCY_HELP = "Latency to reach on the device: 20ms, 0.02s, or 55% of the unpruned network's"
_OTHERS = (
    click.option(
        "--max-params", type=BudgetText("NUMBER", "parameters"), help="At most so many parameters: 2M, 500k, or 40%."
    ),
    click.option(
        "--max-flops",
        type=BudgetText("NUMBER", "flops"),
        help="At most so many multiply-accumulates (many call these FLOPs): 150M, 1.2G, or 50%.",
    ),
    click.option(
        "--max-memory",
        type=BudgetText("SIZE", "memory"),
        help="At most so much memory: 5MB, 800kB, or 40%. What counts is the weights as compiled and the feature maps "
        "that are needed at the same time.",
    ),
)
budget_options = as_one(
    "budgets", dict, click.option("--budget", type=BudgetText("TIME", "latency"), help=f"{_LATENCY_HELP}."), *_OTHERS
)
# Of latency there may be several: ``budget`` is a tuple then.
curve_options = as_one(
    "budgets",
    dict,
    click.option(
        "--budget",
        type=BudgetText("TIME,...", "latency", several=True),
        help=f"{_LATENCY_HELP}. Several, such as 20%,40%,60%,80%, give the trade-off curve.",
    ),
    *_OTHERS,
)
