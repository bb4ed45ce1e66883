"""Removing whole branches reaches budgets that narrowing cannot; it is predicted without them, and can be saved."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aap_hw.compile.front.partition import partition
from aap_hw.compile.front.removal import removable
from aap_hw.compile.keys.precision import INT8
from aap_hw.compile.library.footprint import peak_bytes
from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import checked_cut
from aap_hw.lut.enumeration import group_candidates
from aap_hw.lut.predicting import predict_us
from aap_hw.policy import Budget
from aap_hw.prune.baseline import baseline, plan_once
from aap_hw.prune.choices import REMOVED_SHARE
from aap_hw.prune.costs import Costs
from aap_hw.prune.planning import Planner
from aap_hw.prune.rounds import prune
from aap_hw.prune.run import RunFolder
from aap_hw.prune.task import PruneSettings, Task
from aap_hw.prune.unreachable import Unreachable
from aap_hw.train.settings import TrainSettings
from tests.compile.running import assert_compiled_equals_pytorch
from tests.graph.branches import Net, OnTokens, TransformerBlock
from tests.synthetic import ORIGIN, few_images, resnet20, table, table_of, this_device

FEW = PruneSettings(rounds=2, calibration_images=8, training=TrainSettings(epochs=1, learning_rate=0.02))
REMOVABLE = {f"layer{stage}.{block}.conv1" for stage, block in ((1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2))}
pytestmark = pytest.mark.usefixtures("quick_baseline")


def task(retrain: bool = False) -> Task:
    return Task(ORIGIN, table(), few_images(), retrain)


def test_a_removed_branch_is_worth_a_fixed_share_of_its_groups_and_never_more_than_its_narrowest_form() -> None:
    dense = baseline(task(), FEW)
    assert {groups[0] for groups in dense.planner.blocks} == REMOVABLE
    random = np.random.default_rng(0)
    scores = {group.name: random.random(group.width) for group in resnet20()[1].groups if not group.frozen}
    alike = replace(dense.planner, sensitivities={})
    with_depth, without = alike.problem(scores, []), replace(alike, blocks=()).problem(scores, [])
    for deep, flat in zip(with_depth.choices, without.choices, strict=True):
        if deep.name in REMOVABLE:
            assert deep.widths == (0, *flat.widths)
            assert deep.value[1:] == pytest.approx(flat.value)
            assert math.exp(deep.value[0]) == pytest.approx(min(REMOVED_SHARE, math.exp(flat.value[0])))
        else:
            assert deep.widths == flat.widths


def test_removal_reaches_what_narrowing_cannot_and_its_kernels_are_not_predicted() -> None:
    narrow = replace(FEW, depth=False)
    with pytest.raises(Unreachable) as refused:
        plan_once(task(), [Budget.parse("5%")], narrow)
    budget = Budget.parse(f"{0.9 * refused.value.smallest}ms")
    dense, plan = plan_once(task(), [budget], FEW)
    removed = {name for name, kept in plan.keep.items() if not kept}
    assert removed
    assert removed <= REMOVABLE
    assert plan.predicted_ms <= budget.amount
    layers = {name.removesuffix(".conv1") for name in removed}
    kernels = {k.name: k for k in resnet20()[2].kernels}
    predicted = [kernels[row.kernel] for row in plan.kernels]
    assert len(predicted) == len(kernels) - 2 * len(removed)
    assert not any((kernel.weight or "").rpartition(".conv")[0] in layers for kernel in predicted)
    assert 0 < plan.kept_attention < 1
    # The compiled network consists of just the kernels that were predicted, at their widths.
    cut = dense.graph.cut(dense.module, plan.keep)
    network = partition(ChannelGraph.trace(cut, (torch.zeros(1, 3, 32, 32),)))
    compiled = [kernel.at(network.dense) for kernel in network.kernels]
    assert compiled == [kernel.at(plan.widths) for kernel in predicted]


def test_branches_of_a_network_in_int8_can_be_removed_too() -> None:
    module, graph, _ = resnet20()
    network, blocks = removable(partition(graph, INT8), graph, graph, INT8)
    # Before a stage's last sum is padded it may be turned into float32, which then the shortcut would be.
    assert REMOVABLE - {"layer1.2.conv1", "layer2.2.conv1"} <= {block.groups[0] for block in blocks} <= REMOVABLE
    widths = {**network.dense, **dict.fromkeys((name for block in blocks[::2] for name in block.groups), 0)}
    cut = graph.cut(module, {name: [] for name, width in widths.items() if width == 0})
    compiled = partition(ChannelGraph.trace(cut, (torch.zeros(1, 3, 32, 32),)), INT8)
    left = [kernel for kernel in network.kernels if not kernel.is_removed(widths)]
    assert [kernel.at(widths) for kernel in left] == [kernel.at(compiled.dense) for kernel in compiled.kernels]


@pytest.mark.slow  # a run of several rounds; the plan above removes the same branches
def test_run_that_removes_branches_can_be_saved_and_loaded_and_its_rounds_go_on_from_it(tmp_path: Path) -> None:
    with pytest.raises(Unreachable) as refused:
        plan_once(task(), [Budget.parse("5%")], replace(FEW, depth=False))
    pruned, summary = prune(task(retrain=True), [Budget.parse(f"{0.85 * refused.value.smallest}ms")], FEW)
    assert summary["predicted_ms"] <= summary["budget_ms"]
    removed = [name for name, kept in pruned.kept.items() if not kept]
    assert removed
    run = RunFolder(tmp_path / "run")
    run.create()
    run.save(pruned, summary)
    loaded = run.load()
    assert loaded.kept == pruned.kept
    images = few_images().tensors("test", (3, 32, 32), np.arange(8))
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), pruned.module.eval()(images), rtol=0, atol=0)
    torch.export.export(loaded.module, (images,))
    assert summary["params_pruned"] == sum(p.numel() for p in loaded.module.parameters())


def test_without_depth_no_branch_is_removed() -> None:
    dense = baseline(task(), replace(FEW, depth=False))
    assert dense.planner.blocks == ()
    assert all(widths[0] > 0 for widths in dense.planner.candidates.values())


def test_plan_without_an_attention_and_an_mlp_is_what_is_compiled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, image = Net(OnTokens(TransformerBlock(), TransformerBlock())).eval(), torch.randn(1, 3, 6, 6)
    graph = ChannelGraph.trace(model, (image,))
    whole = partition(graph)
    network, blocks = removable(whole, graph, graph)
    assert blocks == graph.blocks
    latencies, target = table_of(graph, whole), this_device().target
    removed = {blocks[0].name, blocks[3].name}
    planner = Planner(
        Costs(network, latencies, target=target),
        group_candidates(graph, 4, 8),
        blocks=tuple(block.groups for block in blocks),
        sensitivities={group.name: 1e-6 if group.name in removed else 1.0 for group in graph.groups},
    )
    random = np.random.default_rng(0)
    scores = {group.name: random.random(group.width) for group in graph.groups if not group.frozen}
    without_both = planner.costs.spent({**network.dense, **dict.fromkeys(removed, 0)})
    plan = planner.plan(scores, {"latency": 0.95 * without_both["latency"]})
    assert {name for name, kept in plan.keep.items() if not kept} == removed
    assert any(kept for kept in plan.keep.values())
    smaller = checked_cut(graph, model, plan.keep, image)
    compiled = partition(ChannelGraph.trace(smaller, (image,)))
    kernels = {kernel.name: kernel for kernel in network.kernels}
    predicted = [kernels[row.kernel].at(plan.widths) for row in plan.kernels]
    assert [kernel.at(compiled.dense) for kernel in compiled.kernels] == predicted
    assert plan.spent == {
        "latency": pytest.approx(predict_us(compiled, compiled.dense, latencies) / 1e3),
        "parameters": sum(kernel.parameters(compiled.dense) for kernel in compiled.kernels),
        "flops": sum(kernel.multiply_accumulates(compiled.dense) for kernel in compiled.kernels),
        "memory": peak_bytes(compiled, compiled.dense, target),
    }
    assert_compiled_equals_pytorch(smaller, image, tmp_path)
