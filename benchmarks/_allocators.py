"""Ways to choose widths that others have published, each short, all on the same latency table and the same attention.

Each takes a problem (what every width is worth and costs; a plan is one position among its candidates for each group)
and a budget of latency in the table's microseconds, and gives a plan that keeps the budget, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from aap_hw.policy import Infeasible, KernelCost, Problem, allocate, allocate_by_threshold
from aap_hw.policy.allocation import Allocation
from aap_hw.policy.problem import Plan

LATENCY, FLOPS = "latency", "flops"
# NetAdapt's step: share of the unpruned latency that each of its iterations takes away.
NETADAPT_STEP = 0.02


@dataclass(frozen=True)
class Chosen:
    """A plan, and how far from the best one it is proven to be at most, if anything is proven."""

    plan: Plan
    gap: float | None = None


Allocator = Callable[[Problem, float], Chosen | None]


def widths_of(problem: Problem, chosen: Chosen) -> dict[str, int]:
    """The widths of a plan's groups."""
    return {c.name: c.widths[at] for c, at in zip(problem.choices, chosen.plan, strict=True)}


def exact(problem: Problem, budget: float) -> Chosen | None:
    """Ours: the pairwise mixed-integer program."""
    try:
        return _chosen(problem, allocate(problem, {LATENCY: budget}))
    except Infeasible:
        return None


def exact_flops(problem: Problem, budget: float) -> Chosen | None:
    """The same program on operations instead of latency: the most of them whose best plan keeps the latency."""
    low, high = 0.0, problem.spent(FLOPS, problem.widest())
    enough, best = 0.002 * high, None
    while high - low > enough:
        middle = (low + high) / 2
        try:
            chosen = _chosen(problem, allocate(problem, {FLOPS: middle}))
        except Infeasible:
            low = middle
            continue
        if problem.spent(LATENCY, chosen.plan) <= budget:
            best, low = chosen, middle
        else:
            high = middle
    return best


def uniform(problem: Problem, budget: float) -> Chosen | None:
    """The same share of every group's channels, the largest that fits."""

    def plan(share: float) -> Plan:
        return tuple(max(0, sum(w <= share * c.widths[-1] + 1e-9 for w in c.widths) - 1) for c in problem.choices)

    shares = sorted({w / c.widths[-1] for c in problem.choices for w in c.widths}, reverse=True)
    return _first_that_fits(problem, budget, (plan(share) for share in shares))


def flops_greedy(problem: Problem, budget: float) -> Chosen | None:
    """Narrow, one step at a time, the group that loses least value for each operation saved."""

    def price(plan: Plan, group: int) -> float:
        narrower = _with(plan, group, plan[group] - 1)
        saved = problem.spent(FLOPS, plan) - problem.spent(FLOPS, narrower)
        return (problem.value(plan) - problem.value(narrower)) / max(saved, 1e-9)

    plan = problem.widest()
    while problem.spent(LATENCY, plan) > budget:
        groups = [group for group, at in enumerate(plan) if at > 0]
        if not groups:
            return None
        cheapest = min(groups, key=lambda group: price(plan, group))
        plan = _with(plan, cheapest, plan[cheapest] - 1)
    return Chosen(plan)


def netadapt(problem: Problem, budget: float) -> Chosen | None:
    """Yang et al., 2018 (arXiv 1804.03230): each iteration saves a fixed latency in the cheapest group.

    Their value of a candidate is its accuracy after a short training; here it is the attention kept.
    """
    plan = problem.widest()
    step = NETADAPT_STEP * problem.spent(LATENCY, plan)
    while (now := problem.spent(LATENCY, plan)) > budget:
        goal = max(budget, now - step)
        candidates = []
        for group in range(len(plan)):
            along = problem.spent_along(LATENCY, group, plan)
            fitting = [at for at in range(plan[group]) if along[at] <= goal]
            if fitting:
                candidates.append(_with(plan, group, max(fitting)))
        # Where no group alone can save so much, the one that saves most is narrowed.
        narrowest = [_with(plan, group, at - 1) for group, at in enumerate(plan) if at > 0]
        if candidates:
            plan = max(candidates, key=problem.value)
        elif narrowest:
            plan = min(narrowest, key=lambda each: problem.spent(LATENCY, each))
        else:
            return None
    return Chosen(plan)


def halp(problem: Problem, budget: float) -> Chosen | None:
    """Shen et al., 2021 (arXiv 2110.10811): a knapsack of channel groups, each with its own latency.

    A group's latency is what narrowing it alone saves in the unpruned network; that two groups share a kernel is left
    out. The knapsack is solved exactly and its budget lowered until the plan fits the table.
    """
    dense = problem.widest()
    whole = problem.spent(LATENCY, dense)
    costs = []
    for group, choice in enumerate(problem.choices):
        along = problem.spent_along(LATENCY, group, dense)
        costs.append(KernelCost((choice.name,), np.asarray(along) - whole))
    lowered = budget - whole
    while True:
        try:
            found = allocate(Problem(problem.choices, {LATENCY: costs}), {LATENCY: lowered})
        except Infeasible:
            return None
        plan = _chosen(problem, found).plan
        over = problem.spent(LATENCY, plan) - budget
        if over <= 0:
            return Chosen(plan)
        lowered -= max(over / 2, 0.002 * whole)


def threshold(scores: dict[str, np.ndarray]) -> Allocator:
    """AAP's rule (arXiv 2303.08595), weighted by latency: see ``aap_hw.policy.threshold``."""

    def allocator(problem: Problem, budget: float) -> Chosen | None:
        try:
            return _chosen(problem, allocate_by_threshold(problem, scores, LATENCY, {LATENCY: budget}))
        except Infeasible:
            return None

    return allocator


def _first_that_fits(problem: Problem, budget: float, plans: Iterable[Plan]) -> Chosen | None:
    tried = None
    for plan in plans:
        if plan != tried and problem.spent(LATENCY, plan) <= budget:
            return Chosen(plan)
        tried = plan
    return None


def _with(plan: Plan, group: int, at: int) -> Plan:
    return (*plan[:group], at, *plan[group + 1 :])


def _chosen(problem: Problem, found: Allocation) -> Chosen:
    return Chosen(tuple(c.widths.index(found.widths[c.name]) for c in problem.choices), found.gap)
