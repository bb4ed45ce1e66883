"""Pruning as far as an accuracy allows: the fastest network within a drop, found by the paper's adaptive controller.

Each round takes a latency budget, cuts, trains and evaluates; a round that loses too much accuracy is undone: the next
one starts from the weights and widths of an earlier round and cuts less. See ``aap_hw.policy.controller``.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

from aap_hw.errors import UserError
from aap_hw.policy import LATENCY, Undecided
from aap_hw.policy.controller import Controller
from aap_hw.prune.baseline import baseline
from aap_hw.prune.defaults import MOST_ROUNDS
from aap_hw.prune.events import Event, OnEvent
from aap_hw.prune.journal import Journal
from aap_hw.prune.planning import Plan
from aap_hw.prune.run import PrunedNetwork
from aap_hw.prune.steps import ROUNDING, Scores, State, measured_ms, round_values, scores_once, seconds_since
from aap_hw.prune.summary import as_computed, begun, finished
from aap_hw.prune.task import PruneSettings, Task
from aap_hw.prune.training import (
    accuracy_figures,
    check_classes,
    check_drop,
    dense_accuracy,
    tested,
    train_round,
)
from aap_hw.prune.unreachable import Unreachable

# By how much the severity grows at first. Of the exact allocator a severity of 1 halves the latency, so that the first
# step leaves 84 % of it and the next 71 %; of the paper's rule it is T, whose published first step is 1.
FIRST_STEP = {"exact": 0.25, "threshold": 1.0}
# A step of this share of the first, about 1 % of the latency, is not worth a round of training.
LEAST_STEP = 1 / 2**4


def prune_within(
    task: Task,
    drop: float,
    settings: PruneSettings,
    on_event: OnEvent = lambda _: None,
    journal: Journal | None = None,
) -> tuple[PrunedNetwork, dict[str, Any]]:
    """Prune a network until it would lose more accuracy than allowed.

    What the journal of an interrupted run knows is not done again; its events are sent again.

    Parameters
    ----------
    drop
        Percentage points of accuracy that may be lost, on the samples for validation, or on those to test with if there
        are no such.
    settings
        ``settings.rounds`` is the largest number of rounds, ``defaults.MOST_ROUNDS`` if it is None.

    Returns
    -------
    The fastest network found within the drop, and the run's figures as of ``aap_hw.prune.rounds.prune``; their budget
    is the accuracy that was to be kept.

    Raises
    ------
    UserError : the drop is not between 0 and 100, there are no images to train on or they do not fit the network, or
        no round kept the accuracy.
    """
    check_drop(task, drop)
    check_classes(task)
    journal = journal or Journal()
    dense = baseline(task, settings, journal, drop=drop)
    accuracy_dense = dense_accuracy(task, dense, journal)
    wanted = max(0.0, accuracy_dense - drop)
    known = {**begun(task, dense, {}, settings), "accuracy_wanted": wanted}
    on_event(Event("start", {**known, "accuracy": accuracy_dense}))
    first_step = FIRST_STEP[settings.allocator]
    controller = Controller.begin(first_step)
    states = {0: State.of(dense)}
    history: list[dict[str, Any]] = []
    best: tuple[State, dict[str, Any]] | None = None
    rounds = settings.rounds or MOST_ROUNDS
    for number in range(1, rounds + 1):
        began = time.monotonic()
        state = replace(states[controller.start])
        if controller.start:
            state.retrace(task.origin.inputs)
        scores = scores_once(task, state, settings, number, journal)
        figures: dict[str, Any] = {
            "round": number,
            "rounds": rounds,
            "from_round": controller.start,
            "predicted_ms": None,
            "measured_ms": None,
            "accuracy": None,
        }
        plan, controller = _plan(state, scores, dense.dense_ms, controller, number, journal)
        exact = settings.allocator == "exact"
        figures["budget_ms"] = dense.dense_ms / 2**controller.severity if exact else None
        figures["threshold"] = None if exact else controller.severity
        met = False
        if plan is not None:
            state.cut(plan, task, dense.network.dense)
            latency = None
            if task.device is not None:
                latency = journal.recall(
                    f"round/{number}/ms", partial(measured_ms, task, dense, state.module, state.floats)
                )
            figures["predicted_ms"], figures["measured_ms"] = plan.predicted_ms, latency
            figures["kept_attention"] = plan.kept_attention
            if plan.precisions is not None:
                figures["precisions"] = plan.precisions
            on_event(Event("cut", figures))
            # Each round may be the last.
            aware_of = state.floats if settings.qat else None
            figures["accuracy"] = train_round(task, dense, state.module, settings, number, on_event, journal, aware_of)
            figures |= round_values(task, dense, state, settings, number, on_event, journal)
            met = figures["accuracy"] >= wanted - ROUNDING
        figures |= {
            "accuracy_kept": met,
            "seconds": journal.recall(f"round/{number}/seconds", partial(seconds_since, began)),
        }
        history.append(figures)
        on_event(Event("round", figures))
        if met and (best is None or _latency(figures) <= _latency(best[1])):
            best = state, figures
        controller = controller.after(number, met)
        states[number] = state
        # Only rounds that may be taken up again are kept in memory.
        needed = {controller.start, *(good.number for good in controller.good)}
        states = {kept: each for kept, each in states.items() if kept in needed}
        journal.keep_rounds(needed | ({best[1]["round"]} if best else set()), number)
        if controller.step < LEAST_STEP * first_step:
            break
    if best is None:
        raise UserError(
            f"none of {len(history)} rounds kept an accuracy of {wanted:.2f} % (unpruned: {accuracy_dense:.2f} %"
            f"{_reached(history)}); allow a larger drop, or train longer with --epochs"
        )
    state, last = best
    record = {"rounds": history, "budgets": {}, "max_accuracy_drop": drop, "score": settings.scored_by}
    record |= as_computed(task, settings, state)
    on_test = tested(task, dense, state, on_event, journal)
    accuracies = accuracy_figures(task, accuracy_dense, last, True, on_test)
    return finished(task, dense, state, known, accuracies, last, record)


def _plan(
    state: State,
    scores: Callable[[], Scores],
    dense_ms: float,
    controller: Controller,
    number: int,
    journal: Journal,
) -> tuple[Plan | None, Controller]:
    """The controller's next plan, or the first harder one that changes something; None where nothing is left to cut.

    A plan of mixed precisions may change only what layers compute in.
    """

    def find() -> dict[str, Any]:
        tried = controller
        for harder in itertools.count():
            if state.planner.allocator == "threshold":
                if tried.severity < lowest() < math.inf:
                    tried = tried.harder()
                    continue
                plan = state.planner.plan_at(tried.severity, scores(), state.widths)
                return {"plan": plan.as_json() if plan.keep else None, "harder": harder}
            try:
                plan = state.planner.plan(scores(), {LATENCY.name: dense_ms / 2**tried.severity}, state.widths)
            except (Unreachable, Undecided):
                return {"plan": None, "harder": harder}
            if plan.keep or state.floats_of(plan) != state.floats:
                return {"plan": plan.as_json(), "harder": harder}
            tried = tried.harder()
        raise AssertionError

    @cache
    def lowest() -> float:
        return state.planner.lowest_threshold(scores(), state.widths)

    found = journal.recall(f"round/{number}/plan", find)
    for _ in range(found["harder"]):
        controller = controller.harder()
    return None if found["plan"] is None else Plan.from_json(found["plan"]), controller


def _reached(history: list[dict[str, Any]]) -> str:
    """What the best of some rounds came to, which is nothing where no round found something to cut."""
    best = max((figures["accuracy"] for figures in history if figures["accuracy"] is not None), default=None)
    return "" if best is None else f", best round: {best:.2f} %"


def _latency(figures: dict[str, Any]) -> float:
    measured = figures["measured_ms"]
    return float(figures["predicted_ms"] if measured is None else measured)
