"""The answer that no plan meets the budgets, with what can be reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from aap_hw.device.description import MEASURED
from aap_hw.errors import UserError
from aap_hw.policy import LATENCY, RESOURCES


class Unreachable(UserError):  # noqa: N818 - an answer about the budgets, not a fault
    """No plan meets the budgets.

    Attributes
    ----------
    resource : the name of what there is too little of.
    smallest : the smallest amount of it that a plan reaches, while it keeps the budgets of ``given``.
    """

    def __init__(
        self,
        resource: str,
        budget: float,
        smallest: float,
        dense: float,
        given: tuple[str, ...] = (),
        limits: tuple[str, ...] = (),
        provenance: str = MEASURED,
    ) -> None:
        self.resource, self.smallest, self.given = resource, smallest, given
        unit = f" {RESOURCES[resource].unit}".rstrip() or f" {resource}"
        within = f" within the budget of {' and '.join(given)}" if given else ""
        super().__init__(
            f"no plan reaches {_number(budget)}{unit}: "
            f"the smallest reachable {resource}{within} is {_up(smallest)}{unit} "
            f"{_doubt(resource, provenance)}({_up(100 * smallest / dense)}% of the unpruned network); allow at least "
            + (f"that, or leave out {' '.join(limits)}" if limits else "that")
        )

    @classmethod
    def of(
        cls,
        resource: str,
        smallest: float,
        budgets: Mapping[str, float],
        dense: Mapping[str, float],
        least: Mapping[str, float],
        given: tuple[str, ...],
        limits: tuple[str, ...],
        provenance: str,
    ) -> Unreachable:
        """The answer about some budgets, with the ``least`` that is reachable of each alone, if there are several.

        ``provenance`` is that of the latencies.
        """
        budget = budgets.get(resource, dense[resource])
        found = cls(resource, budget, smallest, dense[resource], given, limits, provenance)
        if least:
            rows = [
                (name, _text(name, budgets[name]), _reached(name, each, dense[name], provenance))
                for name, each in least.items()
            ]
            found.details = _lines([("", "asked for", "smallest reachable alone"), *rows])
        return found


def _text(resource: str, amount: float) -> str:
    return f"{_number(amount)} {RESOURCES[resource].unit}".rstrip()


def _number(amount: float) -> str:
    """To four digits, but whole if it is larger: nobody reads 4.216e+04 bytes."""
    return f"{amount:.4g}" if amount < 1e4 else f"{amount:.0f}"


def _reached(resource: str, smallest: float, dense: float, provenance: str) -> str:
    unit = f" {RESOURCES[resource].unit}".rstrip()
    return (
        f"{_up(smallest)}{unit} {_doubt(resource, provenance)}({_up(100 * smallest / dense)}% of the unpruned network)"
    )


def _doubt(resource: str, provenance: str) -> str:
    """What is said of an amount of latency that nobody measured."""
    return f"{provenance} " if resource == LATENCY.name and provenance != MEASURED else ""


def _lines(rows: Sequence[tuple[str, str, str]]) -> tuple[str, ...]:
    """A table as lines of text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return tuple("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _up(value: float) -> str:
    """Three significant digits, or a whole number, rounded up, so that the figure given can be asked for."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"
