"""What a table still lacks of a network, given the points that are on their way into it."""

from __future__ import annotations

from collections.abc import Sequence

from aap_hw.compile.keys.address import Address
from aap_hw.lut.journal import Journal
from aap_hw.lut.sampling import next_points
from aap_hw.lut.table import LatencyTable


class Search:
    """What is still to be measured, given a table and a journal of points that are on their way into it.

    Attributes
    ----------
    kept : how many of the points wanted were there before.
    """

    def __init__(self, wanted: Sequence[Address], table: LatencyTable, journal: Journal, tolerance: float) -> None:
        self._wanted, self._tolerance = wanted, tolerance
        self.table, self.journal = table, journal
        # Without a table to agree with, only ratios matter, and any unit will do.
        self._normal_us = float(table.measurement.get("reference_us", 1.0))
        self._journalled: dict[Address, float] = {}
        self._taken_up = 0
        known = {Address(key, point.widths) for key, point, *_ in journal.entries}
        self.kept = sum(address in known or address in table for address in wanted)

    def next(self) -> list[Address]:
        """The points to measure next; none when all others can be interpolated."""
        for key, point, reference_us, _ in self.journal.entries[self._taken_up :]:
            at = Address(key, point.widths)
            us = point.latency_us * self._normal_us / reference_us
            self._journalled[at] = min(us, self._journalled.get(at, us))
        self._taken_up = len(self.journal.entries)
        return next_points(self._wanted, self._known_us, self._tolerance)

    def _known_us(self, address: Address) -> float | None:
        if (us := self._journalled.get(address)) is not None:
            return us
        point = self.table.point(address)
        return None if point is None else point.latency_us
