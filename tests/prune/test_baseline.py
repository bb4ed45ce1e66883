"""What every policy starts from, the unpruned network and its table; what cannot lead anywhere is refused.

The table's latencies follow a formula, so that the network's is known without it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.key import SCHEDULES, KernelKey
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import CutMismatchError
from aap_hw.graph.cut import surgery
from aap_hw.inputs import Inputs
from aap_hw.lut.enumeration import group_candidates, points_of
from aap_hw.lut.table import LatencyPoint, MissingKernelError
from aap_hw.models.origin import Origin
from aap_hw.policy import FLOPS, PARAMETERS, Budget
from aap_hw.prune.baseline import Baseline, amounts, baseline, plan_once
from aap_hw.prune.task import PruneSettings, Task
from tests.synthetic import CALIBRATION, ORIGIN, few_images, formula_ms, latency_us, resnet20, table

FEW = PruneSettings(calibration_images=8)


@pytest.mark.usefixtures("quick_baseline")
def test_dense_latency_is_the_measured_one_of_the_table_and_calibrates_it() -> None:
    dense, plan = plan_once(Task(ORIGIN, table(), few_images()), [Budget.parse("60%")], FEW)
    assert dense.measured
    assert dense.dense_ms == table().dense_ms("resnet20", Inputs.of((3, 32, 32)))
    assert dense.planner.costs.calibration == pytest.approx(CALIBRATION, rel=1e-3)
    assert 0.5 * dense.dense_ms < plan.predicted_ms <= 0.6 * dense.dense_ms


@pytest.mark.usefixtures("quick_baseline")
def test_table_without_the_whole_network_predicts_its_latency() -> None:
    latencies = table()
    latencies.validation.clear()
    dense = baseline(Task(ORIGIN, latencies, few_images()))
    assert not dense.measured
    assert dense.dense_ms == pytest.approx(formula_ms(dict(resnet20()[2].dense), 1.0), rel=1e-12)


@pytest.mark.parametrize(
    ("origin", "size"),
    [(Origin.of("resnet20", (3, 40, 40)), "3x40x40"), (Origin.of("resnet18", (3, 64, 64)), "")],
)
def test_table_of_another_input_size_or_model_is_refused_with_what_it_holds_and_what_to_do(
    origin: Origin, size: str
) -> None:
    with pytest.raises(MissingKernelError) as refused:
        baseline(Task(origin, table(), few_images()))
    sentence = str(refused.value)
    assert f"not of {origin.model} at {size}" in sentence
    assert "but of resnet20 at 3x32x32" in sentence
    assert f"aap-hw profile --device x86 --model {origin.model} --input" in sentence
    lacking = re.search(r"lacks (\d+) of (\d+) kernels, the first is '([^']+)'", sentence)
    assert lacking is not None
    assert KernelKey.parse(lacking[3]) not in table().points


def test_table_of_another_version_that_lacks_kernels_is_not_said_to_be_of_another_network() -> None:
    older = table(schedules=SCHEDULES - 1)
    del older.points[next(iter(older.points))]
    with pytest.raises(MissingKernelError) as refused:
        baseline(Task(ORIGIN, older, few_images()))
    assert str(refused.value).startswith(
        "the latency table of x86 was measured with another version of aap-hw: it lacks 1 of"
    )
    assert "measure another one with 'aap-hw profile --device x86 --model resnet20 --input 3x32x32'" in str(
        refused.value
    )


@pytest.mark.usefixtures("quick_baseline")
def test_one_kernel_missing_is_named() -> None:
    latencies = table()
    lost = max(latencies.points)
    del latencies.points[lost]
    with pytest.raises(
        MissingKernelError, match="of x86 was measured before resnet20 or aap-hw changed: it lacks 1 of "
    ) as refused:
        baseline(Task(ORIGIN, latencies, few_images()))
    assert str(lost) in str(refused.value)


@pytest.mark.slow  # a network of 56 layers is traced
def test_table_of_resnet20_serves_resnet56_which_has_the_same_kernels() -> None:
    dense = baseline(Task(Origin.of("resnet56", (3, 32, 32)), table(), few_images()))
    assert dense.dense_ms > 2.5 * formula_ms(dict(resnet20()[2].dense), 1.0)


@pytest.mark.parametrize("provenance", ["emulated", "estimated"])
@pytest.mark.usefixtures("quick_baseline")
def test_table_that_was_not_measured_is_refused_unless_allowed(provenance: str) -> None:
    task = Task(ORIGIN, table(provenance=provenance), few_images())
    other = {"emulated": "estimated", "estimated": "emulated"}[provenance]
    for refused in (task, replace(task, **{f"allow_{other}": True})):
        with pytest.raises(UserError, match=f"{provenance}, not measured .* --allow-{provenance}"):
            plan_once(refused, [Budget.parse("60%")], FEW)
    plan_once(replace(task, **{f"allow_{provenance}": True}), [Budget.parse("60%")], FEW)


@pytest.mark.parametrize("text", ["100%", "5ms", "1s"])
def test_budget_that_the_unpruned_network_meets_needs_no_pruning(text: str) -> None:
    with pytest.raises(UserError, match="nothing needs pruning"):
        amounts([Budget.parse(text)], unpruned(latency=4.9))


def test_budgets_of_counts_that_the_unpruned_network_meets_need_no_pruning_either() -> None:
    with pytest.raises(UserError, match=r"takes 2e\+06 parameters and the budget is 3e\+06; ask for less"):
        amounts([Budget.parse("3M", PARAMETERS)], unpruned(parameters=2e6))


def test_budget_that_is_met_unpruned_is_left_out_beside_one_that_is_not() -> None:
    budgets = [Budget.parse("50%"), Budget.parse("3M", PARAMETERS)]
    assert amounts(budgets, unpruned(latency=4.0, parameters=2e6)) == {"latency": 2.0}


@pytest.mark.usefixtures("quick_baseline")
def test_network_that_would_be_cut_wrongly_is_refused_before_it_is_measured_or_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = surgery._shorten

    def faulty(smaller: torch.nn.Module, name: str, dim: int, removed: Any) -> None:
        is_first = (name, dim) == ("layer1.0.conv1.weight", 0)
        real(smaller, name, dim, (removed + 1) % 16 if is_first else removed)

    monkeypatch.setattr(surgery, "_shorten", faulty)
    for later in ("dependence_of", "_described"):
        monkeypatch.setattr(f"aap_hw.prune.baseline.{later}", lambda *_: pytest.fail("it was refused too late"))
    with pytest.raises(CutMismatchError, match=r"cutting the channel group 'layer1\.0\.conv1'"):
        baseline(Task(ORIGIN, table(), few_images()))


def test_two_budgets_of_one_resource_are_refused() -> None:
    with pytest.raises(UserError, match="one budget of each resource"):
        amounts([Budget.parse("30%"), Budget.parse("2ms")], unpruned(latency=4.9))


def test_shares_and_amounts_are_of_what_the_unpruned_network_takes() -> None:
    budgets = [Budget.parse("50%"), Budget.parse("25%", FLOPS), Budget.parse("100k", PARAMETERS)]
    allowed = amounts(budgets, unpruned(latency=4.0, flops=8e6, parameters=3e5))
    assert allowed == {"latency": 2.0, "flops": 2e6, "parameters": 1e5}


def unpruned(**takes: float) -> Baseline:
    return cast(Baseline, SimpleNamespace(takes=takes, provenance="measured"))


def test_network_without_a_group_to_cut_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Origin, "build", lambda self: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).eval())
    with pytest.raises(UserError, match="no channel group that may be cut: '0' reaches the network's output"):
        baseline(Task(ORIGIN, table(), few_images()))


TOKENS = """
import torch
from torch import nn

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 48))
        self.inner, self.outer, self.head = nn.Linear(48, 96), nn.Linear(96, 48), nn.Linear(48, 5)

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.patches(x).flatten(2).transpose(1, 2)], 1)
        return self.head((x + self.outer(torch.relu(self.inner(x))))[:, 0])
"""


def test_groups_that_are_left_alone_have_the_kernels_that_were_measured(tmp_path: Path) -> None:
    """Where tokens lie behind one another depends on the number of channels: that is part of a copy's key."""
    (tmp_path / "tokens.py").write_text(TOKENS)
    origin = Origin.of(f"{tmp_path / 'tokens.py'}:Tokens", (3, 8, 8))
    graph = ChannelGraph.trace(origin.build(), origin.inputs.zeros())
    network = partition(graph)
    latencies = table()
    latencies.points.clear()
    for address in points_of(network, group_candidates(graph, 16, 3)):
        latencies.add(address.key, LatencyPoint(address.widths, latency_us(address), 0.1, 20))
    dense = baseline(Task(origin, latencies, few_images()), replace(FEW, skip=("kind:embedding",)))
    assert {group.name: bool(group.frozen) for group in dense.graph.groups} == {
        "patches": True, "inner": False, "head": True,
    }  # fmt: skip
    assert [kernel.key for kernel in dense.network.kernels] == [kernel.key for kernel in network.kernels]
