"""The choice of labels as a mixed-integer linear program for HiGHS.

Covers the formulation and its numerical scaling. What is asked of it, and what to make of the answers, is
decided in `aap_hw.policy.allocation`.

A binary x[g, i] says that group g gets its i-th label, which is a width, or a width and a precision; those of a group
add up to 1. The cost of a kernel of two groups depends on a product of two binaries; y[i, j] >= 0 stands for
x[g, i] * x[h, j] and is tied to it by its marginals: the sum of y[i, j] over j is x[g, i], over i it is x[h, j]. Once x
is integral this leaves y no freedom, so y may be continuous; before, it is the tightest relaxation that looks at one
pair at a time. All kernels of one pair of groups share one y, whatever their resource.

A resource of which the largest of several moments counts has one more variable, which no moment exceeds. Groups that
are removed together have equal binaries for the width 0. Of groups that share one precision, each has a label of it
only if all others have, or are removed. Nothing else is said of precisions: a kernel that turns one into another costs
something at some labels of two groups and nothing at others, and so is a kernel like all others.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise, permutations

import numpy as np
import scipy.sparse as sp
from scipy.optimize import Bounds, LinearConstraint, milp

from aap_hw.policy.problem import FloatArray, Plan, Problem, Table

_SCALE = 1e3
"""Largest amount of any row or objective after scaling. HiGHS forgives absolute errors of 1e-6, which are
then 1e-9 of the whole, while a kernel of a millionth of the whole still has a coefficient that it can see."""

_STOPPED, _INFEASIBLE = 1, 2  # scipy.optimize.milp's status: out of time, no solution exists


@dataclass(frozen=True)
class Answer:
    """What the solver found.

    Parameters
    ----------
    plan
        The best plan found, None if there is none.
    bound
        No plan has a higher value (a lower cost, when a cost was minimised).
    stopped
        Whether the time ran out, so that something better or anything at all may exist.
    """

    plan: Plan | None
    bound: float
    stopped: bool


@dataclass(frozen=True, eq=False)
class _Amount:
    """``constant + coefficients @ variables``, and the size of number to expect of it."""

    coefficients: FloatArray
    constant: float
    size: float


class PairwiseProgram:
    """Variables and rows for one problem, built once and solved for any objective and limits."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        sizes = [len(choice.widths) for choice in problem.choices]
        self._starts = [0, *accumulate(sizes)]
        pairs = {
            tuple(sorted(table.groups))
            for tables in problem.tables.values()
            for table in tables
            if len(table.groups) == 2
        }
        self._pair_start: dict[tuple[int, ...], int] = {}
        end = self._starts[-1]
        for g, h in sorted(pairs):
            self._pair_start[g, h] = end
            end += sizes[g] * sizes[h]
        self._peak: dict[str, int] = {}
        for resource, tables in problem.tables.items():
            if tables.moments:
                self._peak[resource] = end
                end += 1
        self._variables = end
        self._amounts: dict[str, _Amount] = {}
        rows = _Rows(end)
        self._add_choices(rows)
        for (g, h), start in self._pair_start.items():
            y = start + np.arange(sizes[g] * sizes[h]).reshape(sizes[g], sizes[h])
            for group, each in ((g, y), (h, y.T)):
                for position, partners in enumerate(each):
                    rows.add([*partners, self._starts[group] + position], [*[1.0] * len(partners), -1.0], 0.0, 0.0)
        for resource, tables in problem.tables.items():
            self._amounts[resource] = self._amount(tables.always)
            if tables.moments:
                self._add_peak(rows, resource)
        self._rows = rows.constraint()

    def most_value(self, limits: Mapping[str, float], *, relative_gap: float, time_limit_s: float) -> Answer:
        """The plan of the highest value within the limits, or one within `relative_gap` of it."""
        objective = np.zeros(self._variables)
        for group, choice in enumerate(self._problem.choices):
            objective[self._starts[group] : self._starts[group + 1]] = -choice.value
        size = sum(float(np.abs(choice.value).max()) for choice in self._problem.choices)
        answer = self._solve(_Amount(objective, 0.0, size or 1.0), limits, relative_gap, time_limit_s)
        return Answer(answer.plan, -answer.bound, answer.stopped)

    def least_cost(self, resource: str, limits: Mapping[str, float], *, time_limit_s: float) -> Answer:
        """The plan that needs least of one resource within the limits on the others."""
        return self._solve(self._amounts[resource], limits, 0.0, time_limit_s)

    def _solve(
        self, objective: _Amount, limits: Mapping[str, float], relative_gap: float, time_limit_s: float
    ) -> Answer:
        if not self._variables:
            return Answer((), objective.constant, stopped=False)
        rows = [self._rows]
        for resource, limit in limits.items():
            amount = self._amounts[resource]
            scale = _SCALE / amount.size
            row = sp.csr_array(amount.coefficients[np.newaxis] * scale)
            rows.append(LinearConstraint(row, -np.inf, (limit - amount.constant) * scale))
        scale = _SCALE / objective.size
        with _silent_output():
            result = milp(
                objective.coefficients * scale,
                constraints=rows,
                integrality=np.arange(self._variables) < self._starts[-1],
                bounds=Bounds(0, 1),
                options={"mip_rel_gap": relative_gap, "time_limit": time_limit_s},
            )
        if result.status not in (0, _STOPPED, _INFEASIBLE):
            raise RuntimeError(f"HiGHS gave up on the choice of labels: {result.message}")
        bound = result.mip_dual_bound
        bound = -math.inf if bound is None or math.isnan(bound) else bound / scale + objective.constant
        if result.x is None:
            return Answer(None, bound, result.status == _STOPPED)
        plan = tuple(int(np.argmax(result.x[a:b])) for a, b in pairwise(self._starts))
        return Answer(plan, bound, result.status == _STOPPED)

    def _add_choices(self, rows: _Rows) -> None:
        """One label for each group; what is removed together; what is of one precision."""
        for start, end in pairwise(self._starts):
            rows.add(range(start, end), [1.0] * (end - start), 1.0, 1.0)
        for first, *others in self._problem.together:
            for other in others:
                rows.add([self._starts[first], self._starts[other]], [1.0, -1.0], 0.0, 0.0)
        for block in self._problem.alike:
            for one, other in permutations(block, 2):
                for precision in dict.fromkeys(self._problem.choices[one].precisions):
                    ours, theirs = self._labels(one, precision), self._labels(other, precision)
                    theirs += [i for i in self._removed(other) if i not in theirs]
                    ours = [i for i in ours if i not in self._removed(one)]
                    rows.add([*ours, *theirs], [*[1.0] * len(ours), *[-1.0] * len(theirs)], -np.inf, 0.0)

    def _removed(self, group: int) -> list[int]:
        """The variable of the label that removes a group, if there is one."""
        return [self._starts[group]] if self._problem.choices[group].widths[0] == 0 else []

    def _labels(self, group: int, precision: str) -> list[int]:
        """Variables of the labels of a group that are of a precision."""
        chosen = self._problem.choices[group].precisions
        return [self._starts[group] + i for i, each in enumerate(chosen) if each == precision]

    def _add_peak(self, rows: _Rows, resource: str) -> None:
        """No moment exceeds the resource's own variable, which is a share of the most that any can need."""
        moments = [self._amount(moment) for moment in self._problem.tables[resource].moments]
        most = max(moment.constant + moment.size for moment in moments)
        for moment in moments:
            used = np.flatnonzero(moment.coefficients)
            entries = [*(moment.coefficients[used] / most), -1.0]
            rows.add([*used, self._peak[resource]], entries, -np.inf, -moment.constant / most)
        always = self._amounts[resource]
        always.coefficients[self._peak[resource]] = most
        self._amounts[resource] = _Amount(always.coefficients, always.constant, always.size + most)

    def _amount(self, tables: Sequence[Table]) -> _Amount:
        coefficients = np.zeros(self._variables)
        constant, size = [], 0.0
        for table in tables:
            if not table.groups:
                constant.append(float(table.cost))
                continue
            pair = tuple(sorted(table.groups))
            cost = table.cost if pair == table.groups else table.cost.T
            start = self._pair_start[pair] if len(pair) == 2 else self._starts[pair[0]]
            coefficients[start : start + cost.size] += cost.ravel()
            size += float(np.abs(cost).max())
        return _Amount(coefficients, math.fsum(constant), size or 1.0)


class _Rows:
    """Rows of a sparse matrix with their limits, as they are added."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._columns: list[int] = []
        self._entries: list[float] = []
        self._ends = [0]
        self._low: list[float] = []
        self._high: list[float] = []

    def add(self, columns: Iterable[int], entries: Iterable[float], low: float, high: float) -> None:
        """One row: ``low <= entries @ variables[columns] <= high``."""
        self._columns += columns
        self._entries += entries
        self._ends.append(len(self._columns))
        self._low.append(low)
        self._high.append(high)

    def constraint(self) -> LinearConstraint:
        """All rows, for the solver."""
        shape = (len(self._low), self._width)
        matrix = sp.csr_array((np.array(self._entries), np.array(self._columns), np.array(self._ends)), shape=shape)
        return LinearConstraint(matrix, np.array(self._low), np.array(self._high))


@contextmanager
def _silent_output() -> Iterator[None]:
    """Drop what HiGHS writes to standard output, which a caller may need for JSON: some of it no option turns off.

    For the whole process, so that nothing else may print meanwhile.
    """
    library = ctypes.CDLL(None)
    library.fflush(None)
    try:
        saved = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        library.fflush(None)
        os.dup2(saved, 1)
        os.close(saved)
