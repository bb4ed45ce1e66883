"""The exact allocation equals brute force on 500 random instances with everything that a problem may have, either way.

One to four budget rows, one of which is a peak over moments; groups that can be removed, alone or together; and labels
of both kinds, widths alone or in two precisions, which some groups share. The brute force shares no code with the
package: it looks every cost up in the kernels as they are given. Less general instances, with the messages and edge
cases, are in `test_allocation`.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aap_hw.policy import GroupChoice, Infeasible, KernelCost, PeakCost, Problem, allocate, pricing

RESOURCES = ("latency", "parameters", "flops", "memory")
PRECISIONS = ("int8", "fp32")
EXACT = 1e-9


@dataclass
class Instance:
    choices: list
    costs: dict
    together: list
    alike: list
    budgets: dict

    def problem(self):
        return Problem(self.choices, self.costs, self.together, self.alike)

    def plans(self):
        """(position by name, value, spent by resource) of every plan that may be."""
        by_name = {choice.name: choice for choice in self.choices}
        for positions in itertools.product(*(range(len(choice.widths)) for choice in self.choices)):
            at = {choice.name: i for choice, i in zip(self.choices, positions, strict=True)}
            if any(len({by_name[name].widths[at[name]] == 0 for name in block}) > 1 for block in self.together):
                continue
            left = [[name for name in block if by_name[name].widths[at[name]]] for block in self.alike]
            if any(len({by_name[name].precisions[at[name]] for name in block}) > 1 for block in left):
                continue
            yield at, math.fsum(choice.value[at[choice.name]] for choice in self.choices), self.spent(at)

    def chosen(self, found):
        """The positions that an allocation names."""
        return {
            choice.name: next(
                i
                for i, width in enumerate(choice.widths)
                if width == found.widths[choice.name]
                and (not choice.precisions or choice.precisions[i] == found.precisions[choice.name])
            )
            for choice in self.choices
        }

    def spent(self, at):
        def looked_up(kernels):
            return [kernel.cost[tuple(at[name] for name in kernel.groups)] for kernel in kernels]

        found = {}
        for resource, cost in self.costs.items():
            if isinstance(cost, PeakCost):
                always = looked_up(cost.always)
                found[resource] = max(math.fsum([*always, *looked_up(moment)]) for moment in cost.moments)
            else:
                found[resource] = math.fsum(looked_up(cost))
        return found


def labels(rng, is_mixed):
    """Widths, values and precisions of the labels of a group, which may have two precisions and be removable."""
    parts = []
    for precision in PRECISIONS if is_mixed else ("",):
        widths = np.sort(rng.choice(np.arange(1, 30), size=rng.integers(1, 3 if is_mixed else 4), replace=False))
        widths = [0, *widths.tolist()] if not parts and rng.random() < 0.5 else widths.tolist()
        value = np.sort(rng.integers(0, 5, len(widths)) if rng.random() < 0.3 else rng.random(len(widths)) * 3 - 2)
        parts.append((widths, value, [precision] * len(widths) if is_mixed else []))
    widths, values, precisions = (list(itertools.chain(*each)) for each in zip(*parts, strict=True))
    if widths[0] == 0:  # rounding may cost more than the removal
        values[0] = rng.random() * 3 - 2 if is_mixed and rng.random() < 0.5 else min(values)
    return tuple(widths), np.array(values), tuple(precisions)


def instance(seed, rows):
    rng = np.random.default_rng([seed, rows])
    choices = [GroupChoice(f"g{g}", *labels(rng, rng.random() < 0.5)) for g in range(rng.integers(1, 5))]
    removable = [choice.name for choice in choices if choice.widths[0] == 0]
    together = [tuple(removable)] if len(removable) > 1 and rng.random() < 0.7 else []
    mixed = [choice.name for choice in choices if choice.precisions]
    alike = [tuple(mixed)] if len(mixed) > 1 and rng.random() < 0.4 else []
    sizes = {choice.name: len(choice.widths) for choice in choices}

    def kernels(most):
        made = []
        for _ in range(rng.integers(1, most)):
            groups = tuple(rng.choice(list(sizes), size=rng.integers(0, 3)).tolist())
            shape = tuple(sizes[name] for name in groups)
            kind = rng.integers(3)
            cost = (
                rng.random(shape)
                if kind == 0
                else rng.integers(0, 4, shape).astype(float)
                if kind == 1
                else 10.0 ** rng.uniform(-4, 1, shape)
            )
            made.append(KernelCost(groups, cost))
        return made

    costs = {name: kernels(7) for name in RESOURCES[: rows - 1]}
    costs[RESOURCES[rows - 1]] = PeakCost(kernels(4), [kernels(4) for _ in range(rng.integers(1, 5))])
    made = Instance(choices, costs, together, alike, {})
    spent = [each for _, _, each in made.plans()]
    for resource in costs:
        amounts = sorted(each[resource] for each in spent)
        # Often exactly what some plan costs, where the smallest rounding error decides.
        made.budgets[resource] = amounts[rng.integers(len(amounts))] * (
            1 if rng.random() < 0.5 else rng.uniform(0.8, 1.2)
        )
    return made


def fits(spent, budgets):
    return all(spent[resource] <= budget for resource, budget in budgets.items())


# test_allocation and test_fitting solve programs, too.
@pytest.fixture(params=["branching", pytest.param("program", marks=pytest.mark.slow)])
def search(request, monkeypatch):
    """Either search, whatever the groups' links."""
    monkeypatch.setattr(pricing, "MOST_ENTRIES", math.inf if request.param == "branching" else 0)


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_allocation_equals_brute_force(search, seed, rows):
    given_ = instance(seed, rows)
    plans = list(given_.plans())
    values = [value for _, value, spent in plans if fits(spent, given_.budgets)]
    if not values:
        with pytest.raises(Infeasible) as refused:
            allocate(given_.problem(), given_.budgets, relative_gap=0)
        met = {name: given_.budgets[name] for name in refused.value.given}
        least = min(spent[refused.value.resource] for _, _, spent in plans if fits(spent, met))
        assert refused.value.smallest == pytest.approx(least, rel=EXACT, abs=EXACT)
        return
    found = allocate(given_.problem(), given_.budgets, relative_gap=0)
    assert found.value == pytest.approx(max(values), rel=1e-8, abs=1e-8)
    assert found.bound >= max(values) - EXACT
    at = given_.chosen(found)
    assert any(at == each for each, _, _ in plans)
    assert found.spent == given_.spent(at)
    assert fits(found.spent, given_.budgets)


@settings(max_examples=100)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_no_group_of_the_result_can_be_made_wider_without_a_loss(seed, rows):
    given_ = instance(seed, rows)
    plans = list(given_.plans())
    if not any(fits(spent, given_.budgets) for _, _, spent in plans):
        return
    found = given_.chosen(allocate(given_.problem(), given_.budgets, relative_gap=0))
    for at, _, spent in plans:
        differing = [choice for choice in given_.choices if at[choice.name] != found[choice.name]]
        if len(differing) == 1:
            (choice,) = differing
            new, old = at[choice.name], found[choice.name]
            if choice.widths[new] > choice.widths[old] and choice.value[new] >= choice.value[old]:
                assert not fits(spent, given_.budgets)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 4), st.floats(1, 1.5))
def test_more_of_any_budget_and_more_precisions_never_give_less_value(seed, rows, factor):
    given_ = instance(seed, rows)
    problem = given_.problem()
    try:
        less = allocate(problem, given_.budgets, relative_gap=0)
    except Infeasible:
        return
    for resource in given_.budgets:
        more = {**given_.budgets, resource: given_.budgets[resource] * factor}
        assert allocate(problem, more, relative_gap=0).value >= less.value - EXACT
    for precision in PRECISIONS:
        try:
            alone = allocate(problem.of_precision(precision), given_.budgets, relative_gap=0)
        except Infeasible:
            continue
        assert alone.value <= less.value + EXACT
        assert {*alone.precisions.values()} <= {precision}


def test_what_is_removed_together_stays_so_where_rounding_it_costs_more():
    choices = [GroupChoice(name, (0, 8), np.array([-1.0, -5.0]), ("half", "half")) for name in "ab"]
    costs = {"latency": [KernelCost(("a", "b"), np.ones((2, 2)))]}
    problem = Problem(choices, costs, [("a", "b")])
    assert allocate(problem, {"latency": 9.0}).widths == {"a": 0, "b": 0}
