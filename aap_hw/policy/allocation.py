"""Which label each channel group gets, a width or also a precision: the most valuable plan that keeps every budget.

Exact: proven to be within a relative gap of the best possible. Groups that are linked loosely, as those of residual
networks are, are searched by branch and bound (`aap_hw.policy.branching`); the others, as those of DenseNets, are a
mixed-integer program (`aap_hw.policy.pairwise_milp`). How values and costs come about is the caller's business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aap_hw.errors import UserError
from aap_hw.policy.branching import Branching
from aap_hw.policy.improving import improved
from aap_hw.policy.pricing import Pricing
from aap_hw.policy.problem import Plan, Problem

if TYPE_CHECKING:
    from aap_hw.policy.pairwise_milp import PairwiseProgram

_MARGINS = (0.0, 1e-8, 1e-6)
"""Shares of a budget held back, one after the other, should the solver's rounding overspend it."""
_ROUNDING = 1e-9
"""The share of a limit that sums of costs are not exact to."""


class Infeasible(UserError):  # noqa: N818 - an answer about the budgets, not a fault
    """No plan keeps the budgets.

    Parameters
    ----------
    resource
        The resource whose budget cannot be kept.
    smallest
        The smallest reachable amount of it, in the unit of the budget, while `given` are kept.
    budget
        What was asked for.
    given
        The other resources whose budgets are kept at the same time; empty if `resource` alone is out of
        reach.
    """

    def __init__(self, resource: str, smallest: float, budget: float, given: tuple[str, ...] = ()) -> None:
        self.resource, self.smallest, self.budget, self.given = resource, smallest, budget, given
        within = f" within the budget of {' and '.join(given)}" if given else ""
        super().__init__(
            f"no choice of widths keeps the {resource} budget of {budget:.6g}: the smallest reachable"
            f"{within} is {_rounded_up(smallest):.6g}; allow at least that"
        )


class Undecided(UserError):  # noqa: N818 - likewise
    """The time limit was too short to find a plan or to prove that there is none."""


@dataclass(frozen=True)
class Allocation:
    """A width for every group, and a precision for those that have a choice of it.

    Parameters
    ----------
    widths
        Channels kept, by group name.
    value
        The sum of the chosen widths' values.
    spent
        Cost by resource, also of resources without a budget, in the unit of the tables.
    bound
        No plan that keeps the budgets has a higher value.
    gap
        ``(bound - value) / |value|``; 0 for a value of 0 that equals the bound; None if nothing is proven.
    seconds
        Time taken.
    precisions
        Precision, by the name of each group that has a choice of it.
    """

    widths: dict[str, int]
    value: float
    spent: dict[str, float]
    bound: float
    gap: float | None
    seconds: float
    precisions: dict[str, str] = field(default_factory=dict)


def allocate(
    problem: Problem,
    budgets: Mapping[str, float],
    *,
    relative_gap: float = 1e-4,
    time_limit_s: float = 20.0,
) -> Allocation:
    """Choose the labels of highest total value whose costs keep every budget.

    The cost of the result, added up anew from the tables, never exceeds a budget, by however little. No
    single group of the result could be made wider without a loss of value: where a latency curve is flat or falls, the
    widest width wins.

    Parameters
    ----------
    problem
        The groups, what their labels are worth, and what kernels cost.
    budgets
        How much may be spent of each resource; a resource without a budget is only reported.
    relative_gap
        How far below the best possible value the result may be, as a share of it. No plan that keeps the budgets is
        worth more than ``Allocation.bound``; that is proven, whichever way the search goes.
    time_limit_s
        When it is over, the best plan so far is returned, with the gap that is proven for it.

    Raises
    ------
    Infeasible
        If no plan keeps the budgets; it says what the smallest reachable amount is.
    Undecided
        If the time was too short to find a plan or to prove that there is none.
    ValueError
        If a budget is of an unknown resource or not a number.
    """
    began = time.perf_counter()
    for resource, budget in budgets.items():
        if resource not in problem.tables:
            raise ValueError(f"there is a budget for {resource}, but no costs")
        if math.isnan(budget):
            raise ValueError(f"the {resource} budget is not a number")
    limits = {resource: budget for resource, budget in budgets.items() if budget < math.inf}
    asked = _Asked(limits, relative_gap, time_limit_s, began + time_limit_s)
    plan = problem.widest()
    bound = math.fsum(float(choice.value.max()) for choice in problem.choices)
    if problem.value(plan) < bound or not problem.fits(plan, limits):
        plan, proven = _solve(problem, asked)
        bound = min(bound, proven)
    plan = improved(problem, plan, limits)
    value = problem.value(plan)
    bound = max(bound, value)
    return Allocation(
        widths={choice.name: choice.widths[i] for choice, i in zip(problem.choices, plan, strict=True)},
        value=value,
        spent={resource: problem.spent(resource, plan) for resource in problem.tables},
        bound=bound,
        gap=0.0 if bound == value else (bound - value) / abs(value) if value else math.inf,
        seconds=time.perf_counter() - began,
        precisions={c.name: c.precision(i) for c, i in zip(problem.choices, plan, strict=True) if c.precisions},
    )


def least_amounts(problem: Problem, resources: Iterable[str], *, time_limit_s: float = 10.0) -> dict[str, float]:
    """The smallest amount of each resource alone that some plan reaches; more if the time is too short to find it."""
    pricing = Pricing(problem)
    found = {}
    for resource in resources:
        plan = pricing.least_cost(resource) if pricing.is_quick else None
        if plan is None:
            plan = _program(problem).least_cost(resource, {}, time_limit_s=time_limit_s).plan
        narrowest = (0,) * len(problem.choices)
        found[resource] = min(problem.spent(resource, each) for each in (narrowest, plan or narrowest))
    return found


@dataclass(frozen=True)
class _Asked:
    """What a plan has to be: within limits, and close enough to the best by a time."""

    limits: Mapping[str, float]
    relative_gap: float
    time_limit_s: float
    ends: float

    def time_left_s(self) -> float:
        """Never nothing: even after a search that took all the time, it is worth asking what can be reached at all."""
        return max(self.time_limit_s / 10, self.ends - time.perf_counter())


def _solve(problem: Problem, asked: _Asked) -> tuple[Plan, float]:
    """A plan that fits, and the value that no plan exceeds."""
    pricing = Pricing(problem)
    if pricing.is_quick and asked.time_limit_s > 0:
        _require_reachable(problem, pricing, asked.limits)
        search = Branching(
            problem,
            asked.limits,
            improve=lambda plan: improved(problem, plan, asked.limits),
            relative_gap=asked.relative_gap,
            ends=asked.ends,
        )
        plan, bound = search.search(pricing)
        if plan is not None:
            return plan, bound
        program, bound = _program(problem), math.inf
    else:
        program = _program(problem)
        plan, bound = _searched(problem, program, asked)
    # Nothing fits, or only what rounding rules out, or the time is over: the cheapest plan tells which.
    return _cheapest(problem, program, asked) if plan is None else plan, bound


def _program(problem: Problem) -> PairwiseProgram:
    from aap_hw.policy.pairwise_milp import PairwiseProgram  # scipy's solvers take half a second to load

    return PairwiseProgram(problem)


def _require_reachable(problem: Problem, pricing: Pricing, limits: Mapping[str, float]) -> None:
    """Raise Infeasible if one of the limits alone is out of reach, of those of which pricing can tell."""
    for resource, limit in limits.items():
        cheapest = pricing.least_cost(resource)
        if cheapest is not None and (least := problem.spent(resource, cheapest)) > limit + _ROUNDING * abs(limit):
            raise Infeasible(resource, least, limit)


def _searched(problem: Problem, program: PairwiseProgram, asked: _Asked) -> tuple[Plan | None, float]:
    """The best plan that fits and that the solver finds in time, and the value that no plan exceeds."""
    bound = math.inf
    for margin in _MARGINS:
        tightened = {resource: limit - margin * abs(limit) for resource, limit in asked.limits.items()}
        answer = program.most_value(tightened, relative_gap=asked.relative_gap, time_limit_s=asked.time_left_s())
        if margin == 0.0 and answer.plan is not None:
            bound = answer.bound
        if answer.plan is None:
            break
        if problem.fits(answer.plan, asked.limits):
            return answer.plan, bound
    return None, bound


def _cheapest(problem: Problem, program: PairwiseProgram, asked: _Asked) -> Plan:
    """A plan that fits, found by saving instead of by value; raises Infeasible if there is none."""
    narrowest = (0,) * len(problem.choices)
    limits = asked.limits
    if problem.fits(narrowest, limits):
        return narrowest
    names = list(limits)
    # Each resource alone, for the plainest message; then each within the budgets of those before it.
    alone: list[tuple[str, tuple[str, ...]]] = [(name, ()) for name in names]
    together = [(name, tuple(names[:i])) for i, name in enumerate(names) if i > 0]
    for resource, given in alone + together:
        limit = limits[resource]
        within = {other: limits[other] for other in given}
        answer = program.least_cost(resource, within, time_limit_s=asked.time_left_s())
        if answer.plan is None:
            break
        if problem.fits(answer.plan, limits):
            return answer.plan
        smallest = problem.spent(resource, answer.plan)
        proven = not answer.stopped or answer.bound > limit
        if smallest > limit and proven:
            raise Infeasible(resource, smallest, limit, given)
    raise Undecided(
        "no choice of widths was found in time, nor a proof that there is none; allow more time, or fewer "
        "candidate widths"
    )


def _rounded_up(amount: float) -> float:
    """To six significant digits, never down: a reader will type the number as the next budget."""
    if amount == 0:
        return amount
    unit = 10.0 ** (math.floor(math.log10(abs(amount))) - 5)
    return math.ceil(amount / unit) * unit
