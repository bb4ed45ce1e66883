"""Proves the figures by which a table is judged, against SciPy and against ones that are written down by hand."""

from __future__ import annotations

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.inputs import Inputs
from aap_hw.lut.fidelity import fidelity_of, kendall_tau, table_error
from aap_hw.lut.table import Validation
from tests.lut.tables import empty

INPUT = Inputs.of((3, 8, 8))


def plan(name: str, predicted_us: float, measured_us: float, model: str = "net") -> Validation:
    return Validation(model, INPUT, name, {"a": 8}, predicted_us, measured_us)


def test_errors_are_shares_of_what_was_measured() -> None:
    fidelity = fidelity_of([plan("a", 90, 100), plan("b", 208, 200), plan("c", 300, 300)])
    assert fidelity is not None
    assert (fidelity.plans, fidelity.kendall_tau) == (3, 1.0)
    assert fidelity.mean_pct == pytest.approx((10 + 4 + 0) / 3)
    assert fidelity.worst_pct == pytest.approx(10)
    assert fidelity.sentence() == "table error on 3 random plans: mean 4.7 %, worst 10.0 %"
    assert fidelity.order() == ", Kendall tau 1.000"


def test_one_plan_has_an_error_and_no_order() -> None:
    fidelity = fidelity_of([plan("a", 98, 100)])
    assert fidelity is not None
    assert fidelity.kendall_tau is None
    assert fidelity.sentence() + fidelity.order() == "table error on 1 random plan: mean 2.0 %, worst 2.0 %"


def test_without_plans_nothing_is_said() -> None:
    assert fidelity_of([]) is None


@given(
    st.lists(
        st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)),
        min_size=2,
        max_size=30,
        unique_by=(lambda p: p[0], lambda p: p[1]),
    )
)
def test_kendall_tau_is_that_of_scipy(pairs: list[tuple[float, float]]) -> None:
    one, other = zip(*pairs, strict=True)
    assert kendall_tau(one, other) == pytest.approx(scipy.stats.kendalltau(one, other).statistic)


def test_tied_values_are_in_neither_order() -> None:
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 3)
    assert kendall_tau([1, 2, 3], [3, 1, 1]) == pytest.approx(-2 / 3)


def test_table_is_judged_by_random_plans_of_the_same_network_only() -> None:
    table = empty()
    table.validation += [plan("dense", 50, 100), plan("calibration-0", 50, 100), plan("random-0-0", 99, 100)]
    table.validation += [
        plan("random-0-0", 10, 100, "other"),
        Validation("net", Inputs.of((3, 9, 9)), "random-0-0", {}, 1, 100),
    ]
    error = table_error(table, "net", INPUT)
    assert error is not None
    assert (error.plans, error.worst_pct) == (1, pytest.approx(1.0))
    assert table_error(table, "third", INPUT) is None
