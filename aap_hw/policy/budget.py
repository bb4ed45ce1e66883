"""How fast the network has to become: budgets as people write them, and how rounds approach them.

Only latency budgets are written by people here; `aap_hw.policy.allocation` takes any resource as a number.
"""

import math
import re
from dataclasses import dataclass
from typing import Self

from aap_hw.errors import UserError

_EXAMPLES = "type for example '20ms', '0.02s' or '55%' (of the dense network's latency)"
_MILLISECONDS = {"us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}  # micro sign and Greek mu
_PATTERN = re.compile(r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>\D*)")


@dataclass(frozen=True)
class Budget:
    """A latency that must not be exceeded: so many milliseconds, or a share of the dense latency.

    Parameters
    ----------
    amount
        Milliseconds, or the share as a fraction (0.55 for 55 %) if `relative`.
    relative
        Whether `amount` is a share of the dense network's latency.
    """

    amount: float
    relative: bool

    def __post_init__(self) -> None:
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise ValueError(f"a budget must be positive and finite, not {self.amount}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a budget such as ``20ms``, ``0.02s``, ``800us`` or ``55%``.

        Raises
        ------
        UserError
            If the unit is missing or unknown, or the amount is not positive, not finite or above 100 %; the
            sentence says what to type instead.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            comma = " (the decimal sign is a point)" if "," in text else ""
            raise UserError(f"budget '{text}' is not a number with a unit{comma}; {_EXAMPLES}")
        written, unit = match["number"], match["unit"].strip()
        number = float(written)
        if not unit:
            raise UserError(
                f"budget '{text}' has no unit; type '{written}ms' for milliseconds, "
                f"or a share of the dense network's latency such as '55%'"
            )
        if unit != "%" and unit.lower() not in _MILLISECONDS:
            raise UserError(f"budget '{text}' has the unknown unit '{unit}'; {_EXAMPLES}")
        amount = number / 100 if unit == "%" else number * _MILLISECONDS[unit.lower()]
        if not (math.isfinite(amount) and amount > 0):
            size = "too large" if amount > 0 else "too small" if number > 0 else "not more than zero"
            raise UserError(f"budget '{text}' is {size}; {_EXAMPLES}")
        if unit == "%" and amount > 1:
            raise UserError(
                f"budget '{text}' is more than the dense network takes (100%), so that nothing would be "
                f"pruned; {_EXAMPLES}"
            )
        return cls(amount, relative=unit == "%")

    def milliseconds(self, dense_ms: float) -> float:
        """The budget in milliseconds for a network whose dense latency is `dense_ms`.

        Raises
        ------
        ValueError
            If `dense_ms` is not positive and finite.
        """
        if not (math.isfinite(dense_ms) and dense_ms > 0):
            raise ValueError(f"dense_ms must be positive and finite, not {dense_ms}")
        return self.amount * dense_ms if self.relative else self.amount

    def __str__(self) -> str:
        return f"{self.amount * 100:.6g}%" if self.relative else f"{self.amount:.6g}ms"


def round_budgets(dense: float, budget: float, rounds: int) -> list[float]:
    """Budgets of successive rounds, from just below `dense` down to exactly `budget`.

    Geometric, so that each round takes the same share of what is left: by the same amount each time, the last
    rounds would cut the deepest into a network that has the least to spare.

    Parameters
    ----------
    dense, budget
        Latency of the unpruned network and the goal, both positive and in the same unit.
    rounds
        How many rounds there are.

    Raises
    ------
    ValueError
        If there are no rounds, a number is not positive and finite, or `budget` is more than `dense`.

    Examples
    --------
    >>> [round(each, 6) for each in round_budgets(16.0, 2.0, 3)]
    [8.0, 4.0, 2.0]
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    if not (0 < budget <= dense < math.inf):
        raise ValueError(f"need 0 < budget <= dense < infinity, not budget {budget} and dense {dense}")
    ratio = budget / dense
    return [*(max(budget, dense * ratio ** (done / rounds)) for done in range(1, rounds)), budget]
