"""How small or fast the network has to become: budgets as people write them, and how rounds approach them.

A budget is of one resource; how much of it a plan needs is decided in `aap_hw.policy.allocation` from costs that the
caller adds up.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from aap_hw.errors import UserError

_PATTERN = re.compile(r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>\D*)")


@dataclass(frozen=True)
class Resource:
    """Something that a budget can be of.

    Parameters
    ----------
    name
        What options, tables and files call it.
    units
        What people may write behind a number, in lower case, and what it stands for; '' is a bare number.
    unit
        The unit of the resource's amounts, whose factor is 1.
    examples
        Two ways to write a budget of it.
    """

    name: str
    units: Mapping[str, float]
    unit: str
    examples: tuple[str, str]


_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
# micro sign and Greek mu
LATENCY = Resource("latency", {"us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}, "ms", ("'20ms'", "'0.02s'"))
PARAMETERS = Resource("parameters", _COUNTS, "", ("'2M'", "'500k'"))
FLOPS = Resource("flops", _COUNTS, "", ("'150M'", "'1.2G'"))
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
MEMORY = Resource("memory", _BYTES, "B", ("'5MB'", "'800kB'"))
# What a number without a unit is most likely to be of.
_LIKELY = {"latency": ("ms", "milliseconds"), "memory": ("MB", "megabytes")}
RESOURCES = {resource.name: resource for resource in (LATENCY, PARAMETERS, FLOPS, MEMORY)}


@dataclass(frozen=True)
class Budget:
    """An amount of a resource that must not be exceeded, absolute or as a share of what the unpruned network takes.

    Parameters
    ----------
    amount
        In the resource's unit (milliseconds for latency), or the share as a fraction (0.55 for 55 %) if `relative`.
    relative
        Whether `amount` is a share of the unpruned network's.
    resource
        What it is of.

    Raises
    ------
    UserError
        If the amount is not positive and finite, or a share of more than all.
    """

    amount: float
    relative: bool
    resource: Resource = LATENCY

    def __post_init__(self) -> None:
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise UserError(f"a budget of {self.resource.name} must be positive and finite, not {self.amount}")
        if self.relative and self.amount > 1:
            raise UserError(
                f"a budget of {self.amount:g} times what the unpruned network takes is none; give a share of at "
                "most 1, such as 0.55 for 55 %"
            )

    @classmethod
    def parse(cls, text: str, resource: Resource = LATENCY) -> Self:
        """Read a budget such as ``20ms``, ``0.02s``, ``800us`` or ``55%``, ``2M`` or ``40%`` of a count.

        Raises
        ------
        UserError
            If the unit is missing or unknown, or the amount is not positive, not finite or above 100 %; the
            sentence says what to type instead.
        """
        first, second = resource.examples
        examples = f"type for example {first}, {second} or '55%' (of the unpruned network's {resource.name})"
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            before, comma, _ = text.partition(",")
            if comma and (several := _PATTERN.fullmatch(before.strip())) and several["unit"]:
                raise UserError(
                    f"'{text}' is several budgets; type one, such as '{before}' ('aap-hw plan' compares several)"
                )
            hint = " (the decimal sign is a point)" if comma else ""
            raise UserError(f"budget '{text}' is not a number with a unit{hint}; {examples}")
        written, unit = match["number"], match["unit"].strip()
        # The digits alone: 1e-999 is more than zero, though no float.
        if float(written.lower().partition("e")[0]) <= 0:
            raise UserError(f"a budget must be more than zero, not '{text}'; {examples}")
        if unit and unit != "%" and unit.lower() not in resource.units:
            raise UserError(f"budget '{text}' has the unknown unit '{unit}'; {examples}")
        likely, plural = _LIKELY.get(resource.name, ("", ""))
        number = float(written)
        amount = number / 100 if unit == "%" else number * resource.units[(unit or likely).lower()]
        if not (math.isfinite(amount) and amount > 0):
            raise UserError(f"budget '{text}' is too {'large' if amount > 0 else 'small'}; {examples}")
        if not unit and likely:
            raise UserError(
                f"budget '{text}' has no unit; type '{written}{likely}' for {plural}, "
                f"or a share of the unpruned network's {resource.name} such as '55%'"
            )
        if unit == "%" and amount > 1:
            raise UserError(
                f"budget '{text}' is more than the unpruned network takes (100%), so that nothing would be "
                f"pruned; {examples}"
            )
        return cls(amount, unit == "%", resource)

    def of(self, dense: float) -> float:
        """The budget in the resource's unit for a network that takes `dense` of it unpruned.

        Raises
        ------
        ValueError
            If `dense` is not positive and finite.
        """
        if not (math.isfinite(dense) and dense > 0):
            raise ValueError(f"the unpruned network's {self.resource.name} must be positive and finite, not {dense}")
        return self.amount * dense if self.relative else self.amount

    def __str__(self) -> str:
        if self.relative:
            return f"{self.amount * 100:.6g}%"
        # A count is exact, so that what is shown can be asked for.
        return (
            f"{self.amount:.6g}{self.resource.unit}"
            if self.resource is LATENCY
            else f"{self.amount:.10g}{self.resource.unit}"
        )


SCHEDULES = ("geometric", "additive")


def round_budgets(dense: float, budget: float, rounds: int, schedule: str = "geometric") -> list[float]:
    """Budgets of successive rounds, from just below `dense` down to exactly `budget`.

    Geometric: each round takes the same share of what is left. Additive, as the paper's threshold grows: each takes
    the same amount, so that the last rounds cut the deepest into a network that has the least to spare.

    Parameters
    ----------
    dense, budget
        Latency of the unpruned network and the goal, both positive and in the same unit.
    rounds
        How many rounds there are.
    schedule
        One of `SCHEDULES`.

    Raises
    ------
    ValueError
        If there are no rounds or no such schedule, a number is not positive and finite, or `budget` is more than
        `dense`.

    Examples
    --------
    >>> [round(each, 6) for each in round_budgets(16.0, 2.0, 3)]
    [8.0, 4.0, 2.0]
    >>> round_budgets(16.0, 4.0, 3, "additive")
    [12.0, 8.0, 4.0]
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"there is no schedule {schedule!r}, only {' and '.join(SCHEDULES)}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    if not (0 < budget <= dense < math.inf):
        raise ValueError(f"need 0 < budget <= dense < infinity, not budget {budget} and dense {dense}")
    if schedule == "additive":
        steps = [dense - (dense - budget) * done / rounds for done in range(1, rounds)]
    else:
        steps = [dense * (budget / dense) ** (done / rounds) for done in range(1, rounds)]
    return [*(max(budget, step) for step in steps), budget]
