"""Runs of ResNet-20 that are ended early and resumed."""

from __future__ import annotations

from dataclasses import replace

from aap_hw.prune.job import EMBEDDED, Job, Limit
from aap_hw.prune.task import PruneSettings
from aap_hw.train.settings import TrainSettings
from tests.synthetic import ORIGIN

SETTINGS = PruneSettings(
    rounds=2, calibration_images=8, training=TrainSettings(epochs=2, batch_size=32, learning_rate=0.01)
)
TO_BUDGET = Job(ORIGIN, EMBEDDED, {"latency": Limit(0.6, True)}, settings=SETTINGS)
# No accuracy is kept so soon: a further round follows the one to the budget.
TO_BOTH = replace(TO_BUDGET, max_accuracy_drop=0.0, settings=replace(SETTINGS, rounds=1))
TO_ACCURACY = Job(ORIGIN, EMBEDDED, max_accuracy_drop=45.0, settings=replace(SETTINGS, rounds=3))
