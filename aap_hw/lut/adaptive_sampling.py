"""Which points of a network to measure next, given its table and the points that are on their way into it.

The rule is that of ``aap_hw.lut.sampling``; here are the table and the journal that it is asked with.
"""

from __future__ import annotations

from collections.abc import Sequence

from aap_hw.compile.keys.address import Address
from aap_hw.device.visiting import VISITS, is_settled
from aap_hw.lut.gathering import settled
from aap_hw.lut.journal import Entry, Journal
from aap_hw.lut.sampling import next_points
from aap_hw.lut.table import LatencyTable


class AdaptiveSampling:
    """What is still to be measured, given a table and a journal of points that are on their way into it.

    Attributes
    ----------
    kept : how many of the points wanted were there before.
    most : how many visits a point has at most.
    """

    def __init__(
        self,
        wanted: Sequence[Address],
        table: LatencyTable,
        journal: Journal,
        tolerance: float,
        most: int = VISITS,
    ) -> None:
        self._wanted, self._tolerance = wanted, tolerance
        self.table, self.journal, self.most = table, journal, most
        # Without a table to agree with, only ratios matter, and any unit will do.
        self._normal_us = float(table.measurement.get("reference_us", 1.0))
        self._ratios: dict[Address, list[float]] = {}
        self._taken_up = 0
        known = {entry.address for entry in self.settled()}
        self.kept = sum(address in known or address in table for address in wanted)

    def next(self) -> list[Address]:
        """The points to measure next; none when all others can be interpolated."""
        for entry in self.journal.entries[self._taken_up :]:
            self._ratios.setdefault(entry.address, []).append(entry.ratio)
        self._taken_up = len(self.journal.entries)
        return next_points(self._wanted, self._known_us, self._tolerance)

    def settled(self) -> list[Entry]:
        """The journal's visits of points that need no other one: what goes into the table."""
        return settled(self.journal.entries, self.most)

    def _known_us(self, address: Address) -> float | None:
        ratios = self._ratios.get(address, ())
        if is_settled(ratios, self.most):
            return min(ratios) * self._normal_us
        point = self.table.point(address)
        return None if point is None else point.latency_us
