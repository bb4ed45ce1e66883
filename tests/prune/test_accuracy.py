"""Pruning within an accuracy drop goes on while the accuracy is kept, and undoes exactly the rounds that lose it.

Training is scripted: it gives the accuracies that a test asks for and leaves a mark in the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from aap_hw.errors import UserError
from aap_hw.policy.controller import Controller
from aap_hw.prune import accuracy, training
from aap_hw.prune.accuracy import prune_within
from aap_hw.prune.events import Event
from aap_hw.prune.journal import Journal
from aap_hw.prune.planning import Plan
from aap_hw.prune.steps import State
from aap_hw.prune.task import PruneSettings, Task
from aap_hw.train.loop import TrainResult
from aap_hw.train.settings import TrainSettings
from tests.synthetic import ORIGIN, PretendedDevice, few_images, resnet20, table

# What the scripted training adds to every weight and statistic.
MARK = 1e-3
SETTINGS = PruneSettings(
    rounds=4, depth=False, calibration_images=8, training=TrainSettings(epochs=1, learning_rate=0.02)
)
pytestmark = pytest.mark.usefixtures("quick_baseline")
Script = Callable[[Sequence[float]], list[dict[str, torch.Tensor]]]


@pytest.fixture
def trained_to(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Training gives these accuracies; returned are the weights that each round began to train with."""

    def prepare(accuracies: Sequence[float]) -> list[dict[str, torch.Tensor]]:
        left, begun = iter(accuracies), []

        def train(module: nn.Module, *_: Any, resume_from: object, **__: Any) -> TrainResult:
            # A round has an optimiser of its own, so that none is left of a round that is undone.
            assert resume_from is None
            begun.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
            with torch.no_grad():
                for tensor in module.state_dict().values():
                    tensor.add_(tensor.new_ones(()) if tensor.dtype == torch.int64 else MARK)
                module.linear.bias.fill_(found := next(left))  # type: ignore[operator, union-attr]
            return TrainResult(found, ())

        monkeypatch.setattr(training, "train", train)
        monkeypatch.setattr(training, "evaluate", lambda *_, **__: 95.0)
        return begun

    return prepare


def task(**changes: Any) -> Task:
    return replace(Task(ORIGIN, table(), few_images(), retrain=True), **changes)


def run(drop: float, **changes: Any) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    pruned, summary = prune_within(task(**changes), drop, SETTINGS)
    return pruned, summary, pruned.record["rounds"]


def test_rounds_get_faster_while_the_accuracy_is_kept_and_the_fastest_is_the_result(trained_to: Script) -> None:
    trained_to([94.9, 94.6, 94.8, 94.5])
    pruned, summary, rounds = run(0.5)
    assert all(each["accuracy_kept"] for each in rounds)
    latencies = [each["predicted_ms"] for each in rounds]
    assert latencies == sorted(latencies, reverse=True)
    assert all(each["predicted_ms"] <= each["budget_ms"] for each in rounds)
    assert [each["from_round"] for each in rounds] == [0, 1, 2, 3]
    assert (summary["round"], summary["accuracy_pruned"], summary["accuracy_wanted"]) == (4, 94.5, 94.5)
    assert summary["predicted_ms"] == latencies[-1]
    assert pruned.record["max_accuracy_drop"] == 0.5


def test_round_that_loses_too_much_is_undone_to_the_last_bit(trained_to: Script) -> None:
    begun = trained_to([94.9, 90.0, 94.7, 94.6])
    pruned, summary, rounds = run(0.5)
    assert [each["accuracy_kept"] for each in rounds] == [True, False, True, True]
    assert [each["from_round"] for each in rounds] == [0, 1, 1, 3]
    assert rounds[1]["budget_ms"] < rounds[2]["budget_ms"] < rounds[0]["budget_ms"]
    # What no round cuts is bit for bit what the first round left: trained once, not twice.
    whole = [name for name in begun[1] if name.startswith(("conv1.", "bn1.", "linear."))]
    assert len(whole) >= 6
    assert all(torch.equal(begun[1][name], begun[2][name]) for name in whole)
    dense = resnet20()[0].state_dict()
    assert torch.equal(begun[2]["conv1.weight"], dense["conv1.weight"] + MARK)
    assert float(begun[2]["linear.bias"][0]) == pytest.approx(94.9)
    # Nor is a channel missing that the undone round had cut.
    channels = [sum(state[name].numel() for name in state) for state in begun]
    assert channels[0] > channels[2] > channels[1]
    # The filters that are left are the first round's, trained once; those that both rounds cut were chosen anew.
    for group in pruned.kept:
        before = [(row + MARK).tolist() for row in begun[0][f"{group}.weight"]]
        places = [before.index(row.tolist()) for row in begun[2][f"{group}.weight"]]
        assert places == sorted(set(places))
        assert all(row.tolist() not in before for row in begun[3][f"{group}.weight"])
    assert summary["round"] == 4
    widths = {name: pruned.module.get_submodule(name).weight.shape[0] for name in pruned.kept}
    assert widths == {name: len(channels) for name, channels in pruned.kept.items()}


@pytest.mark.slow  # ten rounds, and the test above undoes one
def test_failing_again_and_again_ends_with_the_fastest_good_round(trained_to: Script) -> None:
    trained_to([94.9, *[90.0] * 9])
    pruned, summary = prune_within(task(), 0.5, replace(SETTINGS, rounds=10))
    rounds = pruned.record["rounds"]
    assert summary["round"] == 1
    assert float(pruned.module.linear.bias.detach()[0]) == pytest.approx(94.9)
    assert [each["from_round"] for each in rounds[:5]] == [0, 1, 1, 1, 1]
    # No round was for nothing: each cut something, and it ended when the steps became too small.
    assert all(each["predicted_ms"] is not None for each in rounds)
    assert len(rounds) < 10


@pytest.mark.slow  # tests/policy/ controls the threshold without a run
def test_papers_threshold_grows_by_its_step_and_is_halved_after_a_failure(trained_to: Script) -> None:
    trained_to([94.9, 94.8, 90.0, 94.7])
    settings = replace(SETTINGS, allocator="threshold")
    pruned, _ = prune_within(task(), 0.5, settings)
    rounds = pruned.record["rounds"]
    first = rounds[0]["threshold"]
    assert first == int(first) >= 1
    assert [each["threshold"] - first for each in rounds] == [0, 1, 2, 1.5]
    assert [each["from_round"] for each in rounds] == [0, 1, 2, 2]
    assert all(each["budget_ms"] is None for each in rounds)
    latencies = [each["predicted_ms"] for each in rounds]
    assert latencies[0] >= latencies[1] >= latencies[2]


def test_no_round_that_keeps_the_accuracy_is_said_with_what_to_do(trained_to: Script) -> None:
    trained_to([90.0, 91.0, 92.0, 93.0])
    with pytest.raises(
        UserError, match=r"4 rounds kept an accuracy of 94\.50 % .*best round: 93\.00 %\); allow a larger"
    ):
        run(0.5)


@pytest.mark.slow  # test_rounds measures in the same way
def test_latency_is_measured_where_there_is_a_device(trained_to: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    trained_to([94.9, 94.8, 90.0, 94.7])
    device = PretendedDevice(monkeypatch, table(), [1.0])
    _, summary, rounds = run(0.5, device=device)
    assert summary["pruned_ms"] == min(each["measured_ms"] for each in rounds if each["accuracy_kept"])
    assert summary["dense_is_measured"]


@pytest.mark.parametrize("drop", [float("nan"), float("inf"), -1.0, 101.0])
def test_drop_that_is_none_is_refused(drop: float) -> None:
    with pytest.raises(UserError, match="0 to 100 percentage points"):
        prune_within(task(), drop, SETTINGS)


def test_accuracy_cannot_be_kept_without_training() -> None:
    with pytest.raises(UserError, match="add --data"):
        prune_within(task(retrain=False), 0.5, SETTINGS)


def test_events_tell_the_story_in_order_and_no_accuracy_below_zero_is_to_be_kept(trained_to: Script) -> None:
    trained_to([94.9, 94.8])
    events: list[Event] = []
    prune_within(task(), 99.5, replace(SETTINGS, rounds=2), events.append)
    assert [event.name for event in events] == ["start", "cut", "round", "cut", "round"]
    assert events[0].figures["accuracy_wanted"] == 0.0


def test_a_plan_that_changes_only_precisions_is_a_step_of_its_own() -> None:
    in_int8 = Plan({"a": 8}, {}, 0.3, {"latency": 0.3}, 0.99, None, 0.0, [], {"a": "int8"}, [])
    mixture = SimpleNamespace(network=SimpleNamespace(is_floating=lambda floats: False))
    costs = SimpleNamespace(mixture=mixture)
    planner: Any = SimpleNamespace(allocator="exact", costs=costs, plan=lambda *_: in_int8)
    nothing: Any = None
    begun = Controller.begin(0.25)
    found = accuracy._plan(State(nothing, nothing, planner), dict, 1.0, begun, 1, Journal())
    assert found == (in_int8, begun)
