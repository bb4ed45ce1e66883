"""The choice to be made, as tables: what each width of each group is worth, and what each kernel costs at it.

Nothing is optimised here. This is also the one place where the cost of a plan is added up, so that the
optimiser, its checks and the caller cannot disagree about it.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Plan = tuple[int, ...]
"""For each group, the position of its chosen width among its candidates."""


@dataclass(frozen=True, eq=False)
class GroupChoice:
    """The candidate widths of one channel group and what each is worth.

    Parameters
    ----------
    name
        The group's name.
    widths
        Candidate widths in channels, ascending; a first width of 0 removes the group and the kernels around it.
    value
        What each width is worth (for example the attention it keeps), not decreasing.
    """

    name: str
    widths: tuple[int, ...]
    value: FloatArray

    def __post_init__(self) -> None:
        value = np.asarray(self.value, dtype=np.float64)
        object.__setattr__(self, "value", value)
        widths = self.widths
        if not widths or widths[0] < 0 or any(b <= a for a, b in pairwise(widths)):
            raise ValueError(f"group {self.name}: widths must be ascending and not negative, not {widths}")
        if value.shape != (len(widths),):
            raise ValueError(f"group {self.name}: {len(widths)} widths, but values of shape {value.shape}")
        if not np.isfinite(value).all() or (np.diff(value) < 0).any():
            raise ValueError(f"group {self.name}: values must be finite and must not decrease with the width")


@dataclass(frozen=True)
class WidthSum:
    """The channels of several groups side by side, as what follows a concatenation reads them.

    Costs that depend on the sum are given at some levels of it; a sum costs what the lowest level that is not below it
    costs. With every sum that can occur as a level this is exact, with fewer it is what the caller makes of it.

    Parameters
    ----------
    name
        What costs call it; no group has this name.
    terms
        Group names, each with how often its channels count.
    levels
        Ascending sums; none that can occur exceeds the last.
    constant
        Channels that are there whatever is chosen.
    """

    name: str
    terms: tuple[tuple[str, int], ...]
    levels: tuple[int, ...]
    constant: int = 0


@dataclass(frozen=True, eq=False)
class KernelCost:
    """What one kernel costs at each candidate width of the groups it depends on.

    Parameters
    ----------
    groups
        Names of none, one or two groups or sums: none for a cost that no choice changes, two for a kernel that reads
        one group and writes the other. The same name twice is a kernel that reads and writes one group.
    cost
        One axis a group, following `GroupChoice.widths` or `WidthSum.levels`. Any unit, the same as the resource's
        budget.
    """

    groups: tuple[str, ...]
    cost: FloatArray

    def __post_init__(self) -> None:
        cost = np.asarray(self.cost, dtype=np.float64)
        object.__setattr__(self, "cost", cost)
        if len(self.groups) > 2 or cost.ndim != len(self.groups):
            raise ValueError(f"kernel of groups {self.groups}: its cost has {cost.ndim} axes")
        if not np.isfinite(cost).all():
            raise ValueError(f"kernel of groups {self.groups}: a cost is not finite")


@dataclass(frozen=True, eq=False)
class PeakCost:
    """A resource of which the most that is needed at any one moment counts, such as memory.

    Parameters
    ----------
    always
        What is needed all the time.
    moments
        What is needed beside it at each moment; no cost is negative.
    """

    always: Sequence[KernelCost]
    moments: Sequence[Sequence[KernelCost]]


Costs = Mapping[str, Sequence[KernelCost] | PeakCost]


@dataclass(frozen=True, eq=False)
class Table:
    """One kernel's cost with its groups and sums as positions, no position twice."""

    groups: tuple[int, ...]
    cost: FloatArray

    def at(self, where: Sequence[int]) -> float:
        """Cost of the kernel at one position of each group and sum."""
        return float(self.cost[tuple(where[group] for group in self.groups)])


@dataclass(frozen=True, eq=False)
class ResourceTables:
    """What a resource costs: ``always``, and the most of ``moments``, of which there may be none."""

    always: tuple[Table, ...]
    moments: tuple[tuple[Table, ...], ...] = ()

    def __iter__(self) -> Iterator[Table]:
        return chain(self.always, *self.moments)


class Problem:
    """Groups and the kernels of each resource, checked against each other.

    Parameters
    ----------
    choices
        The groups and what each of their widths is worth.
    costs
        Kernels by resource, for example ``{"latency_ms": [...], "parameters": [...]}``.
    sums
        Sums of groups that costs depend on.
    together
        Groups that are removed only together: if one has the width 0, all of them do.

    Raises
    ------
    ValueError
        If two groups have one name, or a kernel names an unknown group or has another number of widths.
    """

    def __init__(
        self,
        choices: Sequence[GroupChoice],
        costs: Costs,
        sums: Sequence[WidthSum] = (),
        together: Sequence[tuple[str, ...]] = (),
    ) -> None:
        self.choices = tuple(choices)
        self.sums = tuple(sums)
        names = [choice.name for choice in choices] + [each.name for each in sums]
        self._position = {name: i for i, name in enumerate(names)}
        if len(self._position) != len(names):
            raise ValueError("two groups have the same name")
        self.sizes = [len(choice.widths) for choice in choices] + [len(each.levels) for each in sums]
        self.terms = [tuple((self._group(name), count) for name, count in each.terms) for each in sums]
        self.together = tuple(tuple(map(self._group, block)) for block in together)
        for block in self.together:
            if any(self.choices[group].widths[0] != 0 for group in block):
                raise ValueError("groups that are removed together need the width 0")
        for each, terms in zip(self.sums, self.terms, strict=True):
            largest = each.constant + sum(count * self.choices[group].widths[-1] for group, count in terms)
            if any(b <= a for a, b in pairwise(each.levels)) or largest > each.levels[-1]:
                raise ValueError(f"sum {each.name}: levels must ascend and reach {largest}")
        self.tables = {resource: self._resource(resource, cost) for resource, cost in costs.items()}

    def _group(self, name: str) -> int:
        if self._position.get(name, len(self.choices)) >= len(self.choices):
            raise ValueError(f"there is no choice for group {name}")
        return self._position[name]

    def _resource(self, resource: str, cost: Sequence[KernelCost] | PeakCost) -> ResourceTables:
        def tables(kernels: Sequence[KernelCost]) -> tuple[Table, ...]:
            return tuple(self._table(resource, kernel) for kernel in kernels)

        if not isinstance(cost, PeakCost):
            return ResourceTables(tables(cost))
        if any((kernel.cost < 0).any() for moment in cost.moments for kernel in moment):
            raise ValueError(f"a {resource} cost of a moment is negative")
        return ResourceTables(tables(cost.always), tuple(map(tables, cost.moments)))

    def _table(self, resource: str, kernel: KernelCost) -> Table:
        unknown = [name for name in kernel.groups if name not in self._position]
        if unknown:
            raise ValueError(f"a {resource} cost depends on group {unknown[0]}, for which there is no choice")
        groups = tuple(self._position[name] for name in kernel.groups)
        expected = tuple(self.sizes[group] for group in groups)
        if kernel.cost.shape != expected:
            raise ValueError(
                f"the {resource} cost of groups {kernel.groups} has shape {kernel.cost.shape}, "
                f"but the groups have {expected} candidate widths"
            )
        if len(groups) == 2 and groups[0] == groups[1]:
            return Table(groups[:1], np.diagonal(kernel.cost))
        return Table(groups, kernel.cost)

    def value(self, plan: Plan) -> float:
        """What a plan is worth."""
        return math.fsum(float(choice.value[i]) for choice, i in zip(self.choices, plan, strict=True))

    def spent(self, resource: str, plan: Plan) -> float:
        """What a plan costs; correctly rounded, so that the order of the kernels does not matter."""
        where = self.where(plan)
        tables = self.tables[resource]
        always = [table.at(where) for table in tables.always]
        moments = [[table.at(where) for table in moment] for moment in tables.moments]
        return max((math.fsum([*always, *moment]) for moment in moments), default=math.fsum(always))

    def fits(self, plan: Plan, budgets: Mapping[str, float]) -> bool:
        """Whether a plan keeps every budget, without any tolerance."""
        return all(self.spent(resource, plan) <= budget for resource, budget in budgets.items())

    def spent_along(self, resource: str, group: int, plan: Plan) -> FloatArray:
        """Cost of the plan with each width of `group` in turn; rounded less carefully than `spent`."""
        choice, here = self.choices[group], self.where(plan)
        where: list[int | NDArray[np.intp]] = list(here)
        where[group] = np.arange(len(choice.widths))
        touched = {group}
        for number, terms in enumerate(self.terms, start=len(self.choices)):
            if any(member == group for member, _ in terms):
                totals = [
                    self._level(number, (*plan[:group], i, *plan[group + 1 :])) for i in range(len(choice.widths))
                ]
                where[number] = np.array(totals)
                touched.add(number)

        def along(tables: Sequence[Table]) -> FloatArray:
            rest = math.fsum(table.at(here) for table in tables if touched.isdisjoint(table.groups))
            varying = (
                table.cost[tuple(where[g] for g in table.groups)]
                for table in tables
                if not touched.isdisjoint(table.groups)
            )
            return rest + sum(varying, start=np.zeros(len(choice.widths)))

        tables = self.tables[resource]
        most = np.max([along(moment) for moment in tables.moments], axis=0) if tables.moments else 0.0
        total: FloatArray = along(tables.always) + most
        return total

    def widest(self) -> Plan:
        """The plan that prunes nothing."""
        return tuple(len(choice.widths) - 1 for choice in self.choices)

    def allows(self, plan: Plan) -> bool:
        """Whether groups that are removed together are all removed or all there."""
        return all(len({plan[group] == 0 for group in block}) == 1 for block in self.together)

    def where(self, plan: Plan) -> Plan:
        """The plan, followed by the level of each sum."""
        first = len(self.choices)
        return (*plan, *(self._level(first + i, plan) for i in range(len(self.sums))))

    def _level(self, number: int, plan: Plan) -> int:
        each, terms = self.sums[number - len(self.choices)], self.terms[number - len(self.choices)]
        total = each.constant + sum(count * self.choices[group].widths[plan[group]] for group, count in terms)
        return bisect_left(each.levels, total)
