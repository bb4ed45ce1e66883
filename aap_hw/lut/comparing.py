"""Two tables against each other: where they know the same points, by how much they differ. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aap_hw.compile.keys.address import Address
from aap_hw.lut.table import LatencyTable

# Facts of a device that say when and where a table was made, not what its latencies depend on.
INCIDENTAL = ("date", "host")


@dataclass(frozen=True)
class SharedPoint:
    """A point of both tables, in µs."""

    address: Address
    first_us: float
    second_us: float

    @property
    def ratio(self) -> float:
        """The second latency over the first."""
        return self.second_us / self.first_us


@dataclass(frozen=True)
class Comparison:
    """What two tables share and what not.

    Attributes
    ----------
    facts : what differs between devices and ways of measuring: name, the first's and the second's.
    shared : points of both, in the order of the first table.
    only_first, only_second : how many points only one of them has.
    """

    facts: tuple[tuple[str, Any, Any], ...]
    shared: tuple[SharedPoint, ...]
    only_first: int
    only_second: int

    def quantiles(self) -> dict[str, float]:
        """Ratio of second to first: median, and what 5 and 95 % of the points lie below; none without shared points."""
        if not self.shared:
            return {}
        low, middle, high = np.quantile([point.ratio for point in self.shared], [0.05, 0.5, 0.95])
        return {"p5": float(low), "median": float(middle), "p95": float(high)}

    def farthest(self, count: int) -> list[SharedPoint]:
        """The points that differ the most, as factors."""
        return sorted(self.shared, key=lambda point: -abs(np.log(point.ratio)))[:count]


def compare(first: LatencyTable, second: LatencyTable) -> Comparison:
    """Compare two tables, of one device or of two."""
    facts = []
    for kind in ("device", "measurement"):
        ours, theirs = getattr(first, kind), getattr(second, kind)
        facts += [
            (name, ours.get(name), theirs.get(name))
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
    shared = tuple(
        SharedPoint(Address(key, widths), point.latency_us, second.points[key][widths].latency_us)
        for key, points in first.points.items()
        for widths, point in points.items()
        if widths in second.points.get(key, {})
    )
    return Comparison(tuple(facts), shared, len(first) - len(shared), len(second) - len(shared))
