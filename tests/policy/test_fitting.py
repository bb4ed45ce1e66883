"""A plan that is asked for until what it takes fits: tables may add up to more than that, or to less.

What plans take is made up per plan, beside the tables: a share of what these add up to that differs from plan to plan.
"""

import contextlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.policy import GroupChoice, Infeasible, KernelCost, Problem, allocate, allocate_to_fit

GAP = 1e-9


class Instance:
    """Groups in a row, kernels between them, and what a plan takes by its widths."""

    def __init__(self, seed: int, shares: tuple[float, float]) -> None:
        draw = np.random.default_rng(seed)
        sizes = draw.integers(2, 5, size=3)
        self.choices = [
            GroupChoice(f"g{i}", tuple(range(1, n + 1)), np.sort(-draw.random(n))) for i, n in enumerate(sizes)
        ]
        self.costs = [
            KernelCost((f"g{i}", f"g{i + 1}"), np.sort(1 + draw.random((a, b)), axis=None).reshape(a, b))
            for i, (a, b) in enumerate(itertools.pairwise(sizes))
        ]
        self.share = draw.uniform(*shares, size=tuple(sizes))

    def problem(self) -> Problem:
        return Problem(self.choices, {"latency": self.costs})

    def takes(self, widths: dict) -> float:
        at = [widths[choice.name] - 1 for choice in self.choices]
        tables = math.fsum(float(cost.cost[at[i], at[i + 1]]) for i, cost in enumerate(self.costs))
        return tables * float(self.share[tuple(at)])

    def all_taken(self) -> list:
        widths = itertools.product(*(choice.widths for choice in self.choices))
        names = [choice.name for choice in self.choices]
        return sorted(self.takes(dict(zip(names, each, strict=True))) for each in widths)

    def ask(self, budget: float):
        return allocate_to_fit(
            self.problem(), {"latency": budget}, lambda found: {"latency": self.takes(found.widths)}, relative_gap=GAP
        )

    def reached(self, budget: float):
        """A budget and its plan; if it is out of reach, what is named instead."""
        try:
            return budget, self.ask(budget)
        except Infeasible as refusal:
            return refusal.smallest, self.ask(refusal.smallest)


@given(seed=st.integers(0, 10**6), at=st.floats(0, 1))
def test_what_the_tables_know_exactly_is_asked_once(seed, at):
    instance = Instance(seed, (1.0, 1.0))
    taken = instance.all_taken()
    budget = taken[0] + at * (taken[-1] - taken[0])
    asked = allocate(instance.problem(), {"latency": budget}, relative_gap=GAP)
    found = instance.ask(budget)
    assert (found.widths, found.value) == (asked.widths, asked.value)


@given(seed=st.integers(0, 10**6), at=st.floats(0, 1), shares=st.sampled_from([(0.8, 1.0), (0.95, 1.05), (1.0, 1.3)]))
def test_a_plan_fits_and_is_worth_no_less_than_what_the_tables_alone_give(seed, at, shares):
    instance = Instance(seed, shares)
    taken = instance.all_taken()
    budget = taken[0] + at * (taken[-1] - taken[0])
    reached, found = instance.reached(budget)
    assert found.spent["latency"] == instance.takes(found.widths) <= reached * (1 + 1e-11)
    if shares[1] <= 1:
        with contextlib.suppress(Infeasible):  # by the tables alone
            assert found.value >= allocate(instance.problem(), {"latency": reached}, relative_gap=GAP).value


def test_what_tables_overstate_is_spent():
    """Ten alike groups whose kernels take nine tenths of their tables: one more of them stays wide."""
    choices = [GroupChoice(f"g{i}", (1, 2), np.array([-1.0, 0.0])) for i in range(10)]
    costs = [KernelCost((choice.name,), np.array([1.0, 2.0])) for choice in choices]
    problem = Problem(choices, {"latency": costs})

    def takes(found):
        return {"latency": 0.9 * sum(found.widths.values())}

    assert allocate(problem, {"latency": 15.0}).value == -5.0
    found = allocate_to_fit(problem, {"latency": 15.0}, takes, relative_gap=GAP)
    assert found.value == -4.0
    assert found.spent["latency"] == pytest.approx(14.4)


def test_what_is_out_of_reach_by_the_tables_alone_is_found():
    problem = Problem([GroupChoice("g", (1, 2), np.array([-1.0, 0.0]))], {"latency": [KernelCost(("g",), [10, 20])]})

    def takes(found):
        return {"latency": 7.0 * found.widths["g"]}

    assert allocate_to_fit(problem, {"latency": 9.0}, takes, relative_gap=GAP).widths == {"g": 1}
    with pytest.raises(Infeasible) as refused:
        allocate_to_fit(problem, {"latency": 6.0}, takes, relative_gap=GAP)
    assert refused.value.smallest == 7.0
