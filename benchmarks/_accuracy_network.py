"""A network of the accuracy benchmark: its images, its table, its cells, and what a pruned one of it reaches."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from torch import nn

from aap_hw.compile.keys.precision import INT8, NetworkPrecision
from aap_hw.graph import ChannelGraph
from aap_hw.inputs import Inputs
from aap_hw.lut.file import load_table
from aap_hw.models import zoo
from aap_hw.models.origin import Origin
from aap_hw.models.weights import WeightsFile
from aap_hw.prune.baseline import Baseline, baseline
from aap_hw.prune.quantised import accuracy_rounded, quantised
from aap_hw.prune.task import PruneSettings, Task
from aap_hw.train.evaluation import evaluate
from aap_hw.train.sources import ImageSource

# That ranges of values are measured on for int8, and filters are scored by.
CALIBRATION_IMAGES = 512


class Network:
    """One model with its images, its table and its cells; what takes time is done when it is first needed."""

    def __init__(self, model: Mapping[str, Any], options: argparse.Namespace) -> None:
        self.name, self.seeds, self.epochs = str(model["name"]), int(model["seeds"]), int(model["epochs"])
        weights = "embedded" if model["checkpoint"] == "embedded" else WeightsFile.at(model["checkpoint"])
        origin = Origin(self.name, weights, Inputs.of(zoo.entry(self.name).input_shape))
        self.data = ImageSource(options.data).load(origin.inputs)
        if options.quick:
            self.data = self.data.limited(options.limit)
        self.calibration_images = 8 if options.quick else CALIBRATION_IMAGES
        self.task = Task(origin, load_table(Path(options.lut)), self.data)
        budgets = [float(share) / 100 for share in model["budgets"].split("+")]
        self.cells = [
            {"model": self.name, "method": method, "budget": budget}
            for budget in budgets
            for method in options.methods.split(",")
        ]
        self.settings_of = cache(self._settings_of)
        self.dense = cache(self._dense)

    @cached_property
    def module(self) -> nn.Module:
        """The unpruned network."""
        return self.task.origin.build()

    @cached_property
    def graph(self) -> ChannelGraph:
        """Its channel groups."""
        return ChannelGraph.trace(self.module, self.task.origin.inputs.zeros())

    def _settings_of(self, precision: NetworkPrecision) -> PruneSettings:
        return PruneSettings(calibration_images=self.calibration_images, precision=precision)

    def _dense(self, precision: NetworkPrecision) -> Baseline:
        """The unpruned network with its latency in a precision, by the table."""
        return baseline(self.task, self.settings_of(precision))

    def cut(self, kept: Mapping[str, list[int]]) -> nn.Module:
        """The network with some channels of its groups, in memory of its own."""
        return self.graph.cut(self.module, kept)

    def accuracies(self, module: nn.Module, planned: Mapping[str, Any]) -> dict[str, float]:
        """Accuracy on all test images as it is deployed, and of a network in int8 also in float32."""
        exact = evaluate(module, self.data, self.task.origin.inputs)
        if planned["precision"] != INT8:
            return {"accuracy": exact}
        form = quantised(self.task, module, self.settings_of(INT8), planned["floats"])
        return {
            "accuracy": accuracy_rounded(self.task, module, form, "test"),
            "accuracy_float32": exact,
        }
