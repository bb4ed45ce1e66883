"""Width plans of a network, measured end to end, and kept in the table beside what it predicts for them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from aap_hw.compile.network import Network
from aap_hw.device.connection import Device, LoadedLibrary
from aap_hw.graph import ChannelGraph
from aap_hw.lut.calibrating import Observation, fitted_slowdown
from aap_hw.lut.compiling import Compiler
from aap_hw.lut.enumeration import group_candidates
from aap_hw.lut.file import save_table
from aap_hw.lut.measuring import Reference, time_networks
from aap_hw.lut.predicting import predict_us
from aap_hw.lut.progress import Clock, ProgressCallback
from aap_hw.lut.table import LatencyTable, Validation

# Networks that are loaded side by side and timed in turn: a disturbance of seconds then hits a part of each of them.
IN_TURN = 16
# What the cut networks that calibrate a table are called in it.
CALIBRATION = "calibration"
# The first networks measured are timed again beside all later ones, whose latencies are scaled by how much slower these
# have become: whole networks feel a cache that is shared with neighbours, which a reference kernel does not.
ANCHORS = 4

WidthPlan = Mapping[str, int]


def random_plans(candidates: Mapping[str, Sequence[int]], prefix: str, count: int, seed: int) -> dict[str, WidthPlan]:
    """Width plans called ``PREFIX-NUMBER``: each group at any of its candidate widths, all equally likely.

    A plan depends on seed, prefix and number only, so that more plans begin with the same ones.
    """
    plans: dict[str, WidthPlan] = {}
    for number in range(count):
        random = np.random.default_rng([seed, number, *prefix.encode()])
        plans[f"{prefix}-{number}"] = {
            name: widths[int(random.integers(len(widths)))] for name, widths in candidates.items()
        }
    return plans


class MeasuredNetwork:
    """A network of which width plans are measured for the table at ``path``."""

    def __init__(
        self, name: str, module: nn.Module, graph: ChannelGraph, network: Network, table: LatencyTable, path: Path
    ) -> None:
        self.name, self._module, self._graph, self.network = name, module, graph, network
        self._table, self.path = table, path
        measurement = table.measurement
        self.candidates = group_candidates(graph, measurement["granularity"], measurement["at_most"])

    def random_plans(self, prefix: str, count: int, seed: int) -> dict[str, WidthPlan]:
        """See ``random_plans``."""
        return random_plans(self.candidates, prefix, count, seed)

    def calibration_plans(self, count: int) -> dict[str, WidthPlan]:
        """The unpruned network and ``count`` cut ones, always the same."""
        return {"dense": self.network.dense, **self.random_plans(CALIBRATION, count, seed=0)}

    def entries(self, plans: Mapping[str, WidthPlan]) -> list[Validation]:
        """What the table holds of these plans, in their order."""
        held = {entry.plan: entry for entry in self._table.validation if self._is_mine(entry)}
        return [held[plan] for plan in plans if plan in held]

    def missing(self, plans: Mapping[str, WidthPlan]) -> list[str]:
        """The plans that the table holds no measurement of."""
        held = {entry.plan for entry in self.entries(plans)}
        return [plan for plan in plans if plan not in held]

    def calibrate(self, plans: Mapping[str, WidthPlan]) -> None:
        """Fit the network's slowdown to the measured ones of these plans, and bring all its predictions up to date."""
        known_as = self.name, self.network.input_shape
        before = self._table.slowdown(*known_as)
        observations = [
            Observation(predict_us(self.network, plans[entry.plan], self._table), entry.measured_us)
            for entry in self.entries(plans)
        ]
        self._table.slowdowns[known_as] = now = fitted_slowdown(observations)
        self._table.validation = [
            replace(entry, predicted_us=now.network_us(before.alone_of(entry.predicted_us)))
            if self._is_mine(entry)
            else entry
            for entry in self._table.validation
        ]
        self.predict_again(plans)

    def predict_again(self, plans: Mapping[str, WidthPlan]) -> None:
        """Bring stored predictions up to date: the table may have changed since they were made."""
        self._table.validation = [
            replace(entry, predicted_us=self._predict_us(plans[entry.plan]))
            if self._is_mine(entry) and entry.plan in plans
            else entry
            for entry in self._table.validation
        ]

    def measure(
        self,
        plans: Mapping[str, WidthPlan],
        device: Device,
        pool: Compiler,
        reference: Reference,
        on_progress: ProgressCallback,
    ) -> None:
        """Measure the plans that are missing; the table is written as it grows.

        Raises
        ------
        MissingKernelError : the table lacks a kernel of the network; nothing has been compiled by then.
        """
        missing = self.missing(plans)
        predicted = {plan: self._predict_us(plans[plan]) for plan in missing}
        clock = Clock("networks", len(plans) - len(missing), on_progress)
        clock.start(len(missing))
        known_us: dict[str, float] = {}
        anchors: dict[str, LoadedLibrary] = {}
        for start in range(0, len(missing), IN_TURN):
            if not anchors:
                widths = self.calibration_plans(ANCHORS - 1)
                known_us = {entry.plan: entry.measured_us for entry in self.entries(widths)}
                anchors = self._load({plan: widths[plan] for plan in known_us}, device, pool)
            some = self._load({plan: plans[plan] for plan in missing[start : start + IN_TURN]}, device, pool)
            image = np.zeros(self.network.input_shape, dtype=np.float32)
            ratios = time_networks({**anchors, **some}, image, device.profile.measure, reference)
            unit_us = statistics.median(
                [us / ratios[plan] for plan, us in known_us.items()] or [self._table.measurement["reference_us"]]
            )
            for plan in some:
                entry = Validation(self.name, self.network.input_shape, plan, predicted[plan], ratios[plan] * unit_us)
                self._table.validation.append(entry)
            save_table(self._table, self.path)
            clock.count(len(missing), len(some))

    def _predict_us(self, widths: WidthPlan) -> float:
        slowdown = self._table.slowdown(self.name, self.network.input_shape)
        return predict_us(self.network, widths, self._table, slowdown)

    def _load(self, plans: Mapping[str, WidthPlan], device: Device, pool: Compiler) -> dict[str, LoadedLibrary]:
        """Each plan's network, compiled."""
        futures = {
            plan: pool.submit_network(self.network, widths, self._weights(widths)) for plan, widths in plans.items()
        }
        # All are awaited before anything is timed: a busy compiler would slow the networks down.
        files = {plan: future.result() for plan, future in futures.items()}
        libraries = {plan: device.load(file) for plan, file in files.items()}
        for file in files.values():
            file.unlink(missing_ok=True)
        return libraries

    def _weights(self, widths: WidthPlan) -> dict[str, torch.Tensor]:
        """Weights at the given widths; which channels stay makes no difference to latency, so the first do."""
        narrower = {group.name: widths[group.name] for group in self._graph.groups if widths[group.name] < group.width}
        cut = self._graph.cut(self._module, {name: list(range(width)) for name, width in narrower.items()})
        return {name: tensor.detach().cpu() for name, tensor in cut.state_dict().items()}

    def _is_mine(self, entry: Validation) -> bool:
        return (entry.model, entry.input) == (self.name, self.network.input_shape)
