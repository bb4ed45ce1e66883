"""Budgets are read as they are meant, refused in a sentence that says what to type, and approached evenly."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.errors import UserError
from aap_hw.policy import MEMORY, RESOURCES, Budget, round_budgets

DENSE_MS = 40.0
NOT_POSITIVE = ("0", "0ms", "0%", "-0.0", "-3", "-3ms", "-5%", "0e5ms", "-1e-999ms", "-1e999s")


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("20ms", 20),
        ("20 ms", 20),
        (" 20MS ", 20),
        ("0.02s", 20),
        ("2e-2s", 20),
        (".5ms", 0.5),
        ("5.ms", 5),
        ("+7ms", 7),
        ("800us", 0.8),
        ("800\N{MICRO SIGN}s", 0.8),
        ("55%", 22),
        ("55 %", 22),
        ("12.5%", 5),
        ("100%", 40),
        ("60ms", 60),
    ],
)
def test_a_budget_means_what_it_says(text, expected_ms):
    assert Budget.parse(text).of(DENSE_MS) == pytest.approx(expected_ms, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("20", "no unit; type '20ms'"),
        ("0.5", "no unit; type '0.5ms'"),
        *((text, f"must be more than zero, not '{re.escape(text)}'; type for example '20ms'") for text in NOT_POSITIVE),
        ("101%", r"more than the unpruned network takes \(100%\)"),
        ("20min", "unknown unit 'min'"),
        ("20 fps", "unknown unit 'fps'"),
        ("20ms or so", "unknown unit"),
        ("1e999ms", "too large"),
        ("1e999", "too large"),
        ("1e-999ms", "too small"),
        ("1e-999", "too small"),
        ("0,5ms", "decimal sign is a point"),
        ("60%,70%", "several budgets; type one, such as '60%'"),
        ("nanms", "not a number with a unit"),
        ("inf%", "not a number with a unit"),
        ("ms", "not a number with a unit"),
        ("", "not a number with a unit"),
        ("20ms30", "not a number with a unit"),
        ("--20ms", "not a number with a unit"),
    ],
)
def test_a_budget_that_cannot_be_meant_is_refused_with_what_to_type(text, complaint):
    with pytest.raises(UserError, match=complaint) as refusal:
        Budget.parse(text)
    sentence = str(refusal.value)
    assert "type " in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("amount", [0.0, -1.0, math.nan, math.inf, 40.0])
def test_share_that_cannot_be_meant_is_refused(amount):
    with pytest.raises(UserError, match=r"must be positive and finite|give a share of at most 1"):
        Budget(amount, relative=True)


@given(st.text(max_size=12))
def test_any_text_is_a_positive_budget_or_a_user_error(text):
    try:
        budget = Budget.parse(text)
    except UserError:
        return
    assert 0 < budget.of(DENSE_MS) < math.inf


@given(st.floats(1e-3, 1e6), st.booleans())
def test_a_written_budget_reads_back(amount, relative):
    budget = Budget(min(amount / 1e6, 1.0) if relative else amount, relative)
    again = Budget.parse(str(budget))
    assert again.relative == relative
    assert again.amount == pytest.approx(budget.amount, rel=1e-5)


@pytest.mark.parametrize("dense_ms", [0.0, -1.0, math.nan, math.inf])
def test_a_share_of_no_latency_is_refused(dense_ms):
    with pytest.raises(ValueError, match="the unpruned network's latency must be positive"):
        Budget.parse("55%").of(dense_ms)


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1), st.integers(1, 50))
def test_rounds_take_equal_shares_and_end_at_exactly_the_budget(dense, share, rounds):
    budget = dense * share
    budgets = round_budgets(dense, budget, rounds)
    assert len(budgets) == rounds
    assert budgets[-1] == budget
    assert all(budget <= each <= dense * (1 + 1e-12) for each in budgets)
    for before, after in zip([dense, *budgets], budgets, strict=False):
        assert after / before == pytest.approx((budget / dense) ** (1 / rounds), rel=1e-6)


@pytest.mark.parametrize("bad", [(10, 11, 3), (10, 0, 3), (10, -1, 3), (math.inf, 5, 3), (10, 5, 0)])
def test_rounds_that_lead_nowhere_are_refused(bad):
    with pytest.raises(ValueError, match=r"rounds|budget"):
        round_budgets(*bad)


@pytest.mark.parametrize(
    ("text", "expected_bytes"), [("5MB", 5e6), ("800 kB", 8e5), ("2MiB", 2**21), ("4096B", 4096), ("40%", 4e6)]
)
def test_a_memory_budget_is_of_bytes(text, expected_bytes):
    assert Budget.parse(text, MEMORY).of(1e7) == expected_bytes
    assert Budget.parse(str(Budget.parse(text, MEMORY)), MEMORY) == Budget.parse(text, MEMORY)


def test_a_memory_budget_without_a_unit_is_told_one():
    with pytest.raises(
        UserError, match=r"no unit; type '5MB' for megabytes, or a share of the unpruned network's memory"
    ):
        Budget.parse("5", MEMORY)


@pytest.mark.parametrize("resource", RESOURCES.values(), ids=RESOURCES)
@pytest.mark.parametrize("text", ["0", "-7", "0%", "1e400", "-1e400"])
def test_what_a_refusal_says_to_type_is_taken(text, resource):
    with pytest.raises(UserError, match=r"must be more than zero|too large") as refusal:
        Budget.parse(text, resource)
    typed = re.findall(r"'([^']+)'", str(refusal.value).partition("; type ")[2])
    assert len(typed) == 3
    assert all(Budget.parse(each, resource).amount > 0 for each in typed)


def test_additive_rounds_take_equal_amounts_and_end_at_exactly_the_budget():
    budgets = round_budgets(40.0, 10.0, 3, "additive")
    assert budgets == [30.0, 20.0, 10.0]
    assert round_budgets(40.0, 10.0, 1, "additive") == [10.0]
    with pytest.raises(ValueError, match="no schedule 'linear', only geometric and additive"):
        round_budgets(40.0, 10.0, 3, "linear")
