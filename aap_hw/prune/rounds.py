"""Pruning in rounds: score, cut to the round's budget, rewind the learning rate, train, evaluate.

The budgets of the rounds fall geometrically to the goal. Before the last round trains, its network is compiled and
measured, and planned again with the table's error learned until it meets the budget on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from aap_hw.attention import attention_scores
from aap_hw.compile.network import with_layout_changes
from aap_hw.compile.partition import Network, partition
from aap_hw.compile.shape import multiply_accumulates
from aap_hw.device.connection import Device
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.lut.enumeration import group_candidates
from aap_hw.lut.table import LatencyTable
from aap_hw.policy import Budget, round_budgets
from aap_hw.prune.measuring import measure_networks
from aap_hw.prune.planning import LatencyPlanner, Plan
from aap_hw.prune.run import Origin, PrunedNetwork, compose
from aap_hw.train.data import LabelledImages
from aap_hw.train.loop import TrainSettings, evaluate, train

# Plans tried for the last round until one is measured within the budget.
ATTEMPTS = 4


@dataclass(frozen=True)
class PruneSettings:
    """How a run prunes.

    Attributes
    ----------
    rounds : steps in which the budget is approached.
    calibration_images : images that attention is averaged over.
    reduction, p : the paper's family (mean, sum, max) and exponent of the attention score.
    training : how each round trains; its learning-rate schedule starts anew each time.
    seed : of the training's order and augmentation.
    """

    rounds: int = 3
    calibration_images: int = 512
    reduction: str = "mean"
    p: float = 1.0
    training: TrainSettings = field(default_factory=lambda: TrainSettings(epochs=3, learning_rate=0.05))
    seed: int = 0


@dataclass(frozen=True)
class Event:
    """Something that happened in a run, for a screen and the log: a name and its figures."""

    name: str
    figures: dict[str, Any]


OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Task:
    """A network to prune, and what by.

    Attributes
    ----------
    data : images that attention is read from, and that training uses if ``retrain``.
    device : where the result is measured; None leaves every latency a prediction.
    """

    origin: Origin
    table: LatencyTable
    data: LabelledImages
    retrain: bool = False
    device: Device | None = None


@dataclass
class Baseline:
    """The unpruned network, traced, with its latency."""

    module: nn.Module
    graph: ChannelGraph
    planner: LatencyPlanner
    dense_ms: float
    measured: bool

    @property
    def network(self) -> Network:
        """The unpruned network's kernels."""
        return self.planner.network


def baseline(task: Task) -> Baseline:
    """Trace the unpruned network and find its latency: measured on the device now, else from the table.

    Raises
    ------
    UserError : the network has no group to prune, or the table does not know it.
    """
    module = task.origin.build()
    graph = ChannelGraph.trace(module, (torch.zeros(1, *task.origin.input_shape),))
    if all(group.frozen for group in graph.groups):
        reason = graph.groups[0].frozen if graph.groups else "it has no convolution"
        raise UserError(f"{task.origin.model} has no channel group that may be cut: {reason}")
    network = with_layout_changes(partition(graph))
    how = task.table.measurement
    candidates = group_candidates(graph, how["granularity"], how["at_most"])
    planner = LatencyPlanner(network, candidates, task.table)
    predicted = planner.dense_ms
    measured = task.table.dense_ms(task.origin.model, network.input_shape)
    if task.device is not None:
        timing = measure_networks({"dense": module}, task.origin.input_shape, task.device)["dense"]
        measured = timing.median_us / 1e3
    dense_ms = measured or predicted
    planner = replace(planner, calibration=dense_ms / predicted)
    return Baseline(module, graph, planner, dense_ms, measured is not None)


def budget_ms(budget: Budget, dense_ms: float) -> float:
    """The budget in milliseconds. Raises UserError if the unpruned network already meets it."""
    wanted = budget.milliseconds(dense_ms)
    if wanted >= dense_ms:
        raise UserError(
            f"the unpruned network takes {dense_ms:.4g} ms and the budget is {wanted:.4g} ms: nothing needs pruning"
        )
    return wanted


def calibration_batches(data: LabelledImages, input_shape: tuple[int, int, int], count: int) -> Iterator[torch.Tensor]:
    """Training images (n, C, H, W) for attention, spread over the classes, a moderate number of pixels at a time."""
    chosen = data.spread("train", count)
    size = max(1, min(64, (1 << 20) // (input_shape[1] * input_shape[2])))
    for start in range(0, len(chosen), size):
        yield data.tensors("train", input_shape, chosen[start : start + size])


def plan_once(task: Task, budget: Budget, settings: PruneSettings) -> tuple[Baseline, Plan]:
    """The plan for a budget in one step, without cutting anything."""
    dense = baseline(task)
    wanted = budget_ms(budget, dense.dense_ms)
    return dense, dense.planner.plan(_scores(task, dense.module, dense.graph, settings), wanted)


def prune(
    task: Task, budget: Budget, settings: PruneSettings, on_event: OnEvent = lambda _: None
) -> tuple[PrunedNetwork, dict[str, Any]]:
    """Prune a network to a latency budget.

    Returns
    -------
    The pruned network and the run's figures: latencies in ms, accuracies in percent, parameters and
    multiply-accumulates before and after.

    Raises
    ------
    UserError : the budget needs no pruning or cannot be reached, or the data do not fit the network.
    """
    if task.retrain:
        _check_classes(task)
    dense = baseline(task)
    wanted = budget_ms(budget, dense.dense_ms)
    state = _State(dense.module, dense.graph, dense.planner)
    shape = task.origin.input_shape
    accuracy_dense = evaluate(dense.module, task.data, shape) if task.retrain else None
    on_event(Event("start", {"dense_ms": dense.dense_ms, "budget_ms": wanted, "accuracy": accuracy_dense}))
    rounds = settings.rounds if task.retrain else 1
    history: list[dict[str, Any]] = []
    best: tuple[float, _State, dict[str, Any]] | None = None
    for number, round_ms in enumerate(round_budgets(dense.dense_ms, wanted, rounds), start=1):
        began = time.monotonic()
        scores = _scores(task, state.module, state.graph, settings)
        if number < rounds or task.device is None:
            plan, measured = state.planner.plan(scores, round_ms, state.widths), None
        else:
            plan, measured = _plan_measured(task, dense, state, scores, round_ms, on_event)
        state.cut(plan, dense.network.dense)
        figures: dict[str, Any] = {
            "round": number,
            "rounds": rounds,
            "budget_ms": round_ms,
            "predicted_ms": plan.predicted_ms,
            "measured_ms": measured,
            "kept_attention": plan.kept_attention,
        }
        on_event(Event("cut", figures))
        if task.retrain:
            figures["accuracy"] = _train_round(task, state.module, settings, number, on_event)
        state.retrace(shape)
        figures["seconds"] = time.monotonic() - began
        history.append(figures)
        on_event(Event("round", figures))
        # The last round is there to be kept if no round meets the budget: the caller sees by how much it is missed.
        meets = (measured or plan.predicted_ms) <= wanted
        rank = figures.get("accuracy", 0.0) if meets else -1.0
        if best is None or rank >= best[0]:
            best = rank, replace(state), figures
    assert best is not None
    _, state, last = best
    summary = {
        "model": task.origin.model,
        "input": list(shape),
        "device": task.table.device["name"],
        "provenance": task.table.device["provenance"],
        "dense_ms": dense.dense_ms,
        "dense_is_measured": dense.measured,
        "budget_ms": wanted,
        "round": last["round"],
        "predicted_ms": last["predicted_ms"],
        "pruned_ms": last["measured_ms"],
        "accuracy_dense": accuracy_dense,
        "accuracy_pruned": last.get("accuracy"),
        "retrained": task.retrain,
        **_sizes(dense.module, state.module, dense.network, state.widths),
    }
    pruned = PrunedNetwork(
        task.origin,
        state.kept,
        task.table.device["name"],
        state.module,
        {"rounds": history, "budget": str(budget)},
    )
    return pruned, summary


@dataclass
class _State:
    """The network as it shrinks."""

    module: nn.Module
    graph: ChannelGraph
    planner: LatencyPlanner
    kept: dict[str, list[int]] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)

    def cut(self, plan: Plan, dense: Mapping[str, int]) -> None:
        self.module = self.graph.cut(self.module, plan.keep)
        self.kept = compose(self.kept, plan.keep, dense)
        self.widths = plan.widths

    def retrace(self, input_shape: tuple[int, int, int]) -> None:
        self.graph = ChannelGraph.trace(self.module, (torch.zeros(1, *input_shape),))


def _scores(task: Task, module: nn.Module, graph: ChannelGraph, settings: PruneSettings) -> Any:
    batches = calibration_batches(task.data, task.origin.input_shape, settings.calibration_images)
    return attention_scores(module, batches, reduction=settings.reduction, p=settings.p)


def _plan_measured(
    task: Task, dense: Baseline, state: _State, scores: Any, round_ms: float, on_event: OnEvent
) -> tuple[Plan, float]:
    """A plan whose network, compiled and timed beside the dense one, meets the budget on the device."""
    assert task.device is not None
    for attempt in range(ATTEMPTS):
        plan = state.planner.plan(scores, round_ms, state.widths or None)
        networks = {"dense": dense.module, "pruned": state.graph.cut(state.module, plan.keep)}
        timings = measure_networks(networks, task.origin.input_shape, task.device)
        # The ratio to the dense network is what the budget is about; the clock may have drifted since.
        measured = dense.dense_ms * timings["pruned"].median_us / timings["dense"].median_us
        on_event(
            Event(
                "measured",
                {"predicted_ms": plan.predicted_ms, "measured_ms": measured, "attempt": attempt + 1},
            )
        )
        if measured <= round_ms:
            break
        state.planner = replace(state.planner, calibration=state.planner.calibration * measured / plan.predicted_ms)
    return plan, measured


def _train_round(task: Task, module: nn.Module, settings: PruneSettings, number: int, on_event: OnEvent) -> float:
    def on_epoch(epoch: int, epochs: int, loss: float, accuracy: float, seconds: float) -> None:
        on_event(
            Event(
                "epoch",
                {"epoch": epoch, "epochs": epochs, "loss": loss, "accuracy": accuracy, "seconds": seconds},
            )
        )

    result = train(
        module,
        task.data,
        settings.training,
        seed=settings.seed + number,
        input_shape=task.origin.input_shape,
        on_epoch=on_epoch,
    )
    return result.accuracy


def _check_classes(task: Task) -> None:
    from aap_hw.models import zoo

    classes = zoo.build(task.origin.model, task.origin.weights).classes
    if classes != task.data.classes:
        raise UserError(
            f"{task.origin.model} tells {classes} classes apart and the data have {task.data.classes}; "
            "choose a model for this data, or leave --data out to prune without training"
        )


def _sizes(dense: nn.Module, pruned: nn.Module, network: Network, widths: Mapping[str, int]) -> dict[str, int]:
    def macs(plan: Mapping[str, int]) -> int:
        return sum(multiply_accumulates(*kernel.at(plan)) for kernel in network.kernels)

    return {
        "params_dense": sum(p.numel() for p in dense.parameters()),
        "params_pruned": sum(p.numel() for p in pruned.parameters()),
        "macs_dense": macs(network.dense),
        "macs_pruned": macs(widths),
    }
