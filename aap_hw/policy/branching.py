"""The best plan within limits, proven: branch and bound, where prices give the bound (`aap_hw.policy.pricing`).

A branch is what is left of each group's labels. The bound of one comes from the best prices; so does what it is split
by: of the two plans that are best at these prices, usually one spends too little and the other too much, and the group
whose labels in these two differ most in price is given one half of its labels or the other. Labels that lead to nothing
better than the best plan so far are left out on the way, so that branches shrink to a few labels after a few splits.
The branch that promises most is always next, so that the bound of all is that of the next one.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from aap_hw.policy.pricing import Pricing
from aap_hw.policy.problem import FloatArray, Plan, Problem

Labels = list[list[int]]
# Plans that a branch begins with.
_KEPT = 20
# The share of all values that their sums are not exact to.
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class _Branch:
    """What may be chosen, and what is known of it.

    Attributes
    ----------
    plans : some of those seen, the best at the best prices first.
    halves : what it is split into.
    """

    bound: float
    plans: list[Plan]
    halves: list[Labels]


class Branching:
    """A search for the best plan of one problem within limits.

    Parameters
    ----------
    improve
        Makes a plan that keeps the limits better, if it can.
    relative_gap
        How far below the best possible value the plan may be, as a share of it.
    ends
        When to stop, by `time.perf_counter`.
    """

    def __init__(
        self,
        problem: Problem,
        limits: Mapping[str, float],
        *,
        improve: Callable[[Plan], Plan],
        relative_gap: float,
        ends: float,
    ) -> None:
        self._problem, self._limits, self._improve = problem, limits, improve
        self._relative_gap, self._ends = relative_gap, ends
        self._plan: Plan | None = None
        self._value = -math.inf
        # The most that anything that was left out could have been worth.
        self._left_out = -math.inf
        self._improved: set[Plan] = set()
        self._rounding = _ROUNDING * math.fsum(float(np.abs(choice.value).max()) for choice in problem.choices)

    def search(self, pricing: Pricing) -> tuple[Plan | None, float]:
        """The best plan that was found, None if there is none or the time was too short; what no plan exceeds.

        Takes the pricing of the whole problem, which may have been made for other limits.
        """
        everything = [list(range(len(choice.widths))) for choice in self._problem.choices]
        number = count()
        heap: list[tuple[float, int, _Branch]] = []

        def add(branch: _Branch | None, most: float) -> None:
            if branch is not None:
                heapq.heappush(heap, (-min(branch.bound, most), next(number), branch))

        add(self._branch(everything, (), pricing), math.inf)
        bound = -math.inf
        while heap:
            bound = -heap[0][0]
            if self._is_enough(bound):
                return self._plan, max(bound, self._left_out)
            _, _, branch = heapq.heappop(heap)
            for labels in branch.halves:
                add(self._branch(labels, branch.plans), bound)
        return self._plan, max(self._value, self._left_out)

    def _is_enough(self, bound: float) -> bool:
        return bound - self._value <= self._most_allowed or time.perf_counter() >= self._ends

    @property
    def _most_allowed(self) -> float:
        """How much more than the best plan so far another may be worth and be left out."""
        return max(0.0 if self._plan is None else self._relative_gap * abs(self._value), self._rounding)

    def _branch(self, labels: Labels, known: Iterable[Plan], pricing: Pricing | None = None) -> _Branch | None:
        """What is left of some labels, None if nothing is."""
        labels = self._consistent(labels)
        if not all(labels):
            return None
        narrowed = pricing or Pricing(self._problem.narrowed(labels))
        places = [{label: place for place, label in enumerate(some)} for some in labels]
        inside = [plan for plan in known if all(i in each for i, each in zip(plan, places, strict=True))]

        def whole(plan: Plan) -> Plan:
            return tuple(some[i] for some, i in zip(labels, plan, strict=True))

        def is_enough(bound: float, found: Plan) -> bool:
            self._see(whole(found))
            return self._is_enough(bound)

        inner = [tuple(each[i] for each, i in zip(places, plan, strict=True)) for plan in inside]
        priced = narrowed.most_value(self._limits, is_enough, inner)
        if priced is None:
            return None
        plans = [whole(plan) for plan in priced.plans]
        if (fitting := next((plan for plan in plans if self._see(plan)), None)) is not None:
            self._see_improved(fitting)
        most = self._value + self._most_allowed
        if priced.bound <= most:
            self._left_out = max(self._left_out, priced.bound)
            return None
        left = self._labels_left(labels, priced.ceilings, most)
        if not all(left):
            return None
        if all(len(some) == 1 for some in left):
            if self._problem.is_consistent(only := tuple(some[0] for some in left)):
                self._see(only)
            return None
        halves = self._by_precision(left, plans) or _halves(labels, left, plans, priced.prices)
        return _Branch(priced.bound, plans[:_KEPT], halves)

    def _consistent(self, labels: Labels) -> Labels:
        """Labels without those that remove groups, where others stay that are removed only together with them."""
        found = list(labels)
        for block in self._problem.together:
            if any(self._problem.choices[group].widths[next(iter(found[group]), -1)] for group in block):
                for group in block:
                    found[group] = [i for i in found[group] if self._problem.choices[group].widths[i]]
        return found

    def _labels_left(self, labels: Labels, ceilings: Sequence[FloatArray], most: float) -> Labels:
        """Labels without those that lead to no more than some value."""
        stays = [each > most for each in ceilings]
        for each, stay in zip(ceilings, stays, strict=True):
            self._left_out = max(self._left_out, float(each[~stay].max(initial=-math.inf)))
        return [[some[i] for i in np.flatnonzero(stay)] for some, stay in zip(labels, stays, strict=True)]

    def _by_precision(self, left: Labels, plans: Sequence[Plan]) -> list[Labels]:
        """The labels that are left, divided by the precision of the most groups that share one, if two plans differ.

        No prices can ask for anything between two precisions of many groups.
        """
        choices = self._problem.choices

        def precision(group: int, label: int) -> str:
            return choices[group].precision(label) if choices[group].widths[label] else ""

        def differs(group: int) -> bool:
            found = {precision(group, plan[group]) for plan in plans[:2]}
            return len(found) == 2 and "" not in found

        blocks = [block for block in self._problem.alike if any(map(differs, block))]
        if not blocks:
            return []
        block = max(blocks, key=len)
        group = next(filter(differs, block))
        chosen = precision(group, plans[0][group])
        one, other = list(left), list(left)
        for group in block:
            one[group] = [i for i in left[group] if precision(group, i) in (chosen, "")]
            other[group] = [i for i in left[group] if precision(group, i) != chosen]
        return [one, other]

    def _see(self, plan: Plan) -> bool:
        """Whether a plan keeps the limits; then it may be the best so far."""
        if not self._problem.fits(plan, self._limits):
            return False
        if (value := self._problem.value(plan)) > self._value:
            self._plan, self._value = plan, value
        return True

    def _see_improved(self, plan: Plan) -> None:
        if plan not in self._improved:
            self._improved.add(plan)
            self._see(self._improve(plan))


def _halves(labels: Labels, left: Labels, plans: Sequence[Plan], prices: Sequence[FloatArray]) -> list[Labels]:
    """The labels that are left, with one group's divided in two."""
    first, second = plans[0], plans[min(1, len(plans) - 1)]
    differing = [group for group, some in enumerate(left) if first[group] != second[group] and len(some) > 1]
    price_of = {group: dict(zip(labels[group], prices[group].tolist(), strict=True)) for group in differing}
    if differing:
        group = max(differing, key=lambda group: abs(price_of[group][first[group]] - price_of[group][second[group]]))
        middle = (price_of[group][first[group]] + price_of[group][second[group]]) / 2
        cheap = [i for i in left[group] if price_of[group][i] <= middle]
    else:
        cheap = []
    if not differing or not 0 < len(cheap) < len(left[group]):
        group = max(range(len(left)), key=lambda group: len(left[group]))
        cheap = left[group][: len(left[group]) // 2]
    dear = [i for i in left[group] if i not in cheap]
    return [[*left[:group], half, *left[group + 1 :]] for half in (cheap, dear)]
