"""Pruning in rounds: score, cut to the round's budget, rewind the learning rate, train, evaluate.

The budgets of the rounds fall geometrically to the goals. Before the last round trains, its network is compiled and
measured, and planned again with the table's error learned until it meets the budget on the device and makes use of
it. Of the rounds that meet the budgets the most accurate is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from aap_hw import ranks
from aap_hw.policy import LATENCY, Budget, round_budgets
from aap_hw.prune.baseline import amounts, baseline
from aap_hw.prune.defaults import ROUNDS
from aap_hw.prune.events import Event, OnEvent
from aap_hw.prune.journal import Journal
from aap_hw.prune.run import PrunedNetwork
from aap_hw.prune.steps import ROUNDING, State, plan_measured, round_values, scores_once, seconds_since
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


def prune(
    task: Task,
    budgets: Sequence[Budget],
    settings: PruneSettings,
    on_event: OnEvent = lambda _: None,
    journal: Journal | None = None,
    max_drop: float | None = None,
) -> tuple[PrunedNetwork, dict[str, Any]]:
    """Prune a network to some budgets, each of another resource.

    What the journal of an interrupted run knows is not done again; its events are sent again.

    Parameters
    ----------
    max_drop
        Percentage points of accuracy that may be lost beside: if the rounds to the budgets lose more, up to as many
        again train within them, each with widths by fresh attention and none wider than before.

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
    if max_drop is not None:
        check_drop(task, max_drop)
    if task.retrain:
        check_classes(task)
    journal = journal or Journal()
    dense = baseline(task, settings, journal, [budget.resource.name for budget in budgets], max_drop)
    wanted = amounts(budgets, dense)
    state = State.of(dense)
    scores = scores_once(task, state, settings, 1, journal)

    def reachable() -> bool:
        known = scores()  # all processes take part in these
        return ranks.found_by_first(lambda: bool(dense.planner.plan(known, wanted)))

    # Refused now if it cannot be reached, rather than by the last round, hours of training later.
    journal.recall("reachable", reachable)
    accuracy_dense = dense_accuracy(task, dense, journal) if task.retrain else None
    known = begun(task, dense, wanted, settings)
    least_accuracy = -math.inf
    if max_drop is not None and accuracy_dense is not None:
        known["accuracy_wanted"] = least_accuracy = max(0.0, accuracy_dense - max_drop)
    on_event(Event("start", {**known, "accuracy": accuracy_dense}))
    rounds = (settings.rounds or ROUNDS) if task.retrain else 1
    history: list[dict[str, Any]] = []
    best: tuple[float, State, dict[str, Any]] | None = None
    takes = dense.takes
    steps = {name: round_budgets(takes[name], amount, rounds, settings.schedule) for name, amount in wanted.items()}
    for number in range(1, rounds + (rounds if max_drop is not None else 0) + 1):
        allowed = {name: step[min(number, rounds) - 1] for name, step in steps.items()}
        began = time.monotonic()
        if number > 1:
            state.retrace(task.origin.inputs)
            scores = scores_once(task, state, settings, number, journal)
        if number < rounds or task.device is None:
            plan, measured = state.plan(scores, allowed, number, journal), None
        else:
            plan, measured = plan_measured(task, dense, state, scores, allowed, number, on_event, journal)
        state.cut(plan, task, dense.network.dense)
        # Everything but latency is known without measuring.
        taken = plan.spent if task.device is None else {**plan.spent, LATENCY.name: measured or math.inf}
        figures: dict[str, Any] = {
            "round": number,
            "rounds": max(number, rounds),
            "budget_ms": allowed.get(LATENCY.name),
            "budgets": allowed,
            "predicted_ms": plan.predicted_ms,
            "measured_ms": measured,
            "budget_met": all(taken[name] <= amount for name, amount in wanted.items()),
            "kept_attention": plan.kept_attention,
            **({} if plan.precisions is None else {"precisions": plan.precisions}),
        }
        on_event(Event("cut", figures))
        if task.retrain:
            aware_of = state.floats if settings.qat and number >= rounds else None
            figures["accuracy"] = train_round(task, dense, state.module, settings, number, on_event, journal, aware_of)
        if figures["budget_met"] or number >= rounds:
            figures |= round_values(task, dense, state, settings, number, on_event, journal)
        figures["seconds"] = journal.recall(f"round/{number}/seconds", partial(seconds_since, began))
        history.append(figures)
        on_event(Event("round", figures))
        # The last round is there to be kept if no round meets the budget: the caller sees by how much it is missed.
        rank = figures.get("accuracy", 0.0) if figures["budget_met"] else -1.0
        if best is None or rank >= best[0]:
            best = rank, replace(state), figures
        journal.keep_rounds({number, best[2]["round"]}, number)
        if number >= rounds and best[0] >= least_accuracy - ROUNDING:
            break
    assert best is not None
    _, state, last = best
    asked = {budget.resource.name: str(budget) for budget in budgets}
    record = {"rounds": history, "budgets": asked, "score": settings.scored_by, "max_accuracy_drop": max_drop}
    record |= as_computed(task, settings, state)
    on_test = tested(task, dense, state, on_event, journal)
    accuracies = accuracy_figures(task, accuracy_dense, last, len(history) > 1 or max_drop is not None, on_test)
    return finished(task, dense, state, known, accuracies, last, record)
