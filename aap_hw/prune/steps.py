"""What a run is made of, whatever its objective: a network that shrinks, and plans tried on the device.

Training is in ``aap_hw.prune.training``, what a run tells in ``aap_hw.prune.events`` and ``aap_hw.prune.summary``.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from aap_hw import ranks
from aap_hw.compile.keys.precision import FP32, INT8, MIXTURES, NetworkPrecision, unpruned_in
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import checked_cut
from aap_hw.inputs import Inputs
from aap_hw.policy import LATENCY
from aap_hw.prune.baseline import Baseline
from aap_hw.prune.events import Event, OnEvent
from aap_hw.prune.journal import Journal
from aap_hw.prune.measuring import Compilable, measure_networks
from aap_hw.prune.planning import Plan, Planner
from aap_hw.prune.quantised import accuracy_rounded, quantised
from aap_hw.prune.run import compose
from aap_hw.prune.scoring import scores_of
from aap_hw.prune.task import PruneSettings, Task
from aap_hw.prune.unreachable import Unreachable
from aap_hw.train.evaluation import evaluate

# Plans tried for a round until one is measured within the budget.
ATTEMPTS = 4
# Share of the budget that such a plan leaves free where it can: what two timings of one network may differ by.
MARGIN = 0.02
# A plan that leaves more than this share free was predicted too slow: the next one may keep more.
UNSPENT = 0.05
# What a difference of two accuracies may be off by.
ROUNDING = 1e-9

Scores = Mapping[str, NDArray[np.float64]]


@dataclass
class State:
    """The network as it shrinks.

    Attributes
    ----------
    precision : what it will compute in, as it is.
    floats : the layers that are not in int8 when it is quantised; None if it is not.
    int8 : its form in int8 as JSON values, if it was quantised as it is.
    """

    module: nn.Module
    graph: ChannelGraph
    planner: Planner
    kept: dict[str, list[int]] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    precision: NetworkPrecision = FP32
    floats: tuple[str, ...] | None = None
    int8: dict[str, Any] | None = None

    @staticmethod
    def of(dense: Baseline) -> State:
        """The unpruned network. That its heads are whole must show even in a plan that cuts none."""
        free = [group for group in dense.graph.groups if group.frozen is None]
        heads = {group.name: list(range(group.width)) for group in free if group.is_of_heads}
        floats = dense.floats if dense.precision == INT8 else None
        precision = unpruned_in(dense.precision)
        return State(dense.module, dense.graph, dense.planner, heads, precision=precision, floats=floats)

    def plan(self, scores: Callable[[], Scores], allowed: Mapping[str, float], number: int, journal: Journal) -> Plan:
        """A round's plan, by the table alone."""

        def find() -> dict[str, Any]:
            known = scores()  # all processes take part in these
            return {"plan": ranks.found_by_first(lambda: self.planner.plan(known, allowed, self.widths)).as_json()}

        return Plan.from_json(journal.recall(f"round/{number}/plan", find)["plan"])

    def learn(self, predicted_ms: float, measured_ms: float) -> None:
        """Scale what is predicted for later plans by how far off it was for one that was measured."""
        costs = self.planner.costs
        costs = replace(costs, calibration=costs.calibration * measured_ms / predicted_ms)
        self.planner = replace(self.planner, costs=costs)

    def smaller(self, plan: Plan, task: Task) -> nn.Module:
        """The module cut to a plan, and compared with the uncut one on two of the task's samples.

        Raises
        ------
        CutMismatchError : it computes something else.
        """
        return checked_cut(self.graph, self.module, plan.keep, task.few_samples)

    def cut(self, plan: Plan, task: Task, dense: Mapping[str, int]) -> None:
        """Cut to a plan; the module before it stays as it is. ``dense`` are the unpruned widths."""
        self.module, self.int8 = self.smaller(plan, task), None
        self.kept = compose(self.kept, plan.keep, dense)
        self.widths, self.floats = plan.widths, self.floats_of(plan)
        if plan.floats is not None and self.planner.costs.mixture is not None:
            self.precision = self.planner.costs.mixture.network.computed(plan.floats)

    def floats_of(self, plan: Plan) -> tuple[str, ...] | None:
        """The layers that are not in int8 in the network of a plan; None if nothing in it is quantised."""
        if plan.floats is None:
            return self.floats
        mixture = self.planner.costs.mixture
        return None if mixture is None or mixture.network.is_floating(plan.floats) else tuple(plan.floats)

    def retrace(self, inputs: Inputs) -> None:
        """Find the channel groups of the module as it is now; what may not be cut stays so."""
        frozen = {group.name: group.frozen for group in self.graph.groups if group.frozen is not None}
        self.graph = ChannelGraph.trace(self.module, inputs.zeros(), inputs.names, heads=self.graph.heads).frozen(
            frozen
        )


def scores_once(
    task: Task, state: State, settings: PruneSettings, number: int, journal: Journal
) -> Callable[[], Scores]:
    """Scores of the network that a round begins with, found when they are first asked for.

    The journal keeps four digits of each for who wants to see them.
    """

    @functools.cache
    def find() -> Scores:
        scores = scores_of(task, state.module, state.graph, settings)
        journal.note(f"round/{number}/scores", {name: [float(f"{v:.4g}") for v in s] for name, s in scores.items()})
        return scores

    return find


def plan_measured(
    task: Task,
    dense: Baseline,
    state: State,
    scores: Callable[[], Scores],
    allowed: Mapping[str, float],
    number: int,
    on_event: OnEvent,
    journal: Journal,
) -> tuple[Plan, float]:
    """The best of some plans whose networks are compiled and timed beside the dense one.

    Of those that meet the latency budget on the device, the one with the most attention kept; else the fastest.
    Without such a budget none may be slower than the dense one. What was tried before an interruption is not tried
    again. The state learns from a plan that is not good enough how far off the table was.

    Raises
    ------
    UserError : even the fastest is slower than the dense one.
    """
    assert task.device is not None
    round_ms = allowed.get(LATENCY.name, dense.dense_ms)
    tried: list[tuple[Plan, float]] = []
    for attempt in range(1, ATTEMPTS + 1):
        name = f"round/{number}/attempt/{attempt}"
        if name not in journal:
            if f"round/{number}/attempts" in journal:
                break
            known = scores()  # all processes take part in these
            found = ranks.found_by_first(partial(_next_plan, state, known, allowed, tried))
            if found is None:
                break
            plan = found
            measured = measured_ms(task, dense, state.smaller(plan, task), state.floats_of(plan))
            journal.note(name, {"plan": plan.as_json(), "measured_ms": measured})
        plan, measured = Plan.from_json(journal.value(name)["plan"]), journal.value(name)["measured_ms"]
        met = measured <= round_ms
        figures = {"attempt": attempt, "predicted_ms": plan.predicted_ms, "measured_ms": measured, "budget_met": met}
        on_event(Event("measured", figures))
        tried.append((plan, measured))
        if met and (LATENCY.name not in allowed or measured >= round_ms * (1 - UNSPENT)):
            break
        allowed = {LATENCY.name: round_ms, **allowed}
        state.learn(plan.predicted_ms, measured)
    meeting = [one for one in tried if one[1] <= round_ms]
    best = max(meeting, key=lambda one: one[0].kept_attention) if meeting else min(tried, key=lambda one: one[1])
    if best[1] > dense.dense_ms * (1 + MARGIN):
        raise UserError(
            f"no network that was tried is faster than the unpruned one on this device: {best[1]:.3f} ms against "
            f"{dense.dense_ms:.3f} ms; the table does not say what the device does, so profile it again"
        )
    journal.recall(f"round/{number}/attempts", lambda: {"tried": len(tried), "chosen": tried.index(best) + 1})
    return best


def measured_ms(task: Task, dense: Baseline, pruned: nn.Module, floats: Collection[str] | None) -> float:
    """Latency of a pruned network on the task's device; ``floats`` as of `State`."""
    assert task.device is not None
    device = task.device
    before = after = unpruned_in(dense.precision)
    if floats is not None and dense.precision in MIXTURES:
        after = MIXTURES[dense.precision]
    networks = {
        "dense": Compilable(dense.module, before, floats or ()),
        "pruned": Compilable(pruned, after, floats or ()),
    }
    timings = ranks.found_by_first(lambda: measure_networks(networks, task.origin.inputs, device))
    # The ratio to the dense network is what a budget is about; the clock may have drifted since it was measured.
    return dense.dense_ms * timings["pruned"].latency_us / timings["dense"].latency_us


def _next_plan(
    state: State, scores: Scores, allowed: Mapping[str, float], tried: Sequence[tuple[Plan, float]]
) -> Plan | None:
    """A plan that has not been tried, or None if there is none left.

    Within a time limit, solvers may end at different plans: of several processes only one may ask.
    """
    try:
        plan = _plan_with_margin(state, scores, allowed)
    except Unreachable:
        if not tried:
            raise
        # The table promised a plan, the device does not keep the promise: there is no narrower one to try.
        return None
    known = [(earlier.widths, earlier.floats) for earlier, _ in tried]
    return None if (plan.widths, plan.floats) in known else plan


def _plan_with_margin(state: State, scores: Scores, allowed: Mapping[str, float]) -> Plan:
    with_margin = dict(allowed)
    if LATENCY.name in with_margin:
        with_margin[LATENCY.name] *= 1 - MARGIN
    try:
        return state.planner.plan(scores, with_margin, state.widths)
    except Unreachable:
        return state.planner.plan(scores, allowed, state.widths)


def round_values(
    task: Task,
    dense: Baseline,
    state: State,
    settings: PruneSettings,
    number: int,
    on_event: OnEvent,
    journal: Journal,
) -> dict[str, float]:
    """Round what a round trained to the precision that it will compute in.

    Returns the accuracies of the network in that precision and in float32, if it is another one and anything trains.
    """
    if state.precision == FP32:
        return {}

    def find() -> dict[str, Any]:
        found: dict[str, Any] = {}
        if state.floats is not None:
            found["form"] = quantised(task, state.module, settings, state.floats)
        if task.retrain:
            split = task.data.chosen_by
            found["accuracy_float"] = evaluate(state.module, task.data, task.origin.inputs, split=split)
            found["accuracy"] = accuracy_rounded(task, state.module, found.get("form"), split, state.precision)
        return found

    found = journal.recall(f"round/{number}/quantised", find)
    state.int8 = found.get("form")
    accuracies = {name: value for name, value in found.items() if name != "form"}
    if accuracies:
        on_event(Event("quantised", {"round": number, "precision": dense.precision, **accuracies}))
    return accuracies


def seconds_since(began: float) -> float:
    """Seconds since a moment of the monotonic clock."""
    return time.monotonic() - began
