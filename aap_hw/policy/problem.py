"""The choice to be made, as tables: what each label of each group is worth, and what each kernel costs at it.

A label is a width, or a width and a precision. Nothing is optimised here. This is also the one place where the cost of
a plan is added up, so that the optimiser, its checks and the caller cannot disagree about it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Plan = tuple[int, ...]
"""For each group, the position of its label among its choice's."""


@dataclass(frozen=True, eq=False)
class GroupChoice:
    """The labels that one channel group may be given and what each is worth.

    Parameters
    ----------
    name
        The group's name.
    widths
        Width of each label in channels, ascending; a first width of 0 removes the group and the kernels around it.
        With several precisions, those of one follow those of another, and ascend within each.
    value
        What each label is worth (for example the attention it keeps), not decreasing with the width. With several
        precisions, what is removed may be worth more than what is rounded.
    precisions
        The precision of each label, in which what is read of the group is stored; empty if there is no choice. The last
        one is the most exact.
    """

    name: str
    widths: tuple[int, ...]
    value: FloatArray
    precisions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        value = np.asarray(self.value, dtype=np.float64)
        object.__setattr__(self, "value", value)
        labels = len(self.widths)
        if value.shape != (labels,):
            raise ValueError(f"group {self.name}: {labels} widths, but values of shape {value.shape}")
        if self.precisions and len(self.precisions) != labels:
            raise ValueError(f"group {self.name}: {labels} widths, but {len(self.precisions)} precisions")
        parts = [self.labels_of(precision) for precision in dict.fromkeys(self.precisions)]
        for part in parts or [list(range(labels))]:
            widths = [self.widths[i] for i in part]
            worth = value[[i for i in part if self.widths[i] or not self.precisions]]
            if not widths or widths[0] < 0 or any(b <= a for a, b in pairwise(widths)):
                raise ValueError(f"group {self.name}: widths must be ascending and not negative, not {self.widths}")
            if not np.isfinite(value[part]).all() or (np.diff(worth) < 0).any():
                raise ValueError(f"group {self.name}: values must be finite and must not decrease with the width")

    def labels_of(self, precision: str) -> list[int]:
        """The labels of a precision; what is removed has none, and is among those of each."""
        return [i for i, each in enumerate(self.precisions) if each == precision or not self.widths[i]]

    def precision(self, label: int) -> str:
        """The precision of a label; empty if there is no choice."""
        return self.precisions[label] if self.precisions else ""


@dataclass(frozen=True, eq=False)
class KernelCost:
    """What one kernel costs at each label of the groups it depends on.

    Parameters
    ----------
    groups
        Names of none, one or two groups: none for a cost that no choice changes, two for a kernel that reads
        one group and writes the other. The same name twice is a kernel that reads and writes one group.
    cost
        One axis a group, following the labels of its `GroupChoice`. Any unit, the same as the resource's budget.
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
    """One kernel's cost with its groups as positions, no position twice."""

    groups: tuple[int, ...]
    cost: FloatArray

    def at(self, plan: Plan) -> float:
        """Cost of the kernel under a plan."""
        return float(self.cost[tuple(plan[group] for group in self.groups)])

    def along(self, group: int, plan: Plan) -> FloatArray:
        """Cost at every label of `group`, the other group as in the plan."""
        where: tuple[int | slice, ...] = tuple(slice(None) if g == group else plan[g] for g in self.groups)
        return np.asarray(self.cost[where])


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
        The groups and what each of their labels is worth.
    costs
        Kernels by resource, for example ``{"latency_ms": [...], "parameters": [...]}``.
    together
        Groups that are removed only together: if one has the width 0, all of them do.
    alike
        Groups that are given one precision, whichever it is; those that are removed do not count.

    Raises
    ------
    ValueError
        If two groups have one name, or a kernel names an unknown group or has another number of labels.
    """

    def __init__(
        self,
        choices: Sequence[GroupChoice],
        costs: Costs,
        together: Sequence[tuple[str, ...]] = (),
        alike: Sequence[tuple[str, ...]] = (),
    ) -> None:
        self.choices = tuple(choices)
        self._position = {choice.name: i for i, choice in enumerate(self.choices)}
        if len(self._position) != len(self.choices):
            raise ValueError("two groups have the same name")
        self.together = tuple(tuple(self._group(name) for name in block) for block in together)
        for block in self.together:
            if any(self.choices[group].widths[0] != 0 for group in block):
                raise ValueError("groups that are removed together need the width 0")
        self.alike = tuple(tuple(self._group(name) for name in block) for block in alike)
        for block in self.alike:
            if not all(self.choices[group].precisions for group in block):
                raise ValueError("groups of one precision need precisions to choose from")
        self.tables = {resource: self._resource(resource, cost) for resource, cost in costs.items()}

    def _group(self, name: str) -> int:
        if name not in self._position:
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
        expected = tuple(len(self.choices[group].widths) for group in groups)
        if kernel.cost.shape != expected:
            raise ValueError(
                f"the {resource} cost of groups {kernel.groups} has shape {kernel.cost.shape}, "
                f"but the groups have {expected} labels"
            )
        if len(groups) == 2 and groups[0] == groups[1]:
            return Table(groups[:1], np.diagonal(kernel.cost))
        return Table(groups, kernel.cost)

    def of_precision(self, precision: str) -> Problem:
        """The same problem with the labels of one precision alone, where a choice has any. What is removed has none."""
        found = self.narrowed(
            choice.labels_of(precision) if precision in choice.precisions else range(len(choice.widths))
            for choice in self.choices
        )
        choices = [
            replace(left, precisions=(precision,) * len(left.widths)) if precision in choice.precisions else left
            for choice, left in zip(self.choices, found.choices, strict=True)
        ]
        return found._of(choices, [range(len(choice.widths)) for choice in choices])

    def narrowed(self, labels: Iterable[Sequence[int]]) -> Problem:
        """The same problem with only some labels of each group, at least one, ascending.

        Groups that are removed together keep the label for it together.
        """
        kept = [list(each) for each in labels]
        choices = [
            replace(
                choice,
                widths=tuple(choice.widths[i] for i in each),
                value=choice.value[each],
                precisions=tuple(choice.precisions[i] for i in each) if choice.precisions else (),
            )
            for choice, each in zip(self.choices, kept, strict=True)
        ]
        return self._of(choices, kept)

    def _of(self, choices: Sequence[GroupChoice], kept: Sequence[Sequence[int]]) -> Problem:
        """The problem of other choices, whose labels cost what some of the labels here do."""

        def costs(tables: Sequence[Table]) -> list[KernelCost]:
            return [
                KernelCost(
                    tuple(choices[group].name for group in table.groups),
                    table.cost[np.ix_(*(kept[group] for group in table.groups))] if table.groups else table.cost,
                )
                for table in tables
            ]

        resources: dict[str, Sequence[KernelCost] | PeakCost] = {
            resource: PeakCost(costs(tables.always), list(map(costs, tables.moments)))
            if tables.moments
            else costs(tables.always)
            for resource, tables in self.tables.items()
        }
        together = [
            names
            for names in (tuple(choices[group].name for group in block) for block in self.together)
            if all(choices[self._position[name]].widths[0] == 0 for name in names)
        ]
        alike = [tuple(choices[group].name for group in block) for block in self.alike]
        return Problem(choices, resources, together, alike)

    def value(self, plan: Plan) -> float:
        """What a plan is worth."""
        return math.fsum(float(choice.value[i]) for choice, i in zip(self.choices, plan, strict=True))

    def spent(self, resource: str, plan: Plan) -> float:
        """What a plan costs; correctly rounded, so that the order of the kernels does not matter."""
        tables = self.tables[resource]
        always = [table.at(plan) for table in tables.always]
        moments = [[table.at(plan) for table in moment] for moment in tables.moments]
        return max((math.fsum([*always, *moment]) for moment in moments), default=math.fsum(always))

    def is_consistent(self, plan: Plan) -> bool:
        """Whether a plan removes together what is removed only together, and gives one precision to what shares one."""
        widths = [choice.widths[i] for choice, i in zip(self.choices, plan, strict=True)]
        given = [choice.precision(i) for choice, i in zip(self.choices, plan, strict=True)]
        return all(len({widths[group] > 0 for group in block}) == 1 for block in self.together) and all(
            len({given[group] for group in block if widths[group]}) <= 1 for block in self.alike
        )

    def fits(self, plan: Plan, budgets: Mapping[str, float]) -> bool:
        """Whether a plan keeps every budget, without any tolerance."""
        return all(self.spent(resource, plan) <= budget for resource, budget in budgets.items())

    def spent_along(self, resource: str, group: int, plan: Plan) -> FloatArray:
        """Cost of the plan with each label of `group` in turn; rounded less carefully than `spent`."""

        def along(tables: Sequence[Table]) -> FloatArray:
            rest = math.fsum(table.at(plan) for table in tables if group not in table.groups)
            varying = (table.along(group, plan) for table in tables if group in table.groups)
            return rest + sum(varying, start=np.zeros(len(self.choices[group].widths)))

        tables = self.tables[resource]
        most = np.max([along(moment) for moment in tables.moments], axis=0) if tables.moments else 0.0
        total: FloatArray = along(tables.always) + most
        return total

    def widest(self) -> Plan:
        """The plan that prunes nothing, in the most exact precision."""
        return tuple(len(choice.widths) - 1 for choice in self.choices)
