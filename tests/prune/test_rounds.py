"""A run approaches its budget in rounds, learns from the device, keeps the best round that fits, and says what it did.

The device is pretended unless said otherwise: it knows each network's latency from the table and a factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.inputs import Inputs
from aap_hw.lut.enumeration import group_candidates
from aap_hw.models import zoo
from aap_hw.models.origin import Origin
from aap_hw.policy import PARAMETERS, Budget
from aap_hw.prune import rounds, training
from aap_hw.prune.baseline import Baseline
from aap_hw.prune.events import Event
from aap_hw.prune.journal import Journal
from aap_hw.prune.rounds import prune
from aap_hw.prune.run import compose
from aap_hw.prune.steps import ATTEMPTS
from aap_hw.prune.task import PruneSettings, Task
from aap_hw.prune.unreachable import Unreachable
from aap_hw.train.loop import TrainResult
from aap_hw.train.settings import TrainSettings
from tests.synthetic import ORIGIN, PretendedDevice, few_images, formula_ms, resnet20, table

HALF = Budget.parse("50%")
TINY = PruneSettings(rounds=2, depth=False, calibration_images=8, training=TrainSettings(epochs=1, learning_rate=0.02))

pytestmark = pytest.mark.usefixtures("quick_baseline")


def task(**changes: Any) -> Task:
    return replace(Task(ORIGIN, table(), few_images()), **changes)


def same_state(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- cuts of cuts -----------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.data())
def test_composed_indices_pick_what_two_picks_in_a_row_pick(width: int, data: st.DataObject) -> None:
    def pick(of: int) -> list[int]:
        return sorted(data.draw(st.sets(st.integers(0, of - 1), min_size=1)))

    first = {"a": pick(width)}
    second = {"a": pick(len(first["a"])), "b": pick(width)}
    channels = np.arange(width) * 7
    both = compose(compose({}, first, {"a": width, "b": width}), second, {"a": width, "b": width})
    assert np.array_equal(channels[both["a"]], channels[first["a"]][second["a"]])
    assert np.array_equal(channels[both["b"]], channels[second["b"]])


def test_two_cuts_are_one_cut_of_their_composition() -> None:
    module, graph, network = resnet20()
    random = np.random.default_rng(1)
    free = [group for group in graph.groups if not group.frozen]
    first = {g.name: sorted(random.choice(g.width, g.width * 3 // 4, replace=False).tolist()) for g in free[:6]}
    once = graph.cut(module, first)
    again = ChannelGraph.trace(once, (torch.zeros(1, 3, 32, 32),))
    second = {g.name: sorted(random.choice(g.width, g.width // 2, replace=False).tolist()) for g in free[3:]}
    second = {name: [i for i in kept if i < again.widths[name]] for name, kept in second.items()}
    twice = again.cut(once, second)
    both = compose(compose({}, first, network.dense), second, network.dense)
    assert same_state(twice, graph.cut(module, both))


# ---- no data ----------------------------------------------------------------------------------------------------


def test_without_training_there_is_one_round_and_the_weights_are_those_of_the_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "train", None)
    monkeypatch.setattr(training, "evaluate", None)
    before = {name: tensor.clone() for name, tensor in resnet20()[0].state_dict().items()}
    events: list[Event] = []
    pruned, summary = prune(task(), [HALF], TINY, events.append)
    assert [event.name for event in events] == ["start", "cut", "round"]
    assert summary["retrained"] is False
    assert summary["pruned_ms"] is summary["accuracy_dense"] is summary["accuracy_pruned"] is None
    assert summary["predicted_ms"] <= summary["budget_ms"] == pytest.approx(0.5 * summary["dense_ms"])
    module, graph, _ = resnet20()
    assert same_state(pruned.module, graph.cut(module, pruned.kept))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_sizes_of_the_summary_are_those_of_the_networks() -> None:
    pruned, summary = prune(task(), [HALF], TINY)

    def macs(module: nn.Module) -> int:
        found = 0

        def count(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            nonlocal found
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                found += output.numel() * layer.weight[0].numel()

        hooks = [layer.register_forward_hook(count) for layer in module.modules()]
        module(torch.zeros(1, 3, 32, 32))
        for hook in hooks:
            hook.remove()
        return found

    for which, module in (("dense", resnet20()[0]), ("pruned", pruned.module)):
        assert summary[f"macs_{which}"] == macs(module)
        assert summary[f"params_{which}"] == sum(p.numel() for p in module.parameters())


# ---- on the device ----------------------------------------------------------------------------------------------


def run_on(
    monkeypatch: pytest.MonkeyPatch, factors: Sequence[float], budget: Budget = HALF
) -> tuple[PretendedDevice, dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    device = PretendedDevice(monkeypatch, table(), factors)
    events: list[Event] = []
    pruned, summary = prune(task(device=device), [budget], TINY, events.append)
    (record,) = pruned.record["rounds"]
    widths = {name: len(kept) for name, kept in pruned.kept.items()}
    measured = [event.figures for event in events if event.name == "measured"]
    last = next(w for w, m in zip(device.brought, measured, strict=True) if m["measured_ms"] == summary["pruned_ms"])
    assert {name: width for name, width in last.items() if width != resnet20()[2].dense[name]} == widths
    return device, summary, record, measured


def test_plan_that_is_fast_enough_at_once_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    device, summary, record, measured = run_on(monkeypatch, [0.99])
    assert len(measured) == 1
    assert record["budget_met"]
    assert summary["pruned_ms"] == pytest.approx(0.99 * formula_ms(device.brought[0]))
    assert summary["dense_ms"] == pytest.approx(formula_ms(dict(resnet20()[2].dense)))
    assert summary["dense_is_measured"]


def test_device_that_is_slower_than_the_table_says_is_learned_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    device, summary, record, measured = run_on(monkeypatch, [1.1])
    first, second = measured
    assert not first["budget_met"]
    assert first["measured_ms"] == pytest.approx(1.1 * first["predicted_ms"])
    assert (
        second["predicted_ms"]
        == pytest.approx(second["measured_ms"])
        == pytest.approx(1.1 * formula_ms(device.brought[1]))
    )
    assert second["measured_ms"] <= summary["budget_ms"]
    assert record["budget_met"]
    assert summary["pruned_ms"] == second["measured_ms"]


def test_budget_that_a_faster_device_leaves_unspent_is_spent_on_more_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    device, summary, record, measured = run_on(monkeypatch, [0.8])
    assert len(measured) == 2
    assert all(m["budget_met"] for m in measured)
    assert sum(device.brought[1].values()) > sum(device.brought[0].values())
    assert summary["pruned_ms"] == measured[1]["measured_ms"] > measured[0]["measured_ms"]
    assert record["predicted_ms"] == measured[1]["predicted_ms"]


def test_plan_that_met_the_budget_is_kept_if_a_wider_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    _, summary, record, measured = run_on(monkeypatch, [0.8, 1.3, 1.3, 1.3])
    assert [m["budget_met"] for m in measured[:2]] == [True, False]
    assert record["budget_met"]
    assert summary["pruned_ms"] <= summary["budget_ms"]


def test_margin_is_given_up_where_only_the_smallest_plan_meets_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    _, graph, _ = resnet20()
    smallest = formula_ms({name: widths[0] for name, widths in group_candidates(graph, 4, 8).items()})
    _, summary, record, measured = run_on(monkeypatch, [1.0], Budget.parse(f"{1.005 * smallest}ms"))
    assert len(measured) == 1
    assert record["budget_met"]
    assert summary["pruned_ms"] == pytest.approx(smallest)


def test_slow_first_and_then_faster_ends_with_the_plan_that_met_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    _, summary, _, measured = run_on(monkeypatch, [1.1, 1.25, 1.0])
    assert [m["budget_met"] for m in measured] == [False, False, True]
    assert [m["attempt"] for m in measured] == [1, 2, 3]
    assert summary["pruned_ms"] == measured[-1]["measured_ms"] <= summary["budget_ms"]


@pytest.mark.slow  # as many attempts as may be
def test_device_that_gets_ever_slower_ends_after_the_allowed_attempts_with_the_fastest_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, summary, record, measured = run_on(monkeypatch, [1.1, 1.22, 1.35, 1.5], Budget.parse("70%"))
    assert len(measured) == ATTEMPTS
    assert not record["budget_met"]
    assert summary["budget_ms"] < summary["pruned_ms"] == min(m["measured_ms"] for m in measured)
    assert summary["pruned_ms"] == record["measured_ms"]


def test_network_that_is_slower_than_the_unpruned_one_is_refused_before_it_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "train", None)
    device = PretendedDevice(monkeypatch, table(), [40.0])
    for budget in (HALF, Budget.parse("60%", PARAMETERS)):
        with pytest.raises(UserError, match=r"is faster than the unpruned one on this device: .* profile it again"):
            prune(task(device=device, retrain=True), [budget], replace(TINY, rounds=1))


def test_without_a_latency_budget_no_network_is_slower_than_the_unpruned_one(monkeypatch: pytest.MonkeyPatch) -> None:
    device = PretendedDevice(monkeypatch, table(), [1.5, 1.0])
    half = Budget.parse("80%", PARAMETERS)
    _, summary = prune(task(device=device), [half], TINY)
    assert summary["pruned_ms"] <= summary["dense_ms"]
    assert summary["params_pruned"] <= 0.8 * summary["params_dense"]


# ---- rounds -----------------------------------------------------------------------------------------------------


@pytest.fixture
def three_equal_rounds(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[float]], None]:
    """Every round has the whole budget, and training to the given accuracies leaves a mark in the weights."""

    def prepare(accuracies: Sequence[float]) -> None:
        left = iter(accuracies)

        def train(module: nn.Module, *_: Any, **__: Any) -> TrainResult:
            accuracy = next(left)
            with torch.no_grad():
                module.linear.bias.fill_(accuracy)  # type: ignore[operator, union-attr]
            return TrainResult(accuracy, ())

        monkeypatch.setattr(training, "train", train)
        monkeypatch.setattr(training, "evaluate", lambda *_, **__: 95.0)
        monkeypatch.setattr(rounds, "round_budgets", lambda dense, budget, count, _: [budget] * count)

    return prepare


def test_the_teacher_is_the_very_network_that_is_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    teachers: list[nn.Module] = []

    def train(*_: Any, teacher: nn.Module, **__: Any) -> TrainResult:
        teachers.append(teacher)
        return TrainResult(90.0, ())

    monkeypatch.setattr(training, "train", train)
    dense = Baseline(*resnet20()[:2], planner=None, dense_ms=1.0, measured=False)  # type: ignore[arg-type]
    training.train_round(task(retrain=True), dense, nn.Identity(), TINY, 1, lambda _: None, Journal())
    assert teachers == [dense.module]


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [
        ((80, 90, 90), 3),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (((80, 90, 85), 2), ((91, 80, 85), 1))),
    ],
)
def test_most_accurate_of_the_rounds_that_meet_the_budget_is_kept(
    three_equal_rounds: Callable[[Sequence[float]], None], accuracies: tuple[float, ...], kept: int
) -> None:
    three_equal_rounds(accuracies)
    pruned, summary = prune(task(retrain=True), [HALF], replace(TINY, rounds=3))
    assert (summary["round"], summary["accuracy_pruned"]) == (kept, max(accuracies))
    assert summary["accuracy_dense"] == 95.0
    assert [record["accuracy"] for record in pruned.record["rounds"]] == list(accuracies)
    assert float(pruned.module.linear.bias.detach()[0]) == max(accuracies)  # type: ignore[operator, union-attr]
    widths = {name: pruned.module.get_submodule(name).weight.shape[0] for name in pruned.kept}  # type: ignore[index]
    assert widths == {name: len(channels) for name, channels in pruned.kept.items()}


def test_a_validation_split_decides_and_the_test_split_is_looked_at_once_at_the_end(
    three_equal_rounds: Callable[[Sequence[float]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    three_equal_rounds((90, 94.5))
    few = few_images()
    looked_at: list[tuple[str, bool]] = []
    three_splits = replace(few, val_images=few.test_images[:10], val_labels=few.test_labels[:10])
    accuracies = iter((95.0, 88.0, 87.0))

    def evaluate(module: nn.Module, *_: Any, split: str = "test") -> float:
        looked_at.append((split, module is resnet20()[0]))
        return next(accuracies)

    monkeypatch.setattr(training, "evaluate", evaluate)
    events: list[Event] = []
    settings = replace(TINY, rounds=1)
    _, summary = prune(task(retrain=True, data=three_splits), [HALF], settings, events.append, max_drop=1.0)
    assert looked_at == [("val", True), ("test", True), ("test", False)]
    assert events[-1] == Event("tested", {"accuracy_dense": 88.0, "accuracy_pruned": 87.0})
    assert (summary["round"], summary["chosen_by"]) == (2, "val")
    assert (summary["accuracy_val_dense"], summary["accuracy_val_pruned"]) == (95.0, 94.5)
    assert (summary["accuracy_dense"], summary["accuracy_pruned"]) == (88.0, 87.0)
    three_equal_rounds((90, 91))
    assert prune(task(retrain=True), [HALF], TINY)[1]["chosen_by"] == "test"
    three_equal_rounds((90,))
    assert prune(task(retrain=True), [HALF], settings)[1]["chosen_by"] is None


def test_round_that_was_only_predicted_does_not_beat_one_that_was_measured(
    three_equal_rounds: Callable[[Sequence[float]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    three_equal_rounds((90, 91, 85))
    device = PretendedDevice(monkeypatch, table(), [1.0])
    _, summary = prune(task(retrain=True, device=device), [HALF], replace(TINY, rounds=3))
    assert summary["round"] == 3
    assert summary["pruned_ms"] <= summary["budget_ms"]


@pytest.mark.slow  # the other way round than the test above
def test_round_that_misses_the_budget_is_kept_only_if_none_meets_it(
    three_equal_rounds: Callable[[Sequence[float]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    three_equal_rounds((90, 91, 20))
    device = PretendedDevice(monkeypatch, table(), [1.1, 1.22, 1.35, 1.5])
    _, summary = prune(task(retrain=True, device=device), [Budget.parse("70%")], replace(TINY, rounds=3))
    assert summary["round"] == 3
    assert summary["pruned_ms"] > summary["budget_ms"]


@pytest.mark.slow  # eight rounds; the validation split above decides on a further one
def test_accuracy_that_is_not_kept_within_the_budgets_is_trained_for_further_rounds(
    three_equal_rounds: Callable[[Sequence[float]], None],
) -> None:
    three_equal_rounds((90, 93, 94.2, 99))
    pruned, summary = prune(task(retrain=True), [HALF], TINY, max_drop=1.0)
    assert summary["accuracy_wanted"] == 94.0
    assert (summary["round"], summary["accuracy_pruned"]) == (3, 94.2)
    assert summary["predicted_ms"] <= summary["budget_ms"]
    assert [record["accuracy"] for record in pruned.record["rounds"]] == [90, 93, 94.2]
    three_equal_rounds((94.5, 94.3))
    assert prune(task(retrain=True), [HALF], TINY, max_drop=1.0)[1]["round"] == 1
    three_equal_rounds((90, 91, 92, 91))
    assert prune(task(retrain=True), [HALF], TINY, max_drop=1.0)[1]["accuracy_pruned"] == 92
    with pytest.raises(UserError, match="add --data"):
        prune(task(), [HALF], TINY, max_drop=1.0)


def test_rounds_narrow_step_by_step() -> None:
    events: list[Event] = []
    pruned, summary = prune(task(retrain=True), [HALF], TINY, events.append)
    told = [event for event in events if event.name != "step"]
    assert [event.name for event in told] == ["start", "cut", "epoch", "round", "cut", "epoch", "round"]
    shares = [event.figures["share"] for event in events[: events.index(told[2])] if event.name == "step"]
    assert shares == [(step + 1) / len(shares) for step in range(len(shares))] != []
    first, second = pruned.record["rounds"]
    dense, budget = summary["dense_ms"], summary["budget_ms"]
    assert first["budget_ms"] == pytest.approx(math.sqrt(dense * budget))
    assert budget < first["predicted_ms"] <= first["budget_ms"]
    assert second["predicted_ms"] <= second["budget_ms"] == budget
    assert summary["round"] == 2
    module, graph, _ = resnet20()
    assert not same_state(pruned.module, graph.cut(module, pruned.kept)), "nothing was trained"


@pytest.mark.slow
def test_two_runs_of_one_seed_are_equal_and_of_another_train_differently() -> None:
    pruned, summary = prune(task(retrain=True), [HALF], TINY)
    again, summary_again = prune(task(retrain=True), [HALF], TINY)
    assert same_state(pruned.module, again.module)
    assert summary == summary_again
    other, _ = prune(task(retrain=True), [HALF], replace(TINY, seed=5, rounds=1))
    once, _ = prune(task(retrain=True), [HALF], replace(TINY, rounds=1))
    assert other.kept == once.kept
    assert not same_state(other.module, once.module)


# ---- refused before anything begins -----------------------------------------------------------------------------


def test_images_of_other_classes_than_the_network_tells_apart_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Origin, "build", None)
    monkeypatch.setattr(zoo, "build", None)
    origin = Origin("mobilenetv2", None, Inputs.of((3, 224, 224)))
    with pytest.raises(UserError, match="mobilenetv2 tells 1000 classes apart and the samples are of 10"):
        prune(task(origin=origin, retrain=True), [HALF], TINY)


def test_budget_that_the_last_round_cannot_reach_is_refused_before_the_first_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "train", None)
    events: list[Event] = []
    with pytest.raises(Unreachable, match=r"no plan reaches 0\.1 ms: the smallest reachable latency is"):
        prune(task(retrain=True), [Budget.parse("0.1ms")], replace(TINY, rounds=5), events.append)
    assert events == []
