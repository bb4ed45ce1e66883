"""Which points of a kernel are worth measuring, when the table answers for those between them.

For a fixed output width the schedule is fixed and the input width is how often its loop runs: latency is close to a
straight line, which bends where a cache overflows. Along the output width it is a staircase of registers. So every
candidate output width is measured, each at few input widths: the ends, the middle, and more where the middle is not
where the ends said. A kernel with one width, as a pooling layer has, is measured at each of them, unless these are the
many sums of a concatenation. Pure: what was measured goes in, what to measure next comes out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey

# Share of itself by which a latency may differ from the straight line between its neighbours. Below what two timings
# of one point differ by, every point would be measured.
TOLERANCE = 0.05
# More widths than this of a kernel with one width are taken as its input widths are.
ALL_OF = 32

Measured = Callable[[Address], float | None]
"""Latency of a point, in any unit that is the same for all points of one kernel; None if it was not measured."""


def next_points(wanted: Iterable[Address], measured: Measured, tolerance: float) -> list[Address]:
    """The points to measure next, so that the others among those wanted can be interpolated; none when that is done.

    The answer depends on the latencies of points that this function asked for and on nothing else: in whatever
    order they were measured, and however often that was interrupted, the same points are measured in the end.

    Parameters
    ----------
    wanted
        Points that a network may need.
    tolerance
        By what share of itself a latency may differ from the straight line between its neighbours.
    """
    found: list[Address] = []
    for column in _columns(wanted):
        by_width = {address.width_in: address for address in column}
        us = {width: measured(address) for width, address in by_width.items()}
        found += [by_width[width] for width in _next_widths(sorted(by_width), us, tolerance)]
    return found


def _columns(wanted: Iterable[Address]) -> Iterator[list[Address]]:
    """Points of a kernel that differ in their input width alone, or lie on a line: latency is a function of it."""
    kernels: dict[KernelKey, dict[tuple[int, ...], dict[Address, None]]] = defaultdict(lambda: defaultdict(dict))
    for address in wanted:
        kernels[address.key][address.widths[1:]][address] = None
    for columns in kernels.values():
        points = [address for column in columns.values() for address in column]
        is_line = len({address.width_in for address in points}) == len(points)
        if is_line and len(points) > ALL_OF:
            yield points
        else:
            yield from map(list, columns.values())


def _next_widths(widths: Sequence[int], us: Mapping[int, float | None], tolerance: float) -> Iterator[int]:
    ends = sorted({widths[0], widths[-1]})
    missing = [width for width in ends if us[width] is None]
    middle = widths[(len(widths) - 1) // 2]
    # The first middle is measured in any case, so it need not wait for the ends.
    if len(widths) > 2 and us[middle] is None:
        missing.append(middle)
    if missing:
        yield from sorted(missing)
    else:
        yield from _between(widths, us, tolerance)


def _between(widths: Sequence[int], us: Mapping[int, float | None], tolerance: float) -> Iterator[int]:
    """What is still needed between the ends of a span of widths, both of which are measured."""
    if len(widths) < 3:
        return
    at = (len(widths) - 1) // 2
    low, middle, high = widths[0], widths[at], widths[-1]
    at_low, value, at_high = us[low], us[middle], us[high]
    if at_low is None or value is None or at_high is None:
        yield middle
        return
    expected = at_low + (at_high - at_low) * (middle - low) / (high - low)
    if abs(expected - value) > tolerance * value:
        yield from _between(widths[: at + 1], us, tolerance)
        yield from _between(widths[at:], us, tolerance)
