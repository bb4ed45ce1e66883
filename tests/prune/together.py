"""What each of several processes plans and trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from aap_hw import ranks
from aap_hw.inputs import Inputs
from aap_hw.prune.planning import Plan, Planner


def trained() -> nn.Module:
    """A small network after two epochs of few images."""
    from aap_hw.train.loop import train
    from aap_hw.train.settings import Augmentation, TrainSettings
    from tests.synthetic import few_images

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pieces = [nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)]
        model = nn.Sequential(*pieces)
    settings = TrainSettings(epochs=2, batch_size=64, learning_rate=0.05, augmentation=Augmentation(crop_padding=2))
    train(model, few_images(), settings, seed=0, inputs=Inputs.of((3, 28, 28)))
    return model


class AsksOnce(Planner):
    """A planner that is asked by the first process only, as if the others' solvers ended elsewhere in their time."""

    def plan(self, *what: Any, **how: Any) -> Plan:
        assert ranks.is_first()
        return super().plan(*what, **how)


def planned(scores: Mapping[str, Any]) -> dict[str, Any]:
    """A plan of the table's, and the second one of two that are measured, the first of them over the budget."""
    from aap_hw.prune import steps
    from aap_hw.prune.baseline import baseline
    from aap_hw.prune.journal import Journal
    from aap_hw.prune.task import Task
    from tests.synthetic import ORIGIN, few_images, table, this_device

    task = Task(ORIGIN, table(), few_images())
    dense = baseline(task)
    planner = AsksOnce(**{field.name: getattr(dense.planner, field.name) for field in fields(dense.planner)})
    state, journal = steps.State(dense.module, dense.graph, planner), Journal()
    allowed = {"latency": 0.6 * dense.dense_ms}
    measured = iter([0.7 * dense.dense_ms, 0.59 * dense.dense_ms])
    steps.measured_ms = lambda *_: next(measured)
    by_table = state.plan(lambda: scores, allowed, 1, journal)
    task = replace(task, device=this_device())
    plan, ms = steps.plan_measured(task, dense, state, lambda: scores, allowed, 2, lambda _: None, journal)
    assert ms == 0.59 * dense.dense_ms
    return {"by table": by_table.widths, "measured": plan.widths}
