"""Pruning in rounds: score, cut to the round's budget, rewind the learning rate, train, evaluate.

The budgets of the rounds fall geometrically to the goals. Before the last round trains, its network is compiled and
measured, and planned again with the table's error learned until it meets the budget on the device and makes use of
it. Of the rounds that meet the budgets the most accurate is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from aap_hw.compile.network import Network
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.lut.fidelity import table_error
from aap_hw.policy import LATENCY, Budget, round_budgets
from aap_hw.prune.baseline import Baseline, amounts, baseline, scores_of
from aap_hw.prune.measuring import measure_networks
from aap_hw.prune.planning import Planner, Plan, Unreachable
from aap_hw.prune.run import PrunedNetwork, compose
from aap_hw.prune.task import PruneSettings, Task
from aap_hw.train.loop import evaluate, train

# Plans tried for the last round until one is measured within the budget.
ATTEMPTS = 4
# Share of the budget that such a plan leaves free where it can: what two timings of one network may differ by.
MARGIN = 0.02
# A plan that leaves more than this share free was predicted too slow: the next one may keep more.
UNSPENT = 0.05

Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Event:
    """Something that happened in a run, for a screen and the log: a name and its figures.

    In this order: ``start`` once it is certain that there is something to do, then for each round ``measured`` for
    each plan that is tried on the device, ``cut``, ``epoch`` for each epoch, and ``round``.
    """

    name: str
    figures: dict[str, Any]


OnEvent = Callable[[Event], None]


def prune(
    task: Task, budgets: Sequence[Budget], settings: PruneSettings, on_event: OnEvent = lambda _: None
) -> tuple[PrunedNetwork, dict[str, Any]]:
    """Prune a network to some budgets, each of another resource.

    Returns
    -------
    The pruned network and the run's figures: latencies in ms, accuracies in percent, parameters and
    multiply-accumulates before and after. Its latency is above the budget only if no round met it: then the last
    round is given. A latency that can be measured counts only as measured.

    Raises
    ------
    UserError : a budget needs no pruning or cannot be reached, or the data do not fit the network. Nothing has been
        trained and no event been sent by then.
    """
    if task.retrain:
        _check_classes(task)
    dense = baseline(task)
    wanted = amounts(budgets, dense)
    shape = task.origin.input_shape
    scores = scores_of(task, dense.module, dense.graph, settings)
    # Refused now if it cannot be reached, rather than by the last round, hours of training later.
    dense.planner.plan(scores, wanted)
    accuracy_dense = evaluate(dense.module, task.data, shape) if task.retrain else None
    error = table_error(task.table, task.origin.model, dense.network.input_shape)
    begun = {
        "dense_ms": dense.dense_ms,
        "dense_is_measured": dense.measured,
        "budget_ms": wanted.get(LATENCY.name),
        "budgets": wanted,
        "table_error": None if error is None else error.as_json(),
    }
    on_event(Event("start", {**begun, "accuracy": accuracy_dense}))
    state = _State(dense.module, dense.graph, dense.planner)
    rounds = settings.rounds if task.retrain else 1
    history: list[dict[str, Any]] = []
    best: tuple[float, _State, dict[str, Any]] | None = None
    takes = dense.takes
    steps = {name: round_budgets(takes[name], amount, rounds) for name, amount in wanted.items()}
    for number in range(1, rounds + 1):
        allowed = {name: step[number - 1] for name, step in steps.items()}
        began = time.monotonic()
        if number > 1:
            state.retrace(shape)
            scores = scores_of(task, state.module, state.graph, settings)
        if number < rounds or task.device is None:
            plan, measured = state.planner.plan(scores, allowed, state.widths), None
        else:
            plan, measured = _plan_measured(task, dense, state, scores, allowed, on_event)
        state.cut(plan, dense.network.dense)
        # Everything but latency is known without measuring.
        taken = plan.spent if task.device is None else {**plan.spent, LATENCY.name: measured or math.inf}
        figures: dict[str, Any] = {
            "round": number,
            "rounds": rounds,
            "budget_ms": allowed.get(LATENCY.name),
            "budgets": allowed,
            "predicted_ms": plan.predicted_ms,
            "measured_ms": measured,
            "budget_met": all(taken[name] <= amount for name, amount in wanted.items()),
            "kept_attention": plan.kept_attention,
        }
        on_event(Event("cut", figures))
        if task.retrain:
            figures["accuracy"] = _train_round(task, state.module, settings, number, on_event)
        figures["seconds"] = time.monotonic() - began
        history.append(figures)
        on_event(Event("round", figures))
        # The last round is there to be kept if no round meets the budget: the caller sees by how much it is missed.
        rank = figures.get("accuracy", 0.0) if figures["budget_met"] else -1.0
        if best is None or rank >= best[0]:
            best = rank, replace(state), figures
    assert best is not None
    _, state, last = best
    summary = {
        "model": task.origin.model,
        "weights": task.origin.weights,
        "input": list(shape),
        "device": task.table.device["name"],
        "provenance": task.table.device["provenance"],
        **begun,
        "round": last["round"],
        "predicted_ms": last["predicted_ms"],
        "pruned_ms": last["measured_ms"],
        "accuracy_dense": accuracy_dense,
        "accuracy_pruned": last.get("accuracy"),
        "retrained": task.retrain,
        **_sizes(dense.module, state.module, dense.network, state.widths),
    }
    record = {"rounds": history, "budgets": {budget.resource.name: str(budget) for budget in budgets}}
    return PrunedNetwork(task.origin, state.kept, task.table.device["name"], state.module, record), summary


@dataclass
class _State:
    """The network as it shrinks."""

    module: nn.Module
    graph: ChannelGraph
    planner: Planner
    kept: dict[str, list[int]] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)

    def cut(self, plan: Plan, dense: Mapping[str, int]) -> None:
        self.module = self.graph.cut(self.module, plan.keep)
        self.kept = compose(self.kept, plan.keep, dense)
        self.widths = plan.widths

    def retrace(self, input_shape: tuple[int, int, int]) -> None:
        self.graph = ChannelGraph.trace(self.module, (torch.zeros(1, *input_shape),))


def _plan_measured(
    task: Task, dense: Baseline, state: _State, scores: Scores, allowed: Mapping[str, float], on_event: OnEvent
) -> tuple[Plan, float]:
    """The best of some plans whose networks are compiled and timed beside the dense one.

    Of those that meet the latency budget on the device, the one with the most attention kept; else the fastest.
    """
    assert task.device is not None
    round_ms = allowed.get(LATENCY.name, math.inf)
    tried: list[tuple[Plan, float]] = []
    for attempt in range(1, ATTEMPTS + 1):
        try:
            plan = _plan_with_margin(state, scores, allowed)
        except Unreachable:
            if not tried:
                raise
            # The table promised a plan, the device does not keep the promise: there is no narrower one to try.
            break
        if any(plan.widths == earlier.widths for earlier, _ in tried):
            break
        networks = {"dense": dense.module, "pruned": state.graph.cut(state.module, plan.keep)}
        timings = measure_networks(networks, task.origin.input_shape, task.device)
        # The ratio to the dense network is what the budget is about; the clock may have drifted since.
        measured = dense.dense_ms * timings["pruned"].latency_us / timings["dense"].latency_us
        met = measured <= round_ms
        figures = {"attempt": attempt, "predicted_ms": plan.predicted_ms, "measured_ms": measured, "budget_met": met}
        on_event(Event("measured", figures))
        tried.append((plan, measured))
        if met and measured >= round_ms * (1 - UNSPENT):
            break
        state.planner = replace(state.planner, calibration=state.planner.calibration * measured / plan.predicted_ms)
    meeting = [(plan, measured) for plan, measured in tried if measured <= round_ms]
    if meeting:
        return max(meeting, key=lambda one: one[0].kept_attention)
    return min(tried, key=lambda one: one[1])


def _plan_with_margin(state: _State, scores: Scores, allowed: Mapping[str, float]) -> Plan:
    with_margin = dict(allowed)
    if LATENCY.name in with_margin:
        with_margin[LATENCY.name] *= 1 - MARGIN
    try:
        return state.planner.plan(scores, with_margin, state.widths)
    except Unreachable:
        return state.planner.plan(scores, allowed, state.widths)


def _train_round(task: Task, module: nn.Module, settings: PruneSettings, number: int, on_event: OnEvent) -> float:
    def on_epoch(epoch: int, epochs: int, loss: float, accuracy: float, seconds: float) -> None:
        figures = {"epoch": epoch, "epochs": epochs, "loss": loss, "accuracy": accuracy, "seconds": seconds}
        on_event(Event("epoch", figures))

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
    if task.origin.classes != task.data.classes:
        raise UserError(
            f"{task.origin.model} tells {task.origin.classes} classes apart and the images are of {task.data.classes}; "
            "choose a model for these images, or leave --data out to prune without training"
        )


def _sizes(dense: nn.Module, pruned: nn.Module, network: Network, widths: Mapping[str, int]) -> dict[str, int]:
    def macs(plan: Mapping[str, int]) -> int:
        return sum(kernel.multiply_accumulates(plan) for kernel in network.kernels)

    return {
        "params_dense": sum(p.numel() for p in dense.parameters()),
        "params_pruned": sum(p.numel() for p in pruned.parameters()),
        "macs_dense": macs(network.dense),
        "macs_pruned": macs(widths),
    }
