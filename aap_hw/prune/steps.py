"""What a run is made of, whatever its objective: a network that shrinks, plans tried on the device, training.

Here is also what a run tells: its events, and the summary that it ends with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
from aap_hw.policy import LATENCY
from aap_hw.prune.baseline import Baseline
from aap_hw.prune.measuring import measure_networks
from aap_hw.prune.planning import Plan, Planner, Unreachable
from aap_hw.prune.run import PrunedNetwork, compose
from aap_hw.prune.task import PruneSettings, Task
from aap_hw.train.loop import train

# Plans tried for a round until one is measured within the budget.
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


@dataclass
class State:
    """The network as it shrinks."""

    module: nn.Module
    graph: ChannelGraph
    planner: Planner
    kept: dict[str, list[int]] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)

    def cut(self, plan: Plan, dense: Mapping[str, int]) -> None:
        """Cut to a plan; the module before it stays as it is. ``dense`` are the unpruned widths."""
        self.module = self.graph.cut(self.module, plan.keep)
        self.kept = compose(self.kept, plan.keep, dense)
        self.widths = plan.widths

    def retrace(self, input_shape: tuple[int, int, int]) -> None:
        """Find the channel groups of the module as it is now."""
        self.graph = ChannelGraph.trace(self.module, (torch.zeros(1, *input_shape),))


def plan_measured(
    task: Task, dense: Baseline, state: State, scores: Scores, allowed: Mapping[str, float], on_event: OnEvent
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
        measured = measured_ms(task, dense, state.graph.cut(state.module, plan.keep))
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


def measured_ms(task: Task, dense: Baseline, pruned: nn.Module) -> float:
    """Latency of a pruned network on the task's device."""
    assert task.device is not None
    timings = measure_networks({"dense": dense.module, "pruned": pruned}, task.origin.input_shape, task.device)
    # The ratio to the dense network is what a budget is about; the clock may have drifted since it was measured.
    return dense.dense_ms * timings["pruned"].latency_us / timings["dense"].latency_us


def _plan_with_margin(state: State, scores: Scores, allowed: Mapping[str, float]) -> Plan:
    with_margin = dict(allowed)
    if LATENCY.name in with_margin:
        with_margin[LATENCY.name] *= 1 - MARGIN
    try:
        return state.planner.plan(scores, with_margin, state.widths)
    except Unreachable:
        return state.planner.plan(scores, allowed, state.widths)


def train_round(task: Task, module: nn.Module, settings: PruneSettings, number: int, on_event: OnEvent) -> float:
    """Train a module for one round; its accuracy in percent."""

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


def check_classes(task: Task) -> None:
    """Raise UserError if the images are not of as many classes as the network tells apart."""
    if task.origin.classes != task.data.classes:
        raise UserError(
            f"{task.origin.model} tells {task.origin.classes} classes apart and the images are of {task.data.classes}; "
            "choose a model for these images, or leave --data out to prune without training"
        )


def begun(task: Task, dense: Baseline, wanted: Mapping[str, float], settings: PruneSettings) -> dict[str, Any]:
    """Figures of a run that are known when it begins; ``wanted`` is what its budgets allow."""
    error = table_error(task.table, task.origin.model, dense.network.input_shape)
    return {
        "dense_ms": dense.dense_ms,
        "dense_is_measured": dense.measured,
        "budget_ms": wanted.get(LATENCY.name),
        "budgets": dict(wanted),
        "score": settings.score,
        "table_error": None if error is None else error.as_json(),
    }


def finished(
    task: Task,
    dense: Baseline,
    state: State,
    known: Mapping[str, Any],
    accuracy_dense: float | None,
    last: Mapping[str, Any],
    record: dict[str, Any],
) -> tuple[PrunedNetwork, dict[str, Any]]:
    """The pruned network and the run's summary, given what was ``known`` at the start and the figures of its round."""
    summary = {
        "model": task.origin.model,
        "weights": task.origin.weights,
        "input": list(task.origin.input_shape),
        "device": task.table.device["name"],
        "provenance": task.table.device["provenance"],
        **known,
        "round": last["round"],
        "predicted_ms": last["predicted_ms"],
        "pruned_ms": last["measured_ms"],
        "accuracy_dense": accuracy_dense,
        "accuracy_pruned": last.get("accuracy"),
        "retrained": task.retrain,
        **_sizes(dense.module, state.module, dense.network, state.widths),
    }
    return PrunedNetwork(task.origin, state.kept, task.table.device["name"], state.module, record), summary


def _sizes(dense: nn.Module, pruned: nn.Module, network: Network, widths: Mapping[str, int]) -> dict[str, int]:
    def macs(plan: Mapping[str, int]) -> int:
        return sum(kernel.multiply_accumulates(plan) for kernel in network.kernels)

    return {
        "params_dense": sum(p.numel() for p in dense.parameters()),
        "params_pruned": sum(p.numel() for p in pruned.parameters()),
        "macs_dense": macs(network.dense),
        "macs_pruned": macs(widths),
    }
