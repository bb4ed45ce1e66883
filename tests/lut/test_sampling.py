"""Proves which points are measured: enough to answer for all others, the same however often measuring is interrupted.

The device is a formula here; that a profile job follows the sampler is proven in ``test_profiling``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.compile.keys.address import Address
from aap_hw.lut.sampling import ALL_OF, next_points
from aap_hw.lut.table import LatencyPoint, LatencyTable
from tests.lut.tables import KEY, empty

Latency = Callable[[int, int], float]
TOLERANCE = 0.05

grids = st.tuples(
    st.lists(st.integers(1, 300), min_size=1, max_size=14, unique=True),
    st.lists(st.integers(1, 300), min_size=1, max_size=5, unique=True),
).map(lambda sides: [Address(KEY, (x, y)) for x, y in product(*sides)])
# Two networks with the same kernel: a union of grids.
wanted_points = st.one_of(grids, st.tuples(grids, grids).map(lambda two: list(dict.fromkeys(two[0] + two[1]))))
noise = st.randoms(use_true_random=False)


def measure_all(
    wanted: list[Address], latency: Latency, table: LatencyTable, tolerance: float = TOLERANCE
) -> list[list[Address]]:
    """Measure into a table until nothing is asked for; the points asked for, call by call."""
    rounds = []
    while asked := ask(wanted, table, tolerance):
        for x, y in (address.widths for address in asked):
            table.add(KEY, LatencyPoint((x, y), latency(x, y), 0.0, 1))
        rounds.append(asked)
        assert len(rounds) < 50, "it never ends"
    return rounds


def ask(wanted: list[Address], table: LatencyTable, tolerance: float = TOLERANCE) -> list[Address]:
    return next_points(wanted, lambda at: table.latency(at).us if at in table else None, tolerance)


def rough(random: Any) -> Latency:
    """Any latency at all, the same each time."""
    known: dict[tuple[int, int], float] = {}
    return lambda x, y: known.setdefault((x, y), random.uniform(0.5, 100))


@given(wanted_points, noise)
def test_every_point_is_measured_or_can_be_interpolated(wanted: list[Address], random: Any) -> None:
    table = empty()
    measure_all(wanted, rough(random), table)
    for address in wanted:
        assert table.latency(address).interpolated == (address not in table)


@given(wanted_points, noise)
def test_nothing_is_asked_for_twice_and_nothing_that_is_not_wanted(wanted: list[Address], random: Any) -> None:
    asked = [point for points in measure_all(wanted, rough(random), empty()) for point in points]
    assert len(asked) == len(set(asked))
    assert set(asked) <= set(wanted)


@given(wanted_points, noise, st.data())
def test_interrupted_search_ends_with_the_same_points(wanted: list[Address], random: Any, data: st.DataObject) -> None:
    latency, at_once, in_pieces = rough(random), empty(), empty()
    measure_all(wanted, latency, at_once)
    # Whatever was asked for is measured in any order, and the search begins anew after any number of points.
    while asked := ask(wanted, in_pieces):
        some = data.draw(st.lists(st.sampled_from(asked), min_size=1, unique=True))
        for x, y in (address.widths for address in some):
            in_pieces.add(KEY, LatencyPoint((x, y), latency(x, y), 0.0, 1))
    assert in_pieces.points == at_once.points


@given(wanted_points, st.tuples(*[st.floats(0.1, 10)] * 3), st.sampled_from([8, 16]))
def test_straight_lines_cost_three_points_each_and_are_reproduced(
    wanted: list[Address], factors: tuple[float, float, float], step: int
) -> None:
    """Linear in the input width, any staircase along the output width."""
    a, b, c = factors

    def latency(x: int, y: int) -> float:
        return a + (b + c * x) * -(-y // step)

    table = empty()
    measure_all(wanted, latency, table)
    for address in wanted:
        assert table.latency(address).us == pytest.approx(latency(*address.widths), rel=1e-9)
    for y in {address.width_out for address in wanted}:
        assert sum(out == y for _, out in table.points[KEY]) <= 3


@given(st.integers(3, 60), st.integers(1, 59), st.floats(0.2, 5.0), st.floats(0.2, 5.0))
def test_line_with_one_bend_is_reproduced_within_three_tolerances(
    count: int, bend: int, before: float, after: float
) -> None:
    widths = [8 * i for i in range(1, count + 1)]
    at = 8 * min(bend, count)

    def latency(x: int, _: int = 16) -> float:
        return 5 + before * min(x, at) + after * max(0, x - at)

    table = empty()
    measure_all([Address(KEY, (x, 16)) for x in widths], latency, table)
    measured = sorted(x for x, _ in table.points[KEY])
    for x in widths:
        # The middle of a span divides it at worst one to two, where a bend beyond it is three times what shows there.
        above = min(known for known in measured if known >= x)
        assert abs(table.latency(Address(KEY, (x, 16))).us - latency(x)) <= 3 * TOLERANCE * latency(above) * (1 + 1e-9)
    # Those at the ends, and those on the way to the bend.
    assert len(measured) <= 3 + 3 * count.bit_length()


def test_points_gather_where_the_line_bends() -> None:
    table = empty()
    wanted = [Address(KEY, (x, 8)) for x in range(8, 8 * 65, 8)]
    measure_all(wanted, lambda x, _: x + 20 * max(0, x - 400), table)
    measured = [x for x, _ in table.points[KEY]]
    below, above = sum(x < 200 for x in measured), sum(x >= 200 for x in measured)
    assert below == 2
    assert 2 * below < above < 14


def test_with_no_tolerance_everything_is_measured() -> None:
    table = empty()
    wanted = [Address(KEY, (x, y)) for x, y in product(range(1, 14), (8, 16))]
    measure_all(wanted, lambda x, y: 1.0 + x**1.01 * y, table, tolerance=0.0)
    assert len(table) == len(wanted)


def test_points_of_another_network_are_used() -> None:
    table = empty()
    first = [Address(KEY, (x, 16)) for x in range(8, 100, 8)]
    measure_all(first, lambda x, _: 2.0 * x, table)
    assert ask(first, table) == []
    (again,) = measure_all([Address(KEY, (x, 16)) for x in range(8, 200, 8)], lambda x, _: 2.0 * x, table)
    assert [address.width_in for address in again] == [192]


def test_kernel_with_one_width_is_measured_everywhere_unless_it_has_the_many_sums_of_a_concatenation() -> None:
    def linear(x: int, _: int) -> float:
        return 3.0 + 0.1 * x

    few, many = ([Address(KEY, (8 * i, 8 * i)) for i in range(1, count + 1)] for count in (ALL_OF, 4 * ALL_OF))
    for wanted, measured in ((few, ALL_OF), (many, 3)):
        table = empty()
        measure_all(wanted, linear, table)
        assert len(table) == measured
        assert all(table.latency(at).us == pytest.approx(linear(*at.widths)) for at in wanted)
