"""A plan keeps its budget, the most attended channels and what may not be cut; a budget out of reach is refused.

ResNet-20's groups that may be cut do not touch each other, so that the smallest latency of all plans is known without
a solver: for each group the cheapest of its widths.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aap_hw.compile.front.domains import mixed_network
from aap_hw.compile.front.partition import partition
from aap_hw.graph import ChannelGraph
from aap_hw.lut.enumeration import group_candidates
from aap_hw.lut.file import load_table
from aap_hw.lut.mixed import Labels
from aap_hw.lut.table import MissingKernelError
from aap_hw.models import zoo
from aap_hw.policy import Problem
from aap_hw.prune.costs import Costs
from aap_hw.prune.mixture import Mixture
from aap_hw.prune.planning import Plan, Planner
from aap_hw.prune.unreachable import Unreachable
from tests.synthetic import CALIBRATION, formula_ms, resnet20, table


@cache
def planner() -> Planner:
    """What kernels cost is exact in its program, as no kernel has a sum of several groups that may be cut."""
    _, graph, network = resnet20()
    candidates = {
        name: widths[-1:] if graph.kinds[name] == "stream" else widths
        for name, widths in group_candidates(graph, 4, 8).items()
    }
    return Planner(Costs(network, table(), calibration=CALIBRATION), candidates)


def with_costs(**changed: Any) -> Planner:
    return replace(planner(), costs=replace(planner().costs, **changed))


@cache
def free_groups() -> tuple[str, ...]:
    return tuple(group.name for group in resnet20()[1].groups if not group.frozen)


def random_scores(seed: int, widths: dict[str, int] | None = None) -> dict[str, NDArray[np.float64]]:
    random = np.random.default_rng(seed)
    widths = widths or dict(resnet20()[2].dense)
    return {name: random.lognormal(sigma=1.5, size=widths[name]) for name in free_groups()}


@cache
def smallest_ms() -> float:
    widths = dict(resnet20()[2].dense)
    for name in free_groups():
        costs = {width: formula_ms({**widths, name: width}) for width in planner().candidates[name]}
        widths[name] = min(costs, key=costs.__getitem__)
    return formula_ms(widths)


def reachable(share: float) -> float:
    """A budget between the smallest latency (0) and the dense one (1)."""
    return smallest_ms() + share * (planner().costs.dense["latency"] - smallest_ms())


def check(plan: Plan, scores: dict[str, NDArray[np.float64]], budget: float, limits: dict[str, int]) -> None:
    assert plan.predicted_ms == pytest.approx(formula_ms(plan.widths), rel=1e-12)
    assert plan.predicted_ms <= budget
    assert math.fsum(row.latency_us for row in plan.kernels) * CALIBRATION / 1e3 <= budget
    for group in resnet20()[1].groups:
        width = plan.widths[group.name]
        if group.frozen:
            assert width == group.width
            assert group.name not in plan.keep
            continue
        assert width in planner().candidates[group.name]
        assert width <= limits[group.name]
        kept = plan.keep.get(group.name, list(range(limits[group.name])))
        assert kept == sorted(set(kept))
        assert len(kept) == width
        gone = np.setdiff1d(np.arange(limits[group.name]), kept)
        of_group = scores[group.name]
        assert not gone.size or of_group[kept].min() >= of_group[gone].max()


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), share=st.floats(0.02, 0.98))
def test_plan_keeps_the_budget_and_the_channels_with_most_attention(seed: int, share: float) -> None:
    scores, budget = random_scores(seed), reachable(share)
    check(planner().plan(scores, {"latency": budget}), scores, budget, dict(resnet20()[2].dense))


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), first=st.floats(0.4, 0.9), second=st.floats(0.02, 0.9))
def test_no_width_exceeds_that_of_an_earlier_round(seed: int, first: float, second: float) -> None:
    before = planner().plan(random_scores(seed), {"latency": reachable(first)}).widths
    scores, budget = random_scores(seed + 1, before), reachable(first * second)
    check(planner().plan(scores, {"latency": budget}, before), scores, budget, before)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), share=st.floats(0.02, 0.98), calibration=st.floats(0.5, 2))
def test_budget_that_is_exactly_what_a_plan_takes_is_kept_by_a_plan_as_good(
    seed: int, share: float, calibration: float
) -> None:
    calibrated, scores = with_costs(calibration=calibration), random_scores(seed)
    found = calibrated.plan(scores, {"latency": reachable(share) * calibration / CALIBRATION})
    again = calibrated.plan(scores, {"latency": found.predicted_ms * (1 + 1e-11)})
    assert again.predicted_ms <= found.predicted_ms * (1 + 1e-11)
    assert again.kept_attention >= found.kept_attention * (1 - 1e-2)


def test_group_that_the_answer_depends_on_is_narrowed_less() -> None:
    scores, budget = random_scores(7), {"latency": reachable(0.3)}
    alike, name = planner().plan(scores, budget), "layer3.0.conv1"
    assert alike.widths[name] < resnet20()[2].dense[name]
    sensitivities = {group: 20.0 if group == name else 1.0 for group in free_groups()}
    plan = replace(planner(), sensitivities=sensitivities).plan(scores, budget)
    check(plan, scores, budget["latency"], dict(resnet20()[2].dense))
    assert plan.widths[name] > alike.widths[name]
    # Only their ratios count.
    scaled = {group: 7e-3 * each for group, each in sensitivities.items()}
    assert replace(planner(), sensitivities=scaled).plan(scores, budget).widths == plan.widths
    chosen = [group for group in free_groups() if len(planner().candidates[group]) > 1]
    kept = {g: 1.0 if g not in plan.keep else scores[g][plan.keep[g]].sum() / scores[g].sum() for g in chosen}
    mean = sum(sensitivities[g] * math.log(kept[g]) for g in kept) / sum(sensitivities[g] for g in kept)
    assert plan.kept_attention == pytest.approx(math.exp(mean))


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), share=st.floats(0.1, 0.98))
def test_threshold_keeps_the_budget_too_and_no_more_attention_than_the_exact_choice(seed: int, share: float) -> None:
    scores, budget = random_scores(seed), reachable(share)
    by_threshold = replace(planner(), allocator="threshold").plan(scores, {"latency": budget})
    check(by_threshold, scores, budget, dict(resnet20()[2].dense))
    assert by_threshold.gap is None
    assert by_threshold.kept_attention <= planner().plan(scores, {"latency": budget}).kept_attention * (1 + 1e-3)


def test_threshold_is_weighted_by_what_is_limited_unless_told_otherwise() -> None:
    scores, by_threshold = random_scores(5), replace(planner(), allocator="threshold")

    def widths(budgets: dict[str, float], weights: str | None = None) -> dict[str, int]:
        return replace(by_threshold, threshold_weights=weights).plan(scores, budgets).widths

    half = {name: amount / 2 for name, amount in planner().costs.dense.items()}
    for name in ("latency", "flops", "parameters"):
        assert widths({name: half[name]}) == widths({name: half[name]}, weights=name)
    assert widths({"flops": half["flops"]}) != widths({"flops": half["flops"]}, weights="parameters")


def test_a_group_without_scores_stays_as_wide_as_it_is() -> None:
    scores = random_scores(5)
    before = planner().plan(scores, {"latency": reachable(0.6)}).widths
    lost = next(name for name in scores if before[name] < resnet20()[2].dense[name])
    left = {name: each for name, each in random_scores(6, before).items() if name != lost}
    plan = planner().plan(left, {"latency": reachable(0.4)}, before)
    assert plan.widths[lost] == before[lost]
    assert lost not in plan.keep
    assert plan.keep


def test_more_time_never_keeps_less_attention() -> None:
    scores = random_scores(3)
    budgets = [{"latency": reachable(share)} for share in (0.1, 0.3, 0.5, 0.7, 0.9, 1.001)]
    kept = [planner().plan(scores, budget).kept_attention for budget in budgets]
    assert kept == sorted(kept)
    assert kept[-1] == 1.0


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), share=st.floats(0.2, 0.9))
def test_kernels_of_sums_of_groups_keep_a_budget_within_which_no_group_can_be_wider(seed: int, share: float) -> None:
    everything = replace(planner(), candidates=group_candidates(resnet20()[1], 4, 8))
    budget = share * everything.costs.dense["latency"]
    plan = everything.plan(random_scores(seed), {"latency": budget})
    assert plan.predicted_ms == pytest.approx(formula_ms(plan.widths))
    assert plan.predicted_ms <= budget
    for name, widths in everything.candidates.items():
        wider = [width for width in widths if width > plan.widths[name]]
        assert not wider or formula_ms({**plan.widths, name: wider[0]}) > budget


def test_what_lines_above_the_costs_of_sums_leave_of_a_budget_is_spent() -> None:
    """Kernels of a real table do not grow by the same amount with every channel."""
    costs = Costs(resnet20()[2], load_table(Path(__file__).parents[2] / "lut" / "rpi4.json"))
    here, scores = Planner(costs, group_candidates(resnet20()[1], 4, 8)), random_scores(1)
    budget = 0.5 * costs.dense["latency"]
    plan = here.plan(scores, {"latency": budget})
    assert 0.98 * budget <= plan.predicted_ms <= budget
    # By the lines alone, that would be far too much.
    lines = here.problem(scores, ["latency"])
    labels = tuple(choice.widths.index(plan.widths[choice.name]) for choice in lines.choices)
    assert lines.spent("latency", labels) > 1.02 * budget * 1e3
    with pytest.raises(Unreachable) as refused:
        here.plan(scores, {"latency": 0.1 * budget})
    assert here.plan(scores, {"latency": refused.value.smallest}).predicted_ms <= refused.value.smallest


def test_plans_of_a_curve_are_those_of_their_budgets_alone() -> None:
    scores, budgets = random_scores(4), [{"latency": reachable(share)} for share in (0.2, -0.1, 0.7)]
    low, refusal, high = planner().curve(scores, budgets)
    assert isinstance(refusal, Unreachable)
    for budget, found in ((budgets[0], low), (budgets[2], high)):
        assert isinstance(found, Plan)
        assert found.widths == planner().plan(scores, budget).widths


def test_kernel_of_a_mixture_that_a_table_lacks_is_measured_in_mixed_precision() -> None:
    mixture = Mixture(mixed_network(resnet20()[1]))
    with pytest.raises(MissingKernelError, match=r"no kernel '.*int8.*--model NAME --precision mixed'"):
        with_costs(mixture=mixture).plan(random_scores(0), {"latency": reachable(0.5)})


def test_rounding_a_domain_is_paid_once_in_units_of_the_mean_sensitivity() -> None:
    network = mixed_network(resnet20()[1])
    mixture = Mixture(network, {name: {"int8": 1.0 + at} for at, name in enumerate(network.domains)})
    everything = replace(with_costs(mixture=mixture), candidates=group_candidates(resnet20()[1], 4, 8))
    choices = everything._choices(random_scores(0), None)
    made = [(each, choices._choice(each, 2.0).value) for each in choices.labels]
    rounded, exact = (
        sum(float(value[each.each.index((len(each.widths) - 1, p))]) for each, value in made if each.domain)
        for p in (0, 1)
    )
    assert max(sum(other.domain == each.domain for other, _ in made) for each, _ in made) > 1
    assert exact - rounded == pytest.approx(sum(1.0 + at for at in range(len(network.domains))) / 2)


@pytest.mark.parametrize("half", [0.11, 1e6])
def test_a_branch_may_go_whose_rounding_to_half_costs_more_than_to_int8(half: float) -> None:
    network = mixed_network(resnet20()[1], "mixed:int8,half")
    name, domain = next((name, domain) for name, domain in network.domains.items() if domain.groups)
    mixture = Mixture(network, {name: {"int8": 0.1, network.half: half}})
    choices = with_costs(mixture=mixture)._choices({domain.groups[0]: np.ones(1024)}, None)
    made = choices._choice(Labels(domain.groups[0], (0, 16, 1024), ("int8", "half"), name), None)
    in_int8, in_half = (loss / sum(each.domain == name for each in choices.labels) for loss in (0.1, half))
    shares = np.log([16 / 1024, 1.0])
    assert made.value == pytest.approx([shares[0] - in_int8, *(shares - in_int8), *(shares - in_half)])
    assert Problem([made], {}).of_precision("half").choices[0].widths == (0, 16, 1024)


def test_smallest_reachable_latency_is_named_and_can_be_asked_for_and_less_cannot() -> None:
    scores = random_scores(0)
    with pytest.raises(Unreachable) as refused:
        planner().plan(scores, {"latency": smallest_ms() / 2})
    assert refused.value.smallest == pytest.approx(smallest_ms(), rel=1e-9)
    match = re.search(r"the smallest reachable latency is ([\d.]+) ms \(([\d.]+)% of", str(refused.value))
    assert match is not None
    named_ms, named_share = float(match[1]), float(match[2])
    assert smallest_ms() <= named_ms <= 1.01 * smallest_ms()
    for budget in (named_ms, named_share / 100 * planner().costs.dense["latency"]):
        assert planner().plan(scores, {"latency": budget}).predicted_ms <= budget
    held_back = replace(planner(), limits=("--skip x", "--no-depth"))
    with pytest.raises(Unreachable, match=r"allow at least that, or leave out --skip x --no-depth$"):
        held_back.plan(scores, {"latency": smallest_ms() * (1 - 1e-6)})


@pytest.mark.slow  # long searches; tests/policy/ keeps several on small problems
@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**32), latency=st.floats(0.3, 0.9), parameters=st.floats(0.3, 0.9), flops=st.floats(0.3, 0.9)
)
def test_several_budgets_are_kept_at_once(seed: int, latency: float, parameters: float, flops: float) -> None:
    dense = planner().costs.dense
    budgets = {
        "latency": reachable(latency),
        "parameters": parameters * dense["parameters"],
        "flops": flops * dense["flops"],
    }
    scores = random_scores(seed)
    plan = planner().plan(scores, budgets)
    network = resnet20()[2]
    counted = {
        "latency": formula_ms(plan.widths),
        "parameters": sum(kernel.parameters(plan.widths) for kernel in network.kernels),
        "flops": sum(kernel.multiply_accumulates(plan.widths) for kernel in network.kernels),
    }
    assert plan.spent == pytest.approx(counted, rel=1e-12)
    assert all(plan.spent[name] <= amount for name, amount in budgets.items())
    for name in budgets:
        alone = planner().plan(scores, {name: budgets[name]})
        assert alone.kept_attention >= plan.kept_attention * (1 - 1e-3)
        assert alone.spent[name] <= budgets[name]


def test_count_that_a_plan_takes_exactly_can_be_asked_for() -> None:
    found = planner().plan(random_scores(1), {"parameters": 0.5 * planner().costs.dense["parameters"]})
    again = planner().plan(random_scores(1), {"parameters": found.spent["parameters"]})
    assert again.kept_attention >= found.kept_attention * (1 - 1e-3)


def test_of_several_budgets_the_smallest_reachable_of_each_is_listed() -> None:
    narrowest = {name: widths[0] for name, widths in planner().candidates.items()}
    fewest, dense = planner().costs.spent(narrowest), planner().costs.dense
    budgets = {"latency": smallest_ms() / 2, "parameters": 1e3, "flops": 0.9 * dense["flops"]}
    with pytest.raises(Unreachable) as refused:
        planner().plan(random_scores(0), budgets)
    heading, *rows = refused.value.details
    assert heading.split("  ")[-1] == "smallest reachable alone"
    assert [row.split()[0] for row in rows] == ["latency", "parameters", "flops"]
    for row in rows:
        name = row.split()[0]
        share = re.search(r"\(([\d.]+)% of the unpruned network\)", row)
        assert share is not None
        least = smallest_ms() if name == "latency" else fewest[name]
        assert least <= float(share[1]) / 100 * dense[name] <= 1.02 * least


def test_plan_is_never_slower_than_the_unpruned_network() -> None:
    latencies = table()
    for points in latencies.points.values():
        widest = max(points)
        for widths, point in points.items():
            # Half as many channels take twice as long, as if they were badly aligned.
            slow = 2.0 if widths < widest else 1.0
            points[widths] = replace(point, latency_us=point.latency_us * slow)
    slower = with_costs(table=latencies)
    plan = slower.plan(random_scores(0), {"parameters": 0.6 * slower.costs.dense["parameters"]})
    assert plan.predicted_ms <= slower.costs.dense["latency"]


def test_smallest_reachable_count_is_named() -> None:
    narrowest = {name: widths[0] for name, widths in planner().candidates.items()}
    fewest = planner().costs.spent(narrowest)["parameters"]
    with pytest.raises(
        Unreachable, match=rf"the smallest reachable parameters is {fewest:.0f} parameters \("
    ) as refused:
        planner().plan(random_scores(0), {"parameters": 100.0})
    assert (refused.value.resource, refused.value.smallest, refused.value.given) == ("parameters", fewest, ())


@pytest.mark.parametrize(
    "name", ["resnet20", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenetv2", "resnet18"))]
)
def test_parameters_of_the_kernels_are_those_of_the_network_cut_or_not(name: str) -> None:
    zoo_model = zoo.build(name)
    graph = ChannelGraph.trace(zoo_model.module, (torch.zeros(1, *zoo_model.input_shape),))
    network = partition(graph)

    def total(widths: dict[str, int]) -> int:
        return sum(kernel.parameters(widths) for kernel in network.kernels)

    assert total(dict(network.dense)) == sum(p.numel() for p in zoo_model.module.parameters())
    keep = {group.name: list(range(0, group.width, 2)) for group in graph.groups if not group.frozen}
    cut = graph.cut(zoo_model.module, keep)
    widths = {**network.dense, **{name: len(kept) for name, kept in keep.items()}}
    assert total(widths) == sum(p.numel() for p in cut.parameters())


def test_network_without_any_choice_left_is_unreachable_or_the_plan_itself() -> None:
    narrowest = {name: widths[0] for name, widths in planner().candidates.items()}
    scores, latency = random_scores(0, narrowest), formula_ms(narrowest)
    plan = planner().plan(scores, {"latency": 1.001 * latency}, narrowest)
    assert (plan.widths, plan.keep, plan.kept_attention) == (narrowest, {}, 1.0)
    with pytest.raises(Unreachable):
        planner().plan(scores, {"latency": 0.9 * latency}, narrowest)


def test_smallest_share_that_is_named_is_of_the_latency_that_shares_are_of() -> None:
    measured = with_costs(unpruned_ms=0.9 * planner().costs.dense["latency"])
    with pytest.raises(Unreachable) as refused:
        measured.plan(random_scores(0), {"latency": smallest_ms() / 2})
    named = re.search(r"\(([\d.]+)% of", str(refused.value))
    assert named is not None
    share = float(named[1]) / 100
    assert measured.plan(random_scores(0), {"latency": share * measured.costs.dense["latency"]}).predicted_ms > 0
