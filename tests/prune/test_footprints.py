"""Memory as a cost: what a policy adds up is what the kernels are counted to need, at any choice of widths."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aap_hw.compile.front.network import Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.front.removal import removable
from aap_hw.compile.library.footprint import peak_bytes
from aap_hw.graph import ChannelGraph
from aap_hw.lut.enumeration import group_candidates
from aap_hw.models import zoo
from aap_hw.policy import MEMORY, Budget, GroupChoice, Problem
from aap_hw.prune.baseline import plan_once
from aap_hw.prune.costs import Costs
from aap_hw.prune.footprints import memory_cost
from aap_hw.prune.planning import Planner
from aap_hw.prune.task import PruneSettings, Task
from aap_hw.prune.unreachable import Unreachable
from tests.graph.branches import BODIES, Net
from tests.synthetic import ORIGIN, few_images, resnet20, table, this_device


@cache
def traced(name: str) -> tuple[ChannelGraph, Network]:
    if name == "resnet20":
        return resnet20()[1:]
    if name in BODIES:
        graph = ChannelGraph.trace(Net(BODIES[name][0]()).eval(), (torch.zeros(1, 3, 6, 6),))
        return graph, removable(partition(graph), graph, graph)[0]
    graph = ChannelGraph.trace(zoo.build(name).module, (torch.zeros(1, 3, 64, 64),))
    return graph, partition(graph)


def without_streams(graph: ChannelGraph, candidates: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Without sums of several groups that may be cut, whose costs are only bounds."""
    return {name: widths[-1:] if graph.kinds[name] == "stream" else widths for name, widths in candidates.items()}


@cache
def problem(name: str, removable: tuple[str, ...], granularity: int = 16) -> tuple[Problem, dict[str, tuple[int, ...]]]:
    graph, network = traced(name)
    candidates = group_candidates(graph, granularity, 3)
    if name == "resnet20":
        candidates = without_streams(graph, candidates)
    candidates |= {group: (0, *candidates[group]) for group in removable}
    choices = [
        GroupChoice(group, widths, np.arange(len(widths), dtype=float))
        for group, widths in candidates.items()
        if len(widths) > 1
    ]
    costs = {"memory": memory_cost(network, candidates, this_device().target)}
    return Problem(choices, costs), candidates


@settings(max_examples=25)
@given(
    st.sampled_from(
        [
            ("resnet20", ()),
            ("resnet20", ("layer1.1.conv1", "layer2.1.conv1", "layer3.2.conv1")),
            ("mobilenetv2", ("features.3.conv.0.0", "features.5.conv.0.0")),
            ("timm's", ("body.blocks.0.attn.qkv", "body.blocks.0.mlp.fc1")),
            ("ConvNeXt", ("body.0.mlp.fc1",)),
        ]
    ),
    # With 5, images between a convolution and a depthwise one have gaps.
    st.sampled_from([16, 5]),
    st.integers(0, 2**32),
)
def test_cost_of_any_plan_is_what_its_kernels_are_counted_to_need(
    case: tuple[str, tuple[str, ...]], granularity: int, seed: int
) -> None:
    (here, candidates), network = problem(*case, granularity), traced(case[0])[1]
    random = np.random.default_rng(seed)
    plan = tuple(int(random.integers(len(choice.widths))) for choice in here.choices)
    widths = {name: each[-1] for name, each in candidates.items()}
    widths |= {choice.name: choice.widths[i] for choice, i in zip(here.choices, plan, strict=True)}
    assert here.spent("memory", plan) == peak_bytes(network, widths, this_device().target)


def test_cost_of_a_plan_with_sums_of_groups_is_no_less_than_what_is_needed_and_not_much_more() -> None:
    graph, network = traced("resnet20")
    candidates = group_candidates(graph, 16, 3)
    free = {name: widths for name, widths in candidates.items() if len(widths) > 1}
    choices = [GroupChoice(name, widths, np.arange(len(widths), dtype=float)) for name, widths in free.items()]
    here = Problem(choices, {"memory": memory_cost(network, candidates, this_device().target)})
    random = np.random.default_rng(0)
    for _ in range(20):
        plan = tuple(int(random.integers(len(choice.widths))) for choice in choices)
        widths = {choice.name: choice.widths[i] for choice, i in zip(choices, plan, strict=True)}
        needed = peak_bytes(network, {**network.dense, **widths}, this_device().target)
        assert needed <= here.spent("memory", plan) <= 1.1 * needed


def test_moments_that_never_decide_are_left_out() -> None:
    here, _ = problem("mobilenetv2", ())
    assert 1 <= len(here.tables["memory"].moments) < len(traced("mobilenetv2")[1].kernels) / 2


def test_plan_keeps_a_memory_budget_beside_another_and_names_the_smallest() -> None:
    graph = resnet20()[1]
    candidates = without_streams(graph, group_candidates(graph, 4, 8))
    planner = Planner(Costs(resnet20()[2], table(), target=this_device().target), candidates)
    random = np.random.default_rng(0)
    scores = {group.name: random.random(group.width) for group in resnet20()[1].groups if not group.frozen}
    dense = planner.costs.dense
    plan = planner.plan(scores, {"memory": 0.5 * dense["memory"], "latency": 0.7 * dense["latency"]})
    assert 0.45 * dense["memory"] < plan.spent["memory"] <= 0.5 * dense["memory"]
    assert plan.spent["latency"] <= 0.7 * dense["latency"]
    with pytest.raises(Unreachable) as refused:
        planner.plan(scores, {"memory": 0.01 * dense["memory"]})
    smallest = refused.value.smallest
    assert planner.plan(scores, {"memory": smallest}).spent["memory"] <= smallest
    assert planner.plan(scores, {"flops": 0.5 * dense["flops"]}).spent["memory"] > smallest
    assert "memory" not in replace(planner.costs, target=None).dense


@pytest.mark.usefixtures("quick_baseline")
def test_memory_is_counted_for_the_machine_of_the_table_only_if_it_is_limited() -> None:
    task, few = Task(ORIGIN, table(), few_images()), PruneSettings(calibration_images=8)
    dense, plan = plan_once(task, [Budget.parse("60%", MEMORY)], few)
    assert plan.spent["memory"] <= 0.6 * dense.takes["memory"]
    assert "memory" not in plan_once(task, [Budget.parse("60%")], few)[0].takes
