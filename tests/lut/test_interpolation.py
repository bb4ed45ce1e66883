"""Proves what a table answers between, below and beyond its measured widths.

Exact where it was measured; between neighbours no more and no less than they; a bilinear function exactly; the
smallest below the smallest; and beyond the largest an error that names the kernel and the device, never a guess.
"""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.lut.table import LatencyTable, MissingKernelError
from tests.lut.tables import KEY, empty, of_formula

widths = st.lists(st.integers(1, 200), min_size=2, max_size=6, unique=True).map(sorted)
us = st.floats(0.1, 1e4)


def measured_us(table: LatencyTable) -> dict[tuple[int, int], float]:
    return {at: point.latency_us for at, point in table.points[KEY].items()}


@st.composite
def grids(draw: st.DrawFn) -> tuple[list[int], list[int], LatencyTable]:
    rows, columns = draw(widths), draw(widths)
    values = {at: draw(us) for at in product(rows, columns)}
    return rows, columns, of_formula(values, lambda x, y: values[x, y])


@given(grids())
def test_measured_point_is_answered_as_measured(grid: tuple[list[int], list[int], LatencyTable]) -> None:
    _, _, table = grid
    for (x, y), value in measured_us(table).items():
        found = table.latency(Address(KEY, (x, y)))
        assert (found.us, found.interpolated) == (value, False)


@given(grids(), st.data())
def test_between_neighbours_the_answer_is_within_their_values(
    grid: tuple[list[int], list[int], LatencyTable], data: st.DataObject
) -> None:
    rows, columns, table = grid
    x = data.draw(st.integers(rows[0], rows[-1]))
    y = data.draw(st.integers(columns[0], columns[-1]))

    def neighbours(known: list[int], at: int) -> set[int]:
        return {max(w for w in known if w <= at), min(w for w in known if w >= at)}

    corners = [measured_us(table)[at] for at in product(neighbours(rows, x), neighbours(columns, y))]
    found = table.latency(Address(KEY, (x, y)))
    assert min(corners) * (1 - 1e-9) <= found.us <= max(corners) * (1 + 1e-9)
    assert found.interpolated == ((x, y) not in measured_us(table))


@given(widths, widths, st.tuples(us, us, us, us), st.data())
def test_bilinear_function_is_reproduced(
    rows: list[int], columns: list[int], factors: tuple[float, float, float, float], data: st.DataObject
) -> None:
    a, b, c, d = factors

    def formula(x: int, y: int) -> float:
        return a + b * x + c * y + d * x * y

    table = of_formula(product(rows, columns), formula)
    x = data.draw(st.integers(rows[0], rows[-1]))
    y = data.draw(st.integers(columns[0], columns[-1]))
    assert table.latency(Address(KEY, (x, y))).us == pytest.approx(formula(x, y), rel=1e-9)


@given(grids(), st.data())
def test_below_the_smallest_the_answer_is_that_of_the_smallest(
    grid: tuple[list[int], list[int], LatencyTable], data: st.DataObject
) -> None:
    rows, columns, table = grid
    x, y = data.draw(st.integers(1, rows[0])), data.draw(st.integers(1, columns[0]))
    assert table.latency(Address(KEY, (x, y))).us == measured_us(table)[rows[0], columns[0]]
    inside = data.draw(st.integers(columns[0], columns[-1]))
    assert table.latency(Address(KEY, (x, inside))).us == pytest.approx(
        table.latency(Address(KEY, (rows[0], inside))).us
    )


@given(grids(), st.data())
def test_beyond_the_largest_is_an_error_that_names_kernel_and_device(
    grid: tuple[list[int], list[int], LatencyTable], data: st.DataObject
) -> None:
    rows, columns, table = grid
    x, y = data.draw(
        st.one_of(
            st.tuples(st.integers(rows[-1] + 1, 400), st.integers(1, 400)),
            st.tuples(st.integers(1, 400), st.integers(columns[-1] + 1, 400)),
        )
    )
    with pytest.raises(MissingKernelError) as missing:
        table.latency(Address(KEY, (x, y)))
    assert str(KEY) in str(missing.value)
    assert "board-1" in str(missing.value)
    assert f"{x} -> {y}" in str(missing.value)


@given(st.dictionaries(st.tuples(st.integers(1, 12), st.integers(1, 12)), us, min_size=1, max_size=25), st.data())
def test_with_scattered_points_the_answer_is_within_all_values_or_an_error(
    values: dict[tuple[int, int], float], data: st.DataObject
) -> None:
    table = of_formula(values, lambda x, y: values[x, y])
    x, y = data.draw(st.integers(1, 13)), data.draw(st.integers(1, 13))
    beyond = x > max(w for w, _ in values) or y > max(w for _, w in values)
    try:
        found = table.latency(Address(KEY, (x, y))).us
    except MissingKernelError:
        assert (x, y) not in values
    else:
        assert not beyond
        assert min(values.values()) * (1 - 1e-9) <= found <= max(values.values()) * (1 + 1e-9)


@pytest.mark.parametrize("out", [lambda x: x, lambda x: 10, lambda x: x + 16, lambda x: 49 * x])
def test_kernel_of_one_free_width_is_answered_along_its_line(out: object) -> None:
    assert callable(out)
    table = of_formula([(w, out(w)) for w in (8, 16, 40)], lambda x, _: 3.0 + 2 * x)
    assert table.latency(Address(KEY, (16, out(16)))).us == 35.0
    assert table.latency(Address(KEY, (12, out(12)))).us == pytest.approx(27.0)
    assert table.latency(Address(KEY, (39, out(39)))).us == pytest.approx(81.0)
    assert table.latency(Address(KEY, (3, out(3)))).us == 19.0
    for x, y in ((41, out(41)), (12, out(40) + 30), (3, out(8) + 1)):
        with pytest.raises(MissingKernelError):
            table.latency(Address(KEY, (x, y)))


def test_kernel_that_reads_the_image_is_answered_along_its_outputs() -> None:
    table = of_formula([(3, y) for y in (8, 16, 32)], lambda _, y: 5.0 + y)
    assert table.latency(Address(KEY, (3, 20))).us == pytest.approx(25.0)
    assert table.latency(Address(KEY, (3, 4))).us == 13.0
    for x, y in ((3, 33), (4, 16)):
        with pytest.raises(MissingKernelError):
            table.latency(Address(KEY, (x, y)))


def test_grids_of_two_networks_are_used_together() -> None:
    table = of_formula([*product((8, 16), (8, 16)), *product((12, 24), (24, 48))], lambda x, y: 1.0 * x * y)
    assert table.latency(Address(KEY, (12, 12))).us == pytest.approx(144)
    assert table.latency(Address(KEY, (18, 30))).us == pytest.approx(540)
    with pytest.raises(MissingKernelError):
        table.latency(Address(KEY, (30, 12)))


def test_kernel_that_was_not_measured_is_an_error_that_says_how_to_measure_it() -> None:
    other = KernelKey.make("relu", (7, 7), 1)
    for table in (empty(), of_formula([(8, 8)], lambda *_: 1.0)):
        with pytest.raises(MissingKernelError, match=r"of board-1 has no kernel 'relu 7x7 .*aap-hw profile --device"):
            table.latency(Address(other, (8, 8)))
