"""The rule of Automatic Attention Pruning (arXiv 2303.08595): a channel goes if its attention is low for what it costs.

Channel c of group l is cut if A_c <= T * w_l, where w_l is the group's share of what remains of a resource: parameters
or operations as published, or latency. One number T decides for all groups. Where T comes from is either the controller
(`aap_hw.policy.controller`), which raises it from round to round, or a budget: then it is the lowest T that keeps it,
which is what raising and halving would end at if nothing were trained between.

Widths are snapped to the candidates: a group is as wide as the narrowest candidate that holds all channels that the
rule keeps, and as its narrowest candidate at least. Nothing is removed altogether.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np

from aap_hw.policy.allocation import Allocation, Infeasible
from aap_hw.policy.problem import FloatArray, Plan, Problem

Scores = Mapping[str, FloatArray]


def group_shares(problem: Problem, resource: str) -> FloatArray:
    """w_l: each group's share of what the widest plan takes of a resource, shape (groups,).

    What a kernel takes is divided evenly between the groups that it reads and writes.
    """
    widest = problem.widest()
    parts = np.zeros(len(problem.choices))
    for table in problem.tables[resource].always:
        for group in table.groups:
            parts[group] += table.at(widest) / len(table.groups)
    shares: FloatArray = parts / problem.spent(resource, widest)
    return shares


def widths_at(problem: Problem, scores: Scores, shares: FloatArray, threshold: float) -> Plan:
    """The plan that the rule gives at one T."""
    kept = [
        int((_prices(scores[choice.name], share) > threshold).sum())
        for choice, share in zip(problem.choices, shares, strict=True)
    ]
    return tuple(
        max(int(choice.widths[0] == 0), int(np.searchsorted(choice.widths, count)))
        for choice, count in zip(problem.choices, kept, strict=True)
    )


def allocate_at_threshold(problem: Problem, scores: Scores, resource: str, threshold: float) -> Allocation:
    """The widths at one T, with shares of `resource`; nothing is proven of them."""
    began = time.perf_counter()
    return _allocation(problem, widths_at(problem, scores, group_shares(problem, resource), threshold), began)


def allocate_by_threshold(problem: Problem, scores: Scores, resource: str, budgets: Mapping[str, float]) -> Allocation:
    """The widths at the lowest T that keeps every budget.

    Parameters
    ----------
    scores
        Attention of every channel of each group, as many as its widest candidate.
    resource
        What w_l is a share of: a resource of the problem.

    Raises
    ------
    Infeasible
        If no T keeps the budgets.
    """
    began = time.perf_counter()
    shares = group_shares(problem, resource)
    tried: Plan | None = None
    for threshold in [0.0, *_steps(problem, scores, shares)]:
        plan = widths_at(problem, scores, shares, threshold)
        if plan != tried and problem.fits(plan, budgets):
            return _allocation(problem, plan, began)
        tried = plan
    assert tried is not None
    missed = next(name for name, budget in budgets.items() if problem.spent(name, tried) > budget)
    raise Infeasible(missed, problem.spent(missed, tried), budgets[missed])


def lowest_threshold(problem: Problem, scores: Scores, resource: str) -> float:
    """The lowest T that narrows a group; infinite if there is none."""
    return next(iter(_steps(problem, scores, group_shares(problem, resource))), math.inf)


def _steps(problem: Problem, scores: Scores, shares: FloatArray) -> list[float]:
    """Every T at which the plan changes, ascending: the last channel above a candidate width goes."""
    found = set()
    for choice, share in zip(problem.choices, shares, strict=True):
        descending = np.sort(_prices(scores[choice.name], share))[::-1]
        found |= {float(descending[width]) for width in choice.widths[:-1] if width > 0}
    return sorted(threshold for threshold in found if threshold < math.inf)


def _prices(scores: FloatArray, share: float) -> FloatArray:
    """The T from which on each channel goes; what costs nothing stays."""
    return scores / share if share > 0 else np.full(len(scores), math.inf)


def _allocation(problem: Problem, plan: Plan, began: float) -> Allocation:
    return Allocation(
        widths={choice.name: choice.widths[i] for choice, i in zip(problem.choices, plan, strict=True)},
        value=problem.value(plan),
        spent={name: problem.spent(name, plan) for name in problem.tables},
        bound=math.inf,
        gap=None,
        seconds=time.perf_counter() - began,
    )
