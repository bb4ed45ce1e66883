"""How often a point is timed: again and again, with other work in between, until its quickest visits agree.

What disturbs a device only ever adds to a latency, and often for seconds: neighbours in a cache that is shared, a
process that wakes up. A reference that is timed between all visits says how fast the device is just then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Point = TypeVar("Point")
Time = TypeVar("Time")

# A point is settled when its two quickest visits agree to this share of the quickest, or after the last visit.
AGREEMENT = 0.03
VISITS = 8


def visit_in_turn(
    points: Sequence[Point],
    time: Callable[[Point], Time],
    reference_us: Callable[[], float],
    ratios: Callable[[Point], Sequence[float]],
    record: Callable[[Point, Time, float], None],
    most: int = VISITS,
) -> None:
    """Visit points in turn until each is settled.

    Parameters
    ----------
    ratios
        The latencies of all visits of a point so far, in units of the reference's: a slower clock slows both.
    record
        Is given a point, its new time, and the reference's latency around it in µs.
    most
        How many visits a point has at most.
    """
    before = reference_us()
    while left := [point for point in points if not is_settled(ratios(point), most)]:
        for point in left:
            timed = time(point)
            after = reference_us()
            record(point, timed, (before + after) / 2)
            before = after


def is_settled(ratios: Sequence[float], most: int = VISITS) -> bool:
    """Whether a point with these visits needs no other one."""
    quickest = sorted(ratios)[:2]
    return len(ratios) >= most or (len(quickest) == 2 and quickest[1] <= quickest[0] * (1 + AGREEMENT))
