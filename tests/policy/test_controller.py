"""Every branch of the paper's controller, against traces written by hand from its published control flow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.policy.controller import MOST_FAILURES, Controller


def trace(step: float, outcomes: str) -> list[tuple[float, int]]:
    """Severity of each round and the round it starts from; ``+`` met the objective, ``-`` did not."""
    controller, rows = Controller.begin(step), []
    for number, outcome in enumerate(outcomes, start=1):
        rows.append((controller.severity, controller.start))
        controller = controller.after(number, outcome == "+")
    return [*rows, (controller.severity, controller.start)]


def test_every_good_round_is_followed_by_a_harder_one_that_starts_from_it() -> None:
    assert trace(1.0, "+++") == [(1, 0), (2, 1), (3, 2), (4, 3)]


def test_a_failure_rolls_back_to_the_last_good_round_and_halves_the_step() -> None:
    assert trace(1.0, "+-") == [(1, 0), (2, 1), (1.5, 1)]


def test_a_second_failure_takes_a_quarter_of_the_good_rounds_step() -> None:
    assert trace(1.0, "+--") == [(1, 0), (2, 1), (1.5, 1), (1.25, 1)]


def test_success_after_a_failure_goes_on_with_the_smaller_step() -> None:
    assert trace(1.0, "+-+") == [(1, 0), (2, 1), (1.5, 1), (2.0, 3)]
    assert trace(1.0, "+-+-") == [(1, 0), (2, 1), (1.5, 1), (2.0, 3), (1.75, 3)]


def test_third_failure_tries_the_good_rounds_severity_again_and_relies_on_the_round_before_it() -> None:
    until_then = [(1, 0), (2, 1), (3, 2), (2.5, 2), (2.25, 2)]
    assert trace(1.0, "++---") == [*until_then, (2, 2)]
    assert trace(1.0, "++---+") == [*until_then, (2, 2), (2.125, 6)]
    assert trace(1.0, "++----") == [*until_then, (2, 2), (1.5, 1)]
    assert trace(1.0, "++-----") == [*until_then, (2, 2), (1.5, 1), (1.25, 1)]


def test_unpruned_network_is_never_given_up() -> None:
    assert trace(1.0, "---") == [(1, 0), (0.5, 0), (0.25, 0), (0.125, 0)]
    assert trace(1.0, "----") == [(1, 0), (0.5, 0), (0.25, 0), (0.125, 0), (0.0625, 0)]


@given(st.text("+-", max_size=40), st.floats(0.01, 10))
def test_next_round_always_starts_from_a_good_one_and_prunes(outcomes: str, step: float) -> None:
    controller = Controller.begin(step)
    good = {0: 0.0}
    for number, outcome in enumerate(outcomes, start=1):
        assert controller.start in good
        assert controller.good[0].number == 0
        assert controller.severity > 0
        assert controller.failures < MOST_FAILURES
        assert controller.step <= step
        if outcome == "+":
            good[number] = controller.severity
        controller = controller.after(number, outcome == "+")


@given(st.floats(0.1, 5))
def test_largest_severity_that_meets_the_objective_is_approached(limit: float) -> None:
    controller, best = Controller.begin(1.0), 0.0
    for number in range(1, 60):
        met = controller.severity <= limit
        best = max(best, controller.severity) if met else best
        controller = controller.after(number, met)
    assert 0.8 * limit <= best <= limit


def test_a_round_that_would_prune_nothing_is_stepped_over() -> None:
    controller = Controller.begin(1.0).after(1, met=True)
    assert (controller.harder().severity, controller.harder().start) == (3.0, 1)
    assert controller.harder().after(2, met=False).severity == 1.5


def test_step_must_be_positive() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Controller.begin(0.0)
