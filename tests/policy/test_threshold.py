"""The paper's rule cuts exactly the channels it says, widths are snapped upwards, and a budget gets the lowest T.

Expected widths are counted by hand or by a loop over channels, with shares worked out beside the test.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.policy import (
    GroupChoice,
    Infeasible,
    KernelCost,
    Problem,
    allocate,
    allocate_at_threshold,
    allocate_by_threshold,
    kept_share,
    lowest_threshold,
)
from aap_hw.policy.threshold import group_shares

# Two groups of 4 and 2 channels; a kernel of one each and one between them, and 10 that no choice changes.
A, B = (1, 2, 3, 4), (1, 2)
COSTS = [
    KernelCost(("a",), np.array([5.0, 10, 15, 20])),
    KernelCost(("a", "b"), np.outer(A, B) * 5.0),
    KernelCost(("b",), np.array([15.0, 30])),
    KernelCost((), np.array(10.0)),
]
SCORES = {"a": np.array([4.0, 1.0, 3.0, 2.0]), "b": np.array([0.7, 0.1])}


def problem(scores=SCORES, a=A, b=B):
    choices = [
        GroupChoice(name, widths, np.log(kept_share(scores[name], widths))) for name, widths in (("a", a), ("b", b))
    ]
    return Problem(choices, {"latency": COSTS})


def test_a_groups_share_is_its_kernels_cost_and_half_of_those_it_shares():
    # 20 + 40 / 2 = 40 of a, 30 + 40 / 2 = 50 of b, of 100.
    assert group_shares(problem(), "latency") == pytest.approx([0.4, 0.5])


@pytest.mark.parametrize(
    ("threshold", "widths"),
    [
        (0.0, {"a": 4, "b": 2}),
        (0.19, {"a": 4, "b": 2}),
        (0.2, {"a": 4, "b": 1}),  # 0.1 <= 0.2 * 0.5
        (2.5, {"a": 3, "b": 1}),  # 1 <= 2.5 * 0.4
        (5.1, {"a": 2, "b": 1}),
        (1e9, {"a": 1, "b": 1}),  # a group keeps its narrowest width
    ],
)
def test_a_channel_goes_if_its_attention_is_at_most_t_times_the_share(threshold, widths):
    found = allocate_at_threshold(problem(), SCORES, "latency", threshold)
    assert found.widths == widths
    assert found.gap is None


def test_widths_are_snapped_to_the_narrowest_candidate_that_holds_all_that_is_kept():
    snapped = Problem(
        [GroupChoice("a", (2, 4), np.zeros(2)), GroupChoice("b", (2,), np.zeros(1))],
        {"latency": [KernelCost(("a",), np.array([1.0, 2.0]))]},
    )
    assert allocate_at_threshold(snapped, SCORES, "latency", 1.0).widths == {"a": 4, "b": 2}
    assert allocate_at_threshold(snapped, SCORES, "latency", 2.0).widths == {"a": 2, "b": 2}


def test_a_group_is_never_removed_by_the_rule():
    removable = Problem(
        [GroupChoice("a", (0, 2, 4), np.zeros(3))], {"latency": [KernelCost(("a",), np.array([0.0, 1, 2]))]}
    )
    assert allocate_at_threshold(removable, SCORES, "latency", 1e9).widths == {"a": 2}


def test_the_lowest_threshold_is_the_first_that_narrows_something():
    lowest = lowest_threshold(problem(), SCORES, "latency")
    assert lowest == pytest.approx(0.2)
    assert allocate_at_threshold(problem(), SCORES, "latency", lowest).widths == {"a": 4, "b": 1}
    before = allocate_at_threshold(problem(), SCORES, "latency", math.nextafter(lowest, 0))
    assert before.widths == {"a": 4, "b": 2}


@given(st.integers(0, 10**6), st.floats(0.3, 1.2))
def test_a_budget_gets_the_lowest_threshold_that_keeps_it_and_never_more_value_than_the_best_plan(seed, share):
    rng = np.random.default_rng(seed)
    scores = {"a": rng.random(4), "b": rng.random(2)}
    here = problem(scores)
    budget = 100 * share
    shares = group_shares(here, "latency")
    tried = np.concatenate([[0.0], scores["a"] / shares[0], scores["b"] / shares[1]])
    plans = [allocate_at_threshold(here, scores, "latency", t) for t in sorted(tried)]
    fitting = [plan for plan in plans if plan.spent["latency"] <= budget]
    if not fitting:
        with pytest.raises(Infeasible) as refused:
            allocate_by_threshold(here, scores, "latency", {"latency": budget})
        assert refused.value.smallest == plans[-1].spent["latency"]
        return
    found = allocate_by_threshold(here, scores, "latency", {"latency": budget})
    assert found.widths == fitting[0].widths
    assert found.spent["latency"] <= budget
    assert found.value <= allocate(here, {"latency": budget}, relative_gap=0).value + 1e-9


def test_what_costs_nothing_stays():
    free = Problem(
        [GroupChoice("a", A, np.zeros(4)), GroupChoice("b", B, np.zeros(2))],
        {"latency": [KernelCost(("a",), np.array([5.0, 10, 15, 20]))]},
    )
    assert allocate_at_threshold(free, SCORES, "latency", 1e9).widths == {"a": 1, "b": 2}
