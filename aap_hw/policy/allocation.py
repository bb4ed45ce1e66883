"""Which label each channel group gets, a width or also a precision: the most valuable plan that keeps every budget.

Exact: proven to be within a relative gap of the best possible. The program that is solved is in
`aap_hw.policy.pairwise_milp`; how values and costs come about is the caller's business.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from aap_hw.errors import UserError
from aap_hw.policy.pairwise_milp import PairwiseProgram
from aap_hw.policy.problem import GroupChoice, Plan, Problem

_MARGINS = (0.0, 1e-8, 1e-6)
"""Shares of a budget held back, one after the other, should the solver's rounding overspend it."""


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
        How far below the best possible value the result may be, as a share of it.
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

    def time_left_s() -> float:
        # Even after a search that took all the time, it is worth asking what can be reached at all.
        return max(time_limit_s / 10, began + time_limit_s - time.perf_counter())

    plan = problem.widest()
    bound = math.fsum(float(choice.value.max()) for choice in problem.choices)
    if problem.value(plan) < bound or not problem.fits(plan, limits):
        plan, proven = _solve(problem, limits, relative_gap, time_left_s)
        plan = _widened(problem, plan, limits)
        bound = max(min(bound, proven), problem.value(plan))
    value = problem.value(plan)
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
    program = PairwiseProgram(problem)
    found = {}
    for resource in resources:
        answer = program.least_cost(resource, {}, time_limit_s=time_limit_s)
        narrowest = (0,) * len(problem.choices)
        plans = [narrowest] if answer.plan is None else [narrowest, answer.plan]
        found[resource] = min(problem.spent(resource, plan) for plan in plans)
    return found


def _solve(
    problem: Problem, limits: Mapping[str, float], relative_gap: float, time_left_s: Callable[[], float]
) -> tuple[Plan, float]:
    """A plan that fits, and the value that no plan exceeds."""
    program = PairwiseProgram(problem)
    bound = math.inf
    for margin in _MARGINS:
        tightened = {resource: limit - margin * abs(limit) for resource, limit in limits.items()}
        answer = program.most_value(tightened, relative_gap=relative_gap, time_limit_s=time_left_s())
        if margin == 0.0 and answer.plan is not None:
            bound = answer.bound
        if answer.plan is None:
            break
        if problem.fits(answer.plan, limits):
            return answer.plan, bound
    # Nothing fits, or only what the margins rule out, or the time is over: the cheapest plan tells which.
    return _cheapest(problem, program, limits, time_left_s), bound


def _cheapest(
    problem: Problem, program: PairwiseProgram, limits: Mapping[str, float], time_left_s: Callable[[], float]
) -> Plan:
    """A plan that fits, found by saving instead of by value; raises Infeasible if there is none."""
    narrowest = (0,) * len(problem.choices)
    if problem.fits(narrowest, limits):
        return narrowest
    names = list(limits)
    # Each resource alone, for the plainest message; then each within the budgets of those before it.
    alone: list[tuple[str, tuple[str, ...]]] = [(name, ()) for name in names]
    together = [(name, tuple(names[:i])) for i, name in enumerate(names) if i > 0]
    for resource, given in alone + together:
        limit = limits[resource]
        within = {other: limits[other] for other in given}
        answer = program.least_cost(resource, within, time_limit_s=time_left_s())
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


def _widened(problem: Problem, plan: Plan, limits: Mapping[str, float]) -> Plan:
    """The plan with groups given better labels, one at a time, as long as one can be without overspending.

    Better is what is neither worth less nor narrower. The solver may stop anywhere within its gap, and at equal value
    it does not care for width. A small reward for channels in its objective would not help: to be sure not to outweigh
    any value it would have to be far below the gap, where the solver does not look.
    """
    block_of = {group: block for block in problem.together for group in block}
    while True:
        steps: list[tuple[float, int, Plan]] = []
        for group, choice in enumerate(problem.choices):
            now = plan[group]
            if choice.widths[now] == 0 and len(block := block_of.get(group, ())) > 1:
                # What was removed together comes back together, each group at its narrowest.
                steps.append(_step(problem, plan, dict.fromkeys(block, 1)))
                continue
            better = _better(choice, now)
            if not better:
                continue
            along = {resource: problem.spent_along(resource, group, plan) for resource in limits}
            for i in better:
                # Rounding only: whether it fits is checked below, on the exact sum.
                if all(along[r][i] <= limit + 1e-9 * abs(limit) for r, limit in limits.items()):
                    steps.append(_step(problem, plan, {group: i}))
        wider = (candidate for _, _, candidate in sorted(steps, reverse=True) if problem.is_alike(candidate))
        found = next((candidate for candidate in wider if problem.fits(candidate, limits)), None)
        if found is None:
            return plan
        plan = found


def _better(choice: GroupChoice, now: int) -> list[int]:
    """Labels that are worth no less than one and are no narrower, and one of both more."""
    here = float(choice.value[now]), choice.widths[now]
    labels = [(float(value), width) for value, width in zip(choice.value, choice.widths, strict=True)]
    return [i for i, each in enumerate(labels) if each > here and each[0] >= here[0] and each[1] >= here[1]]


def _step(problem: Problem, plan: Plan, changes: Mapping[int, int]) -> tuple[float, int, Plan]:
    """What a plan gains in value and in channels by some changes, and the plan after them."""
    wider = list(plan)
    gain, channels = 0.0, 0
    for group, i in changes.items():
        choice = problem.choices[group]
        gain += float(choice.value[i] - choice.value[plan[group]])
        channels += choice.widths[i] - choice.widths[plan[group]]
        wider[group] = i
    return gain, channels, tuple(wider)


def _rounded_up(amount: float) -> float:
    """To six significant digits, never down: a reader will type the number as the next budget."""
    if amount == 0:
        return amount
    unit = 10.0 ** (math.floor(math.log10(abs(amount))) - 5)
    return math.ceil(amount / unit) * unit
