"""What the groups of a network may be given, what each label is worth, and what the kernels take at it.

Nothing is chosen here; how the problem is asked, and what comes of it, is in `aap_hw.prune.planning`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aap_hw.compile.front.network import Kernel, Network
from aap_hw.lut.mixed import Labels
from aap_hw.lut.predicting import CostOfKernel, kernel_costs, latency_costs
from aap_hw.lut.table import LatencyTable
from aap_hw.policy import FLOPS, LATENCY, MEMORY, PARAMETERS, GroupChoice, KernelCost, PeakCost, Problem, kept_share
from aap_hw.prune.mixture import Mixture

if TYPE_CHECKING:
    from aap_hw.compile.keys.target import DeviceTarget

Scores = Mapping[str, NDArray[np.float64]]
Widths = Mapping[str, int]
# A group that keeps next to nothing would be worth minus infinity.
LEAST_SHARE = 1e-6
# What a removed branch is counted as keeping; docs/DECISIONS.md says what was tried.
REMOVED_SHARE = 0.03
# What a kernel takes of the resources that can be counted, under a width plan.
COUNTS = {PARAMETERS.name: Kernel.parameters, FLOPS.name: Kernel.multiply_accumulates}


@dataclass(frozen=True)
class Choices:
    """What may be chosen in one round, by the scores of its network.

    Attributes
    ----------
    network, candidates, table, sensitivities, mixture : see `aap_hw.prune.planning.Planner`.
    blocks : residual branches that may be removed, each by the groups that go with it.
    target : the machine that memory is counted for; None leaves memory out.
    scores : attention of every channel that is still there, by group.
    widest : widths that an earlier round left of groups; none is exceeded.
    """

    network: Network
    candidates: Mapping[str, tuple[int, ...]]
    table: LatencyTable
    blocks: tuple[tuple[str, ...], ...]
    sensitivities: Mapping[str, float]
    target: DeviceTarget | None
    mixture: Mixture | None
    scores: Scores
    widest: Widths

    @cached_property
    def allowed(self) -> dict[str, tuple[int, ...]]:
        """The candidates of each group that an earlier round left."""
        limits = {**self.network.dense, **self.widest}
        removable = {name for groups in self.blocks for name in groups}
        candidates = {name: (0, *each) if name in removable else each for name, each in self.candidates.items()}
        return {
            name: tuple(w for w in widths if w <= limits[name]) or (limits[name],)
            for name, widths in candidates.items()
        }

    @cached_property
    def left(self) -> dict[str, tuple[int, ...]]:
        """The same, but that a group that a cut network does not show any more stays as wide as it is."""
        return {name: each if name in self.scores else each[-1:] for name, each in self.allowed.items()}

    @cached_property
    def labels(self) -> list[Labels]:
        """The labels of each group that has a choice."""
        if self.mixture is None:
            return [Labels(name, widths) for name, widths in self.left.items() if len(widths) > 1]
        # A group of one width has a choice, too, if its branch may go.
        open_groups = [name for name, widths in self.candidates.items() if max(len(widths), len(self.left[name])) > 1]
        return self.mixture.labels(self.left, open_groups)

    def problem(self, resources: Collection[str]) -> Problem:
        """The groups that may be narrowed, what their labels are worth, and what they take of some resources.

        Latency is always among them, in microseconds of the kernels on their own.
        """
        unit = self._unit([name for name, widths in self.left.items() if len(widths) > 1])
        choices = [self._choice(each, unit) for each in self.labels]
        together = [
            groups
            for groups in self.blocks
            if all(self.left[name][0] == 0 < len(self.left[name]) - 1 for name in groups)
        ]
        costs: dict[str, Sequence[KernelCost] | PeakCost] = {
            name: self._costs(COUNTS[name]) for name in resources if name in COUNTS
        }
        if self.target is not None and MEMORY.name in resources:
            from aap_hw.prune.footprints import memory_cost, mixed_memory_cost

            costs[MEMORY.name] = (
                memory_cost(self.network, self.left, self.target)
                if self.mixture is None
                else mixed_memory_cost(self.mixture.network, self.left, self.labels, self.target)
            )
        if (mixture := self.mixture) is None:
            costs[LATENCY.name] = latency_costs(self.network, self.left, self.table)
            return Problem(choices, costs, together)

        def latency_us(kernel: Kernel, widths: Widths) -> float:
            return self.table.latency(kernel.at(widths), mixture.network.precision).us

        costs[LATENCY.name] = mixture.latency(self.left, self.labels, latency_us)
        return Problem(choices, costs, together, mixture.alike(self.labels))

    def _choice(self, labels: Labels, unit: float | None) -> GroupChoice:
        """What each label is worth."""
        of_width = np.zeros(len(labels.widths))
        if len(labels.widths) > 1:
            importance = 1.0 if unit is None else self.sensitivities.get(labels.name, 0.0) / unit
            of_width = importance * self._value(labels.widths, self.scores[labels.name])
        losses = self._losses(labels) / (1.0 if unit is None else unit)
        value = np.array([of_width[w] - losses[p] for w, p in labels.each])
        if labels.widths[0] == 0:
            value[0] = min(of_width[0], value[1]) if len(value) > 1 else 0.0
        precisions = tuple(labels.precisions[p] for _, p in labels.each) if labels.precisions else ()
        return GroupChoice(labels.name, tuple(labels.widths[w] for w, _ in labels.each), value, precisions)

    def _losses(self, labels: Labels) -> NDArray[np.float64]:
        """What each precision of a choice costs; those that share a domain share that evenly."""
        if self.mixture is None or not labels.precisions:
            return np.zeros(1)
        beside = sum(each.domain == labels.domain for each in self.labels)
        return np.array([self.mixture.loss(labels.domain, each) for each in labels.precisions]) / beside

    def _costs(self, cost: CostOfKernel) -> list[KernelCost]:
        if self.mixture is None:
            return kernel_costs(self.network, self.left, cost)
        return self.mixture.counted(self.left, self.labels, cost)

    def _unit(self, groups: Sequence[str]) -> float | None:
        """The mean sensitivity of some groups; None if it is 0, where all groups count alike."""
        total = math.fsum(self.sensitivities.get(name, 0.0) for name in groups)
        return total / len(groups) if total > 0 else None

    def _value(self, widths: Sequence[int], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        value: NDArray[np.float64] = np.log(np.maximum(kept_share(scores, widths), LEAST_SHARE))
        if widths[0] == 0:
            value[0] = min(value[1], math.log(REMOVED_SHARE))
        return value
