"""Width plans of a network, measured end to end, and kept in the table beside what it predicts for them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from aap_hw.activity import doing
from aap_hw.compile.front.mixed import MixedNetwork
from aap_hw.compile.front.network import Network
from aap_hw.compile.keys.precision import INT8
from aap_hw.compile.library.lowering import stand_ins
from aap_hw.compile.library.quantised import stand_in_scales
from aap_hw.device.connection import Device
from aap_hw.device.description import MEASURED
from aap_hw.device.machine import LoadedLibrary
from aap_hw.device.timing import TURNS
from aap_hw.graph import ChannelGraph
from aap_hw.lut.calibrating import ALONE, Observation, fitted_slowdown, uncertainty
from aap_hw.lut.compiling import Compiler
from aap_hw.lut.enumeration import group_candidates
from aap_hw.lut.file import save_table
from aap_hw.lut.measuring import Reference, time_networks
from aap_hw.lut.predicting import predict_us
from aap_hw.lut.progress import Clock, ProgressCallback
from aap_hw.lut.table import LatencyTable, NetworkName, Validation

# Networks that are loaded side by side and timed in turn: a disturbance of seconds then hits a part of each of them.
IN_TURN = 16
# What the cut networks that calibrate a table are called in it.
CALIBRATION = "calibration"
# So many of them tell whether more are needed: until the line that they are predicted by is known as well as this, as a
# share of the latency. A large network is mostly known by then, and each takes long to compile.
FIRST_NETWORKS = 8
WELL_KNOWN = 0.005
# A slowdown whose latencies are off by this share is fitted anew; the numbers in a table's file are rounded.
STALE = 0.01
# The first networks measured are timed again beside all later ones, whose latencies are scaled by how much slower these
# have become: whole networks feel a cache that is shared with neighbours, which a reference kernel does not.
ANCHORS = 4

# Steps of this length, modulo one, cover the numbers from 0 to 1 more evenly than chance does.
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
# How closely the groups of a random plan follow its size, as a sum of Beta parameters: with 3, a group's place among
# its candidates has a standard deviation of a quarter of their number in plans of middling size.
CONCENTRATION = 3.0

WidthPlan = Mapping[str, int]


def random_plans(candidates: Mapping[str, Sequence[int]], prefix: str, count: int, seed: int) -> dict[str, WidthPlan]:
    """Width plans of all sizes, called ``PREFIX-NUMBER``.

    Each plan has a size between the smallest and the unpruned network, and each group a width scattered widely around
    it: any plan may come up. Latencies grow with about the square of the widths, and it is these squares that are
    spread evenly. Without a size of their own all plans would crowd around one, by the law of large numbers, which is
    not what budgets ask for.

    A plan depends on seed, prefix and number only, so that more plans begin with the same ones.
    """
    plans: dict[str, WidthPlan] = {}
    begin = np.random.default_rng([seed, *prefix.encode()]).random()
    for number in range(count):
        random = np.random.default_rng([seed, number, *prefix.encode()])
        size = min(max(math.sqrt((begin + number * GOLDEN_RATIO) % 1), 0.01), 0.99)
        places = random.beta(CONCENTRATION * size, CONCENTRATION * (1 - size), len(candidates)).tolist()
        plans[f"{prefix}-{number}"] = {
            name: widths[min(int(place * len(widths)), len(widths) - 1)]
            for (name, widths), place in zip(candidates.items(), places, strict=True)
        }
    return plans


class MeasuredNetwork:
    """A network of which width plans are measured for the table at ``path``.

    ``network`` is what ``graph`` becomes in the precision of the network's ``name``. If that is a mixture, ``network``
    is in floating point, and ``mixed`` what it is in any mixture.
    """

    def __init__(
        self,
        name: NetworkName,
        module: nn.Module,
        graph: ChannelGraph,
        network: Network,
        table: LatencyTable,
        path: Path,
        mixed: MixedNetwork | None = None,
    ) -> None:
        graph = graph.frozen(network.fixed)
        self.name, self._module, self._graph, self.network = name, module, graph, network
        self.table, self.path, self._mixed = table, path, mixed
        measurement = table.measurement
        self.candidates = group_candidates(graph, measurement["granularity"], measurement["at_most"])

    def random_plans(self, prefix: str, count: int, seed: int) -> dict[str, WidthPlan]:
        """See ``random_plans``."""
        return random_plans(self.candidates, prefix, count, seed)

    def calibration_plans(self, count: int) -> dict[str, WidthPlan]:
        """The unpruned network and ``count`` cut ones, always the same."""
        return {"dense": self.network.dense, **self.random_plans(CALIBRATION, count, seed=0)}

    def needed_plans(self, at_most: int) -> dict[str, WidthPlan]:
        """The plans that calibrate the table, by what is known so far: ``at_most`` cut ones, or fewer if they do."""
        first = self.calibration_plans(min(FIRST_NETWORKS, at_most))
        if self.missing(first) or uncertainty(self._observations(first)) <= WELL_KNOWN:
            return first
        return self.calibration_plans(at_most)

    def is_calibrated(self, at_most: int) -> bool:
        """Whether the plans that calibrate the table first were measured, and its slowdown is that of today's points.

        Points that came from another table by ``lut merge`` may be quicker than those that the slowdown was fitted to.
        """
        held = self.table.slowdowns.get(self.name)
        if held is None or self.missing(self.calibration_plans(min(FIRST_NETWORKS, at_most))):
            return False
        observations = self._observations(self.calibration_plans(at_most))
        fitted = fitted_slowdown(observations)
        return all(
            math.isclose(held.network_us(o.alone_us), fitted.network_us(o.alone_us), rel_tol=STALE)
            for o in observations
        )

    def entries(self, plans: Mapping[str, WidthPlan]) -> list[Validation]:
        """What the table holds of these plans at these very widths, in their order."""
        held = {entry.plan: entry for entry in self.table.validation if self._is_mine(entry)}
        wanted = {plan: (widths, self._floats(plan)) for plan, widths in plans.items() if plan in held}
        return [held[plan] for plan, each in wanted.items() if (held[plan].widths, held[plan].floats) == each]

    def missing(self, plans: Mapping[str, WidthPlan]) -> list[str]:
        """The plans that the table holds no measurement of at their widths."""
        held = {entry.plan for entry in self.entries(plans)}
        return [plan for plan in plans if plan not in held]

    def calibrate(self, plans: Mapping[str, WidthPlan]) -> None:
        """Fit the network's slowdown to the measured ones of these plans, and bring all its predictions up to date."""
        self.table.slowdowns[self.name] = fitted_slowdown(self._observations(plans))
        self.predict_again()

    def _observations(self, plans: Mapping[str, WidthPlan]) -> list[Observation]:
        return [
            Observation(predict_us(self._network(entry.floats), entry.widths, self.table), entry.measured_us)
            for entry in self.entries(plans)
        ]

    def predict_again(self) -> None:
        """Bring stored predictions up to date: the table may have changed since they were made.

        Measurements of a network with other channel groups, which is what the tracer once made of it, are dropped.
        """
        dense = self.network.dense

        def is_of_same_groups(entry: Validation) -> bool:
            return entry.widths.keys() == dense.keys() and all(dense[name] >= w for name, w in entry.widths.items())

        self.table.validation = [
            replace(entry, predicted_us=self._predict_us(entry.widths, entry.floats)) if self._is_mine(entry) else entry
            for entry in self.table.validation
            if not self._is_mine(entry) or is_of_same_groups(entry)
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
        for plan in missing:
            self._predict_us(plans[plan], self._floats(plan))
        clock = Clock("networks", len(plans) - len(missing), on_progress)
        clock.start(len(missing))
        anchors: dict[str, LoadedLibrary] = {}
        for start in range(0, len(missing), IN_TURN):
            if not anchors:
                anchors = self._load(self.anchors(), device, pool)
            widths = {plan: plans[plan] for plan in missing[start : start + IN_TURN]}
            some = self._load(widths, device, pool)
            nothing = [each.float().numpy() for each in self.name.inputs.zeros()]
            turns = TURNS if device.describe().provenance == MEASURED else 1
            ratios = time_networks({**anchors, **some}, nothing, device.profile.measure, reference, turns)
            self.take(ratios, widths)
            clock.count(len(missing), len(some))

    def anchors(self) -> dict[str, WidthPlan]:
        """The plans to time beside others, of those that the table has measured."""
        widths = self.calibration_plans(ANCHORS - 1)
        return {entry.plan: widths[entry.plan] for entry in self.entries(widths)}

    def take(self, ratios: Mapping[str, float], plans: Mapping[str, WidthPlan]) -> None:
        """Take measured networks into the table, and write it.

        ``ratios`` are latencies in units of the reference kernel's, of these plans and of anchors beside them.
        """
        known_us = {entry.plan: entry.measured_us for entry in self.entries(self.anchors())}
        unit_us = statistics.median(
            [us / ratios[plan] for plan, us in known_us.items() if plan in ratios and plan not in plans]
            or [self.table.measurement["reference_us"]]
        )
        self.table.validation = [
            entry for entry in self.table.validation if not (self._is_mine(entry) and entry.plan in plans)
        ] + [
            Validation(
                self.name.model,
                self.name.inputs,
                plan,
                widths,
                self._predict_us(widths, self._floats(plan)),
                ratios[plan] * unit_us,
                self.name.precision,
                self._floats(plan),
            )
            for plan, widths in plans.items()
        ]
        save_table(self.table, self.path)

    def _floats(self, plan: str) -> tuple[str, ...]:
        """The layers of a mixture that a plan leaves in floating point: all if it is unpruned, any of a random one.

        As many as of real plans: these have more layers in int8 the smaller they are, and most in most.
        """
        if self._mixed is None:
            return ()
        random = np.random.default_rng([*plan.encode()])
        in_int8 = 0.0 if plan == "dense" else math.sqrt(random.random())
        exact = self._mixed.precisions[-1]
        return self._mixed.floats({name: INT8 if random.random() < in_int8 else exact for name in self._mixed.domains})

    def _network(self, floats: Sequence[str]) -> Network:
        return self.network if self._mixed is None else self._mixed.network(floats)

    def _predict_us(self, widths: WidthPlan, floats: Sequence[str]) -> float:
        slowdown = self.table.slowdowns.get(self.name, ALONE)
        return predict_us(self._network(floats), widths, self.table, slowdown)

    def _load(self, plans: Mapping[str, WidthPlan], device: Device, pool: Compiler) -> dict[str, LoadedLibrary]:
        """Each plan's network, compiled."""
        futures = {plan: self.compile(plan, widths, pool) for plan, widths in plans.items()}
        # All are awaited before anything is timed: a busy compiler would slow the networks down.
        with doing(f"compiling {len(futures)} networks of other widths"):
            files = {plan: future.result() for plan, future in futures.items()}
        libraries = {plan: device.load(file) for plan, file in files.items()}
        for file in files.values():
            file.unlink(missing_ok=True)
        return libraries

    def compile(self, plan: str, widths: WidthPlan, pool: Compiler, *, alike: bool = False) -> Future[Path]:
        """Begin to compile the network at the widths of a plan; where it needs scales to be quantised by, any will do.

        With ``alike`` every output channel has the weights of the first, which makes no difference to latency, and the
        library a tenth as large once it is compressed.
        """
        network = self._network(self._floats(plan))
        weights = self._weights(network, widths)
        if alike:
            weights = {name: _alike(tensor) for name, tensor in weights.items()}
        network = replace(network, quantisation=stand_in_scales(network, weights))
        return pool.submit_network(network, widths, weights)

    def _weights(self, network: Network, widths: WidthPlan) -> dict[str, torch.Tensor]:
        """Weights at the given widths; which channels stay makes no difference to latency, so the first do."""
        narrower = {group.name: widths[group.name] for group in self._graph.groups if widths[group.name] < group.width}
        cut = self._graph.cut(self._module, {name: list(range(width)) for name, width in narrower.items()})
        state = {name: tensor.detach().cpu() for name, tensor in cut.state_dict().items()}
        return {**stand_ins(network, widths), **state}

    def _is_mine(self, entry: Validation) -> bool:
        return entry.network == self.name


def _alike(weights: torch.Tensor) -> torch.Tensor:
    if weights.ndim == 0 or not weights.is_floating_point():
        return weights
    return weights[:1].expand_as(weights).contiguous()
