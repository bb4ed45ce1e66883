"""Plans that take another amount than their tables add up to.

A kernel of many groups is in the tables as a line above its cost, so that they add up to more; what a mixture of
precisions costs is read off a few mixtures, which may be more or less. What a plan takes is only known once it is
chosen. So the tables are asked again, for as much more or less as the plan was off, until what it takes fits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from aap_hw.policy.allocation import Allocation, Infeasible, Undecided, allocate
from aap_hw.policy.problem import GroupChoice, Problem

Takes = Callable[[Allocation], Mapping[str, float]]
"""What a plan takes of each resource, in the unit of the tables."""

_ROUNDING = 3e-12
"""The share of a budget by which what is taken may exceed it, as it was converted between units."""
_LEAST_CHANGE = 1e-6
"""By how much less is asked for, at least, after a plan that took too much."""
_WORTH_ASKING = 0.005
"""The share of a budget that is worth asking again for."""
_MOST_ASKED = 2
"""How often is asked again after a plan that fits."""
_GAP, _TIME_LIMIT_S = 1e-3, 10.0
"""How exactly and how long is asked then: the costs are no more exact."""


def allocate_to_fit(problem: Problem, budgets: Mapping[str, float], takes: Takes, *, relative_gap: float) -> Allocation:
    """The most valuable plan found that takes no more than the budgets.

    Where plans take what the tables add up to, it is what `allocate` gives.

    Parameters
    ----------
    problem
        The groups, what their labels are worth, and about what kernels cost.
    budgets
        How much may be taken of each resource.
    takes
        What a plan takes of each of them, in the unit of the tables.
    relative_gap
        As of `allocate`. It is proven for what the tables add up to.

    Returns
    -------
    Allocation
        With what is taken as ``spent`` of the budgets' resources, and the time of all that was asked.

    Raises
    ------
    Infeasible
        If no such plan was found; it says how little the smallest takes.
    Undecided
        As of `allocate`.
    """
    began = time.perf_counter()
    allowed = dict(budgets)
    tried: dict[str, list[tuple[float, float]]] = {name: [] for name in budgets}
    best: Allocation | None = None
    refused: dict[str, Infeasible] = {}
    asked = 0
    while asked <= _MOST_ASKED:
        try:
            if best is None:
                found = allocate(problem, allowed, relative_gap=relative_gap)
            else:
                found = allocate(problem, allowed, relative_gap=max(relative_gap, _GAP), time_limit_s=_TIME_LIMIT_S)
        except (Infeasible, Undecided) as refusal:
            if best is not None:
                break
            if isinstance(refusal, Undecided) or refusal.resource in refused:
                raise
            # By the tables. The plan that takes the least by them may fit.
            refused[refusal.resource] = refusal
            allowed[refusal.resource] = refusal.smallest
            continue
        taken = takes(found)
        over = [name for name, budget in budgets.items() if taken[name] > budget * (1 + _ROUNDING)]
        if best is None and (name := next(filter(refused.__contains__, over), None)):
            raise Infeasible(name, taken[name], budgets[name], refused[name].given)
        is_exact = all(math.isclose(taken[name], found.spent[name], rel_tol=_ROUNDING) for name in budgets)
        if not over and (best is None or found.value > best.value):
            best = replace(found, spent={**found.spent, **taken})
        asked += best is not None
        for name in budgets:
            tried[name].append((found.spent[name], taken[name]))
        to_fit = {name: _to_fit(tried[name], budget) for name, budget in budgets.items()}
        if over:
            allowed |= {name: min(to_fit[name], allowed[name] * (1 - _LEAST_CHANGE)) for name in over}
        elif any(to_fit[name] > allowed[name] * (1 + _WORTH_ASKING) for name in budgets):
            allowed = {name: max(to_fit[name], allowed[name]) for name in budgets}
        else:
            break
    assert best is not None
    if not is_exact:
        best = _widened(problem, best, budgets, takes)
    return replace(best, seconds=time.perf_counter() - began)


def _to_fit(tried: Sequence[tuple[float, float]], budget: float) -> float:
    """The cost by the tables at which a plan may take the budget, by (cost by the tables, what is taken) of others.

    It lies on the line between the nearest that fits and the nearest that does not, or on that from 0 through the only
    one.
    """
    below = max((each for each in tried if each[1] <= budget), default=(0.0, 0.0))
    above = min((each for each in tried if each[1] > budget and each[0] > below[0]), default=None)
    if above is None:
        return below[0] * budget / below[1] if below[1] > 0 else budget
    return below[0] + (above[0] - below[0]) * (budget - below[1]) / (above[1] - below[1])


def _widened(problem: Problem, plan: Allocation, budgets: Mapping[str, float], takes: Takes) -> Allocation:
    """The plan with groups made wider step by step, the most valuable first, while what it takes fits.

    What did not fit once is not tried again, as the plan only grows.
    """
    left = list(problem.choices)
    while True:
        steps = [(choice, wider) for choice in left if (wider := _wider(choice, plan)) is not None]
        if not steps:
            return plan
        choice, wider = max(steps, key=lambda step: step[1].value)
        taken = takes(wider)
        if all(taken[name] <= budget for name, budget in budgets.items()):
            plan = replace(wider, spent={**wider.spent, **taken})
        else:
            left.remove(choice)


def _wider(choice: GroupChoice, plan: Allocation) -> Allocation | None:
    """The plan with the next width of a group, in the precision that it has; None if it is the widest, or removed."""
    width, precision = plan.widths[choice.name], plan.precisions.get(choice.name, "")
    labels = [i for i, each in enumerate(choice.widths) if choice.precision(i) == precision and each >= width]
    if width == 0 or len(labels) < 2:
        return None
    value = plan.value + float(choice.value[labels[1]] - choice.value[labels[0]])
    bound = max(plan.bound, value)
    gap = 0.0 if bound == value else (bound - value) / abs(value) if value else math.inf
    return replace(
        plan, widths={**plan.widths, choice.name: choice.widths[labels[1]]}, value=value, bound=bound, gap=gap
    )
