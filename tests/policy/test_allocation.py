"""The chosen widths are the best that fit: compared with every possible plan, counted out one by one.

The brute force here shares no code with the package: it looks every cost up in the kernels as they are given.
"""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aap_hw import policy
from aap_hw.policy import (
    GroupChoice,
    Infeasible,
    KernelCost,
    Problem,
    Undecided,
    candidate_widths,
    kept_share,
    pricing,
)
from aap_hw.policy.pairwise_milp import Answer, PairwiseProgram

EXACT = 1e-9


def allocate(choices, costs, budgets, **options):
    return policy.allocate(Problem(choices, costs), budgets, **options)


def random_instance(rng, resources):
    """1 to 4 groups of 1 to 4 widths; kernels of all kinds, some with steps and dips instead of slopes."""
    choices = []
    for g in range(rng.integers(1, 5)):
        widths = np.sort(rng.choice(np.arange(1, 40), size=rng.integers(1, 5), replace=False))
        value = np.sort(rng.integers(0, 6, widths.size) if rng.random() < 0.3 else rng.random(widths.size))
        choices.append(GroupChoice(f"g{g}", tuple(widths.tolist()), value))
    costs = {resource: random_kernels(rng, choices) for resource in resources}
    return choices, costs


def random_kernels(rng, choices):
    kernels = []
    for _ in range(rng.integers(1, 8)):
        ends = rng.choice(len(choices), size=rng.integers(0, 3), replace=True)
        shape = tuple(len(choices[g].widths) for g in ends)
        kind = rng.integers(3)
        if kind == 0:
            cost = rng.random(shape)
        elif kind == 1:
            cost = rng.integers(0, 4, shape).astype(float)
        else:
            cost = 10.0 ** rng.uniform(-4, 1, shape)
        kernels.append(KernelCost(tuple(choices[g].name for g in ends), cost))
    return kernels


def every_plan(choices, costs):
    """(widths by name, value, spent by resource) of every plan there is."""
    for positions in itertools.product(*(range(len(choice.widths)) for choice in choices)):
        at = {choice.name: i for choice, i in zip(choices, positions, strict=True)}
        widths = {choice.name: choice.widths[at[choice.name]] for choice in choices}
        value = math.fsum(choice.value[at[choice.name]] for choice in choices)
        yield widths, value, {resource: total(kernels, at) for resource, kernels in costs.items()}


def total(kernels, at):
    return math.fsum(kernel.cost[tuple(at[name] for name in kernel.groups)] for kernel in kernels)


def spent_anew(choices, costs, widths):
    at = {choice.name: choice.widths.index(widths[choice.name]) for choice in choices}
    return {resource: total(kernels, at) for resource, kernels in costs.items()}


def fits(spent, budgets):
    return all(spent[resource] <= budget for resource, budget in budgets.items())


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("block", range(5))
def test_allocation_equals_brute_force(rows, block):
    outcomes = {"found": 0, "none": 0}
    for seed in range(20 * block, 20 * block + 20):
        rng = np.random.default_rng([seed, rows])
        resources = ["latency_ms", "parameters"][:rows]
        choices, costs = random_instance(rng, resources)
        plans = list(every_plan(choices, costs))
        budgets = {}
        for resource in resources:
            amounts = sorted(spent[resource] for _, _, spent in plans)
            # Often exactly what some plan costs, where the smallest rounding error decides.
            budgets[resource] = amounts[rng.integers(len(amounts))] * (
                1 if rng.random() < 0.5 else rng.uniform(0.8, 1.2)
            )
        values = [value for _, value, spent in plans if fits(spent, budgets)]
        try:
            found = allocate(choices, costs, budgets, relative_gap=0)
        except Infeasible:
            outcomes["none"] += 1
            assert not values
            continue
        outcomes["found"] += 1
        assert found.value == pytest.approx(max(values), rel=EXACT, abs=EXACT)
        assert found.bound >= found.value
        assert found.gap == pytest.approx(0, abs=1e-6)
        assert found.spent == spent_anew(choices, costs, found.widths)
        assert fits(found.spent, budgets)
    assert outcomes["found"] >= 5
    assert outcomes["none"] + outcomes["found"] == 20


@pytest.mark.parametrize("rows", [1, 2])
def test_what_is_out_of_reach_names_the_smallest_amount_in_reach(rows):
    seen = {"alone": 0, "together": 0}
    for seed in range(60):
        rng = np.random.default_rng([seed, rows, 7])
        resources = ["latency_ms", "parameters"][:rows]
        choices, costs = random_instance(rng, resources)
        plans = [spent for _, _, spent in every_plan(choices, costs)]
        least = {resource: min(spent[resource] for spent in plans) for resource in resources}
        # With one row just below the reachable; with two, each just within reach, so that often not both.
        budgets = {resource: amount * (0.9 if rows == 1 else 1.02) for resource, amount in least.items()}
        if any(fits(spent, budgets) for spent in plans):
            continue
        with pytest.raises(Infeasible) as caught:
            allocate(choices, costs, budgets)
        refusal = caught.value
        met = {resource: budgets[resource] for resource in refusal.given}
        reachable = min(spent[refusal.resource] for spent in plans if fits(spent, met))
        assert refusal.smallest == pytest.approx(reachable, rel=EXACT, abs=EXACT)
        assert refusal.smallest > refusal.budget == budgets[refusal.resource]
        assert refusal.resource in str(refusal)
        seen["together" if refusal.given else "alone"] += 1
        # The promise must hold: with the amount it names there is a plan.
        assert fits(allocate(choices, costs, met | {refusal.resource: refusal.smallest}).spent, met)
    assert seen["alone" if rows == 1 else "together"] >= 10


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_more_budget_never_gives_less_value(seed, low, high):
    choices, costs = random_instance(np.random.default_rng(seed), ["latency_ms"])
    amounts = sorted(spent["latency_ms"] for _, _, spent in every_plan(choices, costs))
    smaller, larger = (amounts[0] + share * (amounts[-1] - amounts[0]) for share in sorted((low, high)))
    less = allocate(choices, costs, {"latency_ms": smaller}, relative_gap=0)
    more = allocate(choices, costs, {"latency_ms": larger}, relative_gap=0)
    assert more.value >= less.value - EXACT


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from([0.0, 1e-4, 0.05, 0.5]))
def test_no_group_of_the_result_could_be_wider(seed, share, relative_gap):
    choices, costs = random_instance(np.random.default_rng(seed), ["latency_ms", "parameters"])
    amounts = sorted(spent["latency_ms"] for _, _, spent in every_plan(choices, costs))
    budgets = {"latency_ms": amounts[0] + share * (amounts[-1] - amounts[0])}
    found = allocate(choices, costs, budgets, relative_gap=relative_gap)
    for choice in choices:
        for width in choice.widths:
            if width > found.widths[choice.name]:
                wider = spent_anew(choices, costs, found.widths | {choice.name: width})
                assert not fits(wider, budgets)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from([1e-3, 0.05, 0.5]))
def test_the_gap_that_is_reported_is_true(seed, share, relative_gap):
    choices, costs = random_instance(np.random.default_rng(seed), ["latency_ms"])
    plans = list(every_plan(choices, costs))
    amounts = sorted(spent["latency_ms"] for _, _, spent in plans)
    budgets = {"latency_ms": amounts[0] + share * (amounts[-1] - amounts[0])}
    best = max(value for _, value, spent in plans if fits(spent, budgets))
    found = allocate(choices, costs, budgets, relative_gap=relative_gap)
    assert found.bound >= best - EXACT
    assert found.value >= best - relative_gap * abs(best) - EXACT


def one_group(value, latency, **others):
    choices = [GroupChoice("g", (8, 16, 24, 32), np.array(value, dtype=float))]
    tables = {"latency_ms": latency} | others
    return choices, {resource: [KernelCost(("g",), np.array(cost, dtype=float))] for resource, cost in tables.items()}


def test_on_a_flat_stair_more_channels_win_even_if_they_are_worth_nothing():
    choices, costs = one_group(value=[1, 1, 1, 1], latency=[1, 2, 2, 3])
    assert allocate(choices, costs, {"latency_ms": 2.5}).widths == {"g": 24}
    assert allocate(choices, costs, {"latency_ms": 1.5}).widths == {"g": 8}


def test_on_a_stair_that_dips_the_wider_and_faster_width_wins():
    choices, costs = one_group(value=[0, 1, 1, 2], latency=[1, 4, 3, 9])
    assert allocate(choices, costs, {"latency_ms": 4}).widths == {"g": 24}


def test_wider_at_the_same_latency_must_still_keep_the_other_budget():
    choices, costs = one_group(value=[1, 1, 1, 1], latency=[1, 1, 1, 1], parameters=[8, 16, 24, 32])
    found = allocate(choices, costs, {"latency_ms": 1, "parameters": 20})
    assert found.widths == {"g": 16}


def test_costs_without_a_budget_are_reported_and_do_not_decide():
    choices, costs = one_group(value=[1, 2, 3, 4], latency=[1, 2, 3, 4], parameters=[8, 16, 24, 32])
    found = allocate(choices, costs, {"latency_ms": 3})
    assert found.widths == {"g": 24}
    assert found.spent == {"latency_ms": 3, "parameters": 24}


def test_a_budget_that_is_no_limit_prunes_nothing():
    choices, costs = one_group(value=[1, 2, 3, 4], latency=[1, 2, 3, 4])
    for budgets in ({}, {"latency_ms": math.inf}, {"latency_ms": 4.0}):
        found = allocate(choices, costs, budgets)
        assert found.widths == {"g": 32}
        assert found.gap == 0


def test_a_kernel_that_reads_and_writes_one_group_costs_what_its_diagonal_says():
    cost = np.full((4, 4), 100.0)
    np.fill_diagonal(cost, [1, 2, 3, 4])
    choices = [GroupChoice("g", (8, 16, 24, 32), np.arange(4.0))]
    found = allocate(choices, {"latency_ms": [KernelCost(("g", "g"), cost)]}, {"latency_ms": 3})
    assert found.widths == {"g": 24}
    assert found.spent == {"latency_ms": 3}


def test_a_network_in_which_nothing_can_be_cut_is_judged_by_its_fixed_cost():
    costs = {"latency_ms": [KernelCost((), np.array(3.0)), KernelCost((), np.array(4.0))]}
    assert allocate([], costs, {"latency_ms": 7}).spent == {"latency_ms": 7}
    with pytest.raises(Infeasible) as caught:
        allocate([], costs, {"latency_ms": 6.9})
    assert caught.value.smallest == 7


def test_the_amount_in_the_message_is_enough_when_typed():
    choices, costs = one_group(value=[1, 2, 3, 4], latency=[1.00000049, 2, 3, 4])
    with pytest.raises(Infeasible, match="smallest reachable is") as caught:
        allocate(choices, costs, {"latency_ms": 0.5})
    typed = float(str(caught.value).split("reachable is ")[1].split(";")[0])
    assert typed == 1.00001
    assert allocate(choices, costs, {"latency_ms": typed}).widths == {"g": 8}


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e9])
def test_the_unit_of_a_resource_does_not_matter(scale):
    choices, costs = mobilenet_like(np.random.default_rng(3), at_most=3)
    scaled = {"latency": [KernelCost(k.groups, k.cost * scale) for k in costs["latency_ms"]]}
    budget = 0.5 * allocate(choices, costs, {}).spent["latency_ms"]
    plain = allocate(choices, costs, {"latency_ms": budget}, relative_gap=0)
    found = allocate(choices, scaled, {"latency": budget * scale}, relative_gap=0)
    assert found.value == pytest.approx(plain.value, rel=1e-8)
    assert found.spent["latency"] <= budget * scale


def mobilenet_like(rng, at_most):
    """25 groups and 52 kernels, 33 of them between two groups, wired as in MobileNetV2."""
    choices, kernels = [], []

    def group(width):
        widths = candidate_widths(width, 8, at_most)
        scores = rng.gamma(1.5, size=width)
        choices.append(GroupChoice(f"g{len(choices)}", widths, kept_share(scores, widths)))
        return choices[-1]

    def kernel(macs_per_channel, *groups):
        vectors = [np.ceil(np.array(g.widths) / 16) for g in groups]
        cost = vectors[0] if len(groups) == 1 else np.outer(np.array(groups[0].widths), vectors[1])
        noise = 1 + 0.05 * rng.random(cost.shape)
        kernels.append(KernelCost(tuple(g.name for g in groups), 1e-3 + macs_per_channel * cost * noise))

    side, stream = 112, group(32)
    kernel(side**2 * 2e-6, stream)
    blocks_of = {16: (1, 1), 24: (2, 2), 32: (3, 2), 64: (4, 2), 96: (3, 1), 160: (3, 2), 320: (1, 1)}
    for width, (blocks, stride) in blocks_of.items():
        expansion = 1 if width == 16 else 6
        out = group(width)
        for block in range(blocks):
            inner = stream if expansion == 1 else group(6 * stream.widths[-1])
            if expansion > 1:
                kernel(side**2 * 1e-6, stream, inner)
            side //= stride if block == 0 else 1
            kernel(side**2 * 9e-6, inner)
            kernel(side**2 * 1e-6, inner, out)
            stream = out
    last = group(1280)
    kernel(side**2 * 1e-6, stream, last)
    kernel(2e-5, last)
    return choices, {"latency_ms": kernels}


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
def test_a_mobilenet_is_solved_to_the_gap_that_was_asked_for(share):
    choices, costs = mobilenet_like(np.random.default_rng(0), at_most=10)
    assert len(choices) == 25
    assert len(costs["latency_ms"]) == 53
    budget = share * allocate(choices, costs, {}).spent["latency_ms"]
    found = allocate(choices, costs, {"latency_ms": budget}, relative_gap=1e-3)
    assert found.gap <= 1e-3
    assert budget * 0.97 < spent_anew(choices, costs, found.widths)["latency_ms"] <= budget


@pytest.mark.parametrize("time_limit_s", [0, 1e-9])  # of the program, and of the search that is quick
def test_when_time_is_short_the_result_fits_and_its_gap_is_honest(time_limit_s):
    choices, costs = mobilenet_like(np.random.default_rng(1), at_most=16)
    budget = 0.4 * allocate(choices, costs, {}).spent["latency_ms"]
    best = allocate(choices, costs, {"latency_ms": budget}, relative_gap=1e-3)
    hasty = allocate(choices, costs, {"latency_ms": budget}, relative_gap=0, time_limit_s=time_limit_s)
    assert hasty.spent["latency_ms"] <= budget
    assert hasty.bound >= best.value
    assert hasty.value * (1 + hasty.gap) >= best.value - EXACT
    assert hasty.gap > 1e-3, "the search went on when its time was over"


def test_a_plan_that_only_the_solvers_rounding_lets_pass_is_not_taken(monkeypatch):
    def lenient(program, limits, **settings):
        return strict(program, {name: limit * (1 + 5e-9) for name, limit in limits.items()}, **settings)

    strict = PairwiseProgram.most_value
    monkeypatch.setattr(pricing, "MOST_ENTRIES", 0)
    monkeypatch.setattr(PairwiseProgram, "most_value", lenient)
    wide = {"a": (7, 6), "b": (5, 4.9), "c": (5, 4.9), "d": (11, 10 * (1 + 2e-9))}  # value, latency
    choices = [GroupChoice(name, (8, 16), np.array([0, value])) for name, (value, _) in wide.items()]
    kernels = [KernelCost((name,), np.array([0, latency])) for name, (_, latency) in wide.items()]
    found = allocate(choices, {"latency_ms": kernels}, {"latency_ms": 10.0})
    # d alone is worth most and overspends by 2e-8; taking the most valuable that fits, a, would leave 7.
    assert found.widths == {"a": 8, "b": 16, "c": 16, "d": 8}
    assert found.bound >= found.value == 10


def test_without_time_to_find_or_exclude_a_plan_no_answer_is_made_up():
    choices, costs = mobilenet_like(np.random.default_rng(1), at_most=16)
    with pytest.raises(Undecided, match="allow more time"):
        allocate(choices, costs, {"latency_ms": 1e-6}, time_limit_s=0)
    with pytest.raises(Infeasible):
        allocate(choices, costs, {"latency_ms": 1e-6})


def test_a_plan_that_overspends_is_no_proof_when_the_search_was_stopped(monkeypatch):
    monkeypatch.setattr(pricing, "MOST_ENTRIES", 0)
    choices, costs = one_group(value=[1, 2, 3, 4], latency=[3, 1, 2, 4])

    def stopped(program, resource, limits, *, time_limit_s):
        return Answer(plan=(2,), bound=0.0, stopped=True)

    def nothing(program, limits, *, relative_gap, time_limit_s):
        return Answer(plan=None, bound=math.inf, stopped=True)

    monkeypatch.setattr(PairwiseProgram, "least_cost", stopped)
    monkeypatch.setattr(PairwiseProgram, "most_value", nothing)
    with pytest.raises(Undecided):
        allocate(choices, costs, {"latency_ms": 1.5})


def test_groups_costs_and_budgets_must_belong_together():
    choices, costs = one_group(value=[1, 2, 3, 4], latency=[1, 2, 3, 4])
    with pytest.raises(ValueError, match="budget for energy, but no costs"):
        allocate(choices, costs, {"energy": 1})
    with pytest.raises(ValueError, match="not a number"):
        allocate(choices, costs, {"latency_ms": math.nan})
    with pytest.raises(ValueError, match="same name"):
        allocate([*choices, *choices], costs, {"latency_ms": 1})
    with pytest.raises(ValueError, match="no choice"):
        allocate([], costs, {"latency_ms": 1})
    with pytest.raises(ValueError, match="labels"):
        allocate(choices, {"latency_ms": [KernelCost(("g",), np.ones(3))]}, {"latency_ms": 1})


@pytest.mark.parametrize(
    ("widths", "value"),
    [((), []), ((-8, 8), [1, 2]), ((16, 8), [1, 2]), ((8, 16), [1]), ((8, 16), [2, 1]), ((8,), [math.nan])],
)
def test_choices_that_make_no_sense_are_refused(widths, value):
    with pytest.raises(ValueError, match="group g: "):
        GroupChoice("g", widths, np.array(value, dtype=float))


@pytest.mark.parametrize("bad", [np.ones(2), np.ones((2, 2, 2)), np.array([[1.0, math.inf]])])
def test_costs_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match="kernel of groups"):
        KernelCost(("a", "b"), bad)
