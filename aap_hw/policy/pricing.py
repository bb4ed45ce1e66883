"""What a plan can be worth at most, and plans that come close, by putting a price on what is spent.

With a price on each unit of each resource nothing is limited any more, and the most valuable plan is found exactly and
quickly (`aap_hw.policy.elimination`). Whatever the prices, no plan that keeps the budgets is worth more than that plan
less its price, plus the price of the budgets (Lagrangian relaxation: Everett 1963, Geoffrion 1974). The prices that
promise least are found by cutting planes (Kelley 1960).

What is left between that promise and the best plan is closed in `aap_hw.policy.branching`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from aap_hw.policy.elimination import Elimination, Pair
from aap_hw.policy.problem import FloatArray, GroupChoice, Plan, Problem, Table

# Numbers in all tables of an elimination that are worth it: about a tenth of a second and 100 MB each time.
MOST_ENTRIES = 10_000_000
# Prices that are tried, at most; with one limit a dozen is usual.
ROUNDS = 60
# What may not be is worth so much: less than anything is at any price, and sums of it are finite.
_NEVER = -1e30
# The highest price of all that plans differ by in a resource, as a multiple of all that they differ by in value.
_HIGHEST = 1e5
# The share of that difference in value, or of a limit, that is left to rounding.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Priced:
    """What the best prices tell of the plans within some limits.

    Attributes
    ----------
    bound : none of them is worth more.
    ceilings : for each label of each group, what none of them with that label exceeds.
    plans : those that were best at some prices, whether they keep the limits or not; the best at these prices first.
    prices : what each label of each group costs beside the first plan and beside the second, added up.
    """

    bound: float
    ceilings: list[FloatArray]
    plans: list[Plan]
    prices: list[FloatArray]


@dataclass(frozen=True, eq=False)
class _Amount:
    """Something that may be limited: a sum over groups and pairs of groups."""

    constant: float = 0.0
    ones: dict[int, FloatArray] = field(default_factory=dict)
    twos: dict[Pair, FloatArray] = field(default_factory=dict)

    @classmethod
    def of(cls, tables: Iterable[Table]) -> _Amount:
        """The sum of some tables."""
        constants: list[float] = []
        found = cls()
        for table in tables:
            if len(table.groups) == 2:
                pair = (min(table.groups), max(table.groups))
                found.twos[pair] = found.twos.get(pair, 0.0) + (table.cost if pair == table.groups else table.cost.T)
            elif table.groups:
                found.ones[table.groups[0]] = found.ones.get(table.groups[0], 0.0) + table.cost
            else:
                constants.append(float(table.cost))
        return cls(math.fsum(constants), found.ones, found.twos)

    def varying(self, plan: Plan) -> float:
        """How much a plan takes beside the constant."""
        alone = (float(each[plan[group]]) for group, each in self.ones.items())
        paired = (float(each[plan[g], plan[h]]) for (g, h), each in self.twos.items())
        return math.fsum([*alone, *paired])

    @property
    def range(self) -> float:
        """By how much two plans may differ, at most."""
        return math.fsum(float(np.ptp(each)) for each in (*self.ones.values(), *self.twos.values()))


class Pricing:
    """The groups of one problem in an order of elimination, made once for all budgets.

    Groups that are removed together, or share a precision, are tied to one more node that says which it is.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._values = [choice.value for choice in problem.choices]
        self._range = math.fsum(float(np.ptp(values)) for values in self._values) or 1.0
        self._amounts = {
            resource: [_Amount.of([*tables.always, *moment]) for moment in tables.moments or [()]]
            for resource, tables in problem.tables.items()
        }
        self._ties: dict[Pair, FloatArray] = {}
        for block in problem.together:
            self._tie(block, (False, True), lambda choice, i, stays: (choice.widths[i] > 0) == stays)
        for block in problem.alike:
            precisions = list(dict.fromkeys(each for group in block for each in problem.choices[group].precisions))
            self._tie(block, precisions, lambda choice, i, each: not choice.widths[i] or choice.precision(i) == each)
        pairs = {pair for amounts in self._amounts.values() for each in amounts for pair in each.twos}
        self._elimination = Elimination([len(values) for values in self._values], [*sorted(pairs), *self._ties])

    @property
    def is_quick(self) -> bool:
        """Whether the groups are linked so loosely that it is worth it."""
        return self._elimination.entries <= MOST_ENTRIES

    def least_cost(self, resource: str) -> Plan | None:
        """The plan that needs least of one resource; None of a peak, for which this is no way to find it."""
        amounts = self._amounts[resource]
        return self._cheapest(amounts[0]) if len(amounts) == 1 else None

    def most_value(
        self, limits: Mapping[str, float], is_enough: Callable[[float, Plan], bool], known: Iterable[Plan] = ()
    ) -> Priced | None:
        """What is known of the plans within the limits, None if there is no such plan.

        Parameters
        ----------
        limits
            By resource.
        is_enough
            Whether to stop at a bound, at prices of which a plan is the best.
        known
            Plans that may be among the best at some prices, to begin with.
        """
        limited = [(amount, limit) for resource, limit in limits.items() for amount in self._amounts[resource]]
        amounts = [amount for amount, _ in limited]
        ranges = np.array([amount.range or 1.0 for amount in amounts])
        budgets = np.array([limit - amount.constant for amount, limit in limited]) / ranges
        rounding = _ROUNDING * np.maximum(1.0, np.abs(budgets))
        seen: dict[Plan, list[float]] = {}

        def see(plan: Plan) -> FloatArray:
            excess: FloatArray = np.array([amount.varying(plan) for amount in amounts]) / ranges - budgets
            seen[plan] = [self._problem.value(plan), *excess]
            return excess

        within = [see(plan) <= 0 for plan in known]
        are_within = [bool(each.all()) for each in within]
        if not any(are_within):
            for place, amount in enumerate(amounts):
                if any(each[place] for each in within):
                    continue
                cheapest = self._cheapest(amount)
                if cheapest is None or (excess := see(cheapest))[place] > rounding[place]:
                    return None
                within.append(excess <= 0)
        prices = best_prices = self._lowest(seen)[0] if are_within else np.zeros(len(amounts))
        bound = math.inf
        for _ in range(ROUNDS):
            total, labels = self._elimination.best(*self._net(self._values, amounts, prices / ranges))
            promised = total + float(prices @ budgets)
            if promised < bound:
                bound, best_prices = promised, prices
            is_known = (found := self._chosen(labels)) in seen
            see(found)
            if is_known or is_enough(bound, found):
                break
            prices, least = self._lowest(seen)
            if least >= bound - _ROUNDING * self._range:
                break
        of_each = self._elimination.best_with_each(*self._net(self._values, amounts, best_prices / ranges))
        ceilings = [each + float(best_prices @ budgets) for each in of_each[: len(self._problem.choices)]]
        plans = sorted(seen, key=lambda plan: seen[plan][0] - float(best_prices @ seen[plan][1:]), reverse=True)
        return Priced(bound, ceilings, plans, self._prices(amounts, best_prices / ranges, plans[:2]))

    def _lowest(self, seen: Mapping[Plan, Sequence[float]]) -> tuple[FloatArray, float]:
        """The prices at which the best of some plans promises least, and what it promises.

        Of each plan it takes the value, and by how much it exceeds each budget.
        """
        rows = np.array(list(seen.values()))
        values, excess = rows[:, 0], rows[:, 1:]
        highest = _HIGHEST * self._range
        if excess.shape[1] == 1:
            return _lowest_price(values, excess[:, 0], highest)
        return _lowest_prices(values, excess, highest)

    def _cheapest(self, amount: _Amount) -> Plan | None:
        """The plan that takes least; None if no labels may be together."""
        nothing = [np.zeros_like(values) for values in self._values]
        total, labels = self._elimination.best(*self._net(nothing, [amount], [1.0]))
        return None if total < _NEVER / 2 else self._chosen(labels)

    def _prices(self, amounts: Sequence[_Amount], prices: FloatArray, plans: Sequence[Plan]) -> list[FloatArray]:
        """What each label of each group costs beside each of some plans, together."""
        nothing = [np.zeros_like(values) for values in self._values]
        ones, twos = self._net(nothing, amounts, prices)
        found = [-len(plans) * each for each in ones]
        for plan in plans:
            for (g, h), each in twos.items():
                if h < len(plan):  # no tie
                    found[g] -= each[:, plan[h]]
                    found[h] -= each[plan[g]]
        return found[: len(self._problem.choices)]

    def _chosen(self, labels: Plan) -> Plan:
        return labels[: len(self._problem.choices)]

    def _net(
        self, values: Sequence[FloatArray], amounts: Sequence[_Amount], prices: Sequence[float] | FloatArray
    ) -> tuple[list[FloatArray], dict[Pair, FloatArray]]:
        """What labels are worth, alone and in pairs, less what they cost."""
        ones = [each.copy() for each in values]
        twos: dict[Pair, FloatArray] = {}
        for amount, price in zip(amounts, prices, strict=True):
            if not price:
                continue
            for group, cost in amount.ones.items():
                ones[group] -= price * cost
            for pair, cost in amount.twos.items():
                twos[pair] = twos.get(pair, 0.0) - price * cost
        return ones, twos | self._ties

    def _tie(
        self,
        block: Iterable[int],
        states: Sequence[bool] | Sequence[str],
        may_be: Callable[[GroupChoice, int, bool | str], bool],
    ) -> None:
        """One more node, whose labels are some states, in each of which the groups may have certain labels only."""
        node = len(self._values)
        self._values.append(np.zeros(len(states)))
        for group in block:
            choice = self._problem.choices[group]
            may = [[may_be(choice, i, state) for state in states] for i in range(len(choice.widths))]
            self._ties[group, node] = np.where(may, 0.0, _NEVER)


def _lowest_price(values: FloatArray, excess: FloatArray, highest: float) -> tuple[FloatArray, float]:
    """`_lowest_prices` for one limit: the highest of these lines is lowest at an end, or where one that falls meets one
    that does not.
    """
    falls = excess > 0
    met = (values[falls, None] - values[~falls]) / (excess[falls, None] - excess[~falls])
    prices = np.clip([0.0, highest, *met.ravel()], 0.0, highest)
    promised = (values[:, None] - excess[:, None] * prices).max(axis=0)
    best = int(promised.argmin())
    return prices[best : best + 1], float(promised[best])


def _lowest_prices(values: FloatArray, excess: FloatArray, highest: float) -> tuple[FloatArray, float]:
    """The prices up to the highest at which the largest of ``values - excess @ prices`` is least, and that value."""
    from scipy.optimize import linprog  # takes half a second to load

    found = linprog(
        np.array([1.0, *np.zeros(excess.shape[1])]),
        A_ub=np.column_stack([-np.ones(len(values)), -excess]),
        b_ub=-values,
        bounds=[(None, None), *[(0.0, highest)] * excess.shape[1]],
    )
    return np.array(found.x[1:]), float(found.x[0])
