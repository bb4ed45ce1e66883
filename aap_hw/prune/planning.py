"""One decision of the policy: how many filters each group keeps, by table and budgets, and which, by attention.

Pure but for its inputs: nothing is trained, compiled or written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aap_hw.activity import doing
from aap_hw.compile.front.network import Kernel, Network
from aap_hw.compile.keys.precision import MIXED
from aap_hw.errors import UserError
from aap_hw.lut.calibrating import ALONE, Slowdown
from aap_hw.lut.mixed import Labels
from aap_hw.lut.predicting import CostOfKernel, KernelLatency, kernel_costs, kernel_latencies, latency_costs
from aap_hw.lut.table import LatencyTable
from aap_hw.policy import (
    FLOPS,
    LATENCY,
    MEMORY,
    PARAMETERS,
    Allocation,
    GroupChoice,
    Infeasible,
    KernelCost,
    PeakCost,
    Problem,
    Undecided,
    allocate,
    allocate_at_threshold,
    allocate_by_threshold,
    best_channels,
    kept_share,
    least_amounts,
    lowest_threshold,
)
from aap_hw.prune.mixture import Mixture
from aap_hw.prune.unreachable import Unreachable

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
# A budget is converted to the table's unit and its cost back: what rounding may add to it on the way.
ROUNDING = 1e-12
# How far from the best a plan of mixed precisions may be, as a share of its value.
MIXED_GAP = 5e-3
# By how much less is allowed after a plan that was predicted to take less than it does.
LEAST_CHANGE = 1e-6


@dataclass(frozen=True)
class Plan:
    """A width plan, the channel plan that follows from attention, and what the table predicts for it.

    Attributes
    ----------
    widths : channels kept of every group, frozen ones included.
    keep : for each group that is cut, the channels kept, counted in the network that was scored.
    predicted_ms : what the network takes if its kernels take ``kernels``.
    spent : what it takes of every resource, by name; latency in ms as predicted.
    kept_attention : geometric mean over the free groups of the share of attention kept, weighted by how much the
        network's outputs depend on each; see ``Planner.plan`` for what a removed branch keeps.
    gap : how far the choice may be from the best, as a share of its value; proven by the solver. None if nothing is
        proven, as of a threshold.
    precisions : what each group is read in, of a network of mixed precisions; see ``aap_hw.prune.mixture``. None of
        any other.
    floats : the layers of such a network that stay in floating point: in the more exact of its precisions.
    """

    widths: dict[str, int]
    keep: dict[str, list[int]]
    predicted_ms: float
    spent: dict[str, float]
    kept_attention: float
    gap: float | None
    seconds: float
    kernels: list[KernelLatency]
    precisions: dict[str, str] | None = None
    floats: list[str] | None = None

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """The plan that ``as_json`` was of."""
        return cls(**{**values, "kernels": [KernelLatency(**row) for row in values["kernels"]]})


@dataclass(frozen=True)
class Planner:
    """Chooses widths for one network on one device.

    Attributes
    ----------
    network : the unpruned network's kernels.
    candidates : widths that each group may take, ascending.
    slowdown : how much longer the network takes than the sum of its kernels, by the table.
    calibration : latency measured on the device over what the table predicts; 1 if nothing was measured.
    unpruned_ms : latency of the unpruned network that shares are of; None if it is only predicted.
    blocks : residual branches that may be removed, each by the groups that go with it.
    sensitivities : how much the network's outputs depend on each group, in any unit; empty counts all alike.
    allocator : how widths are chosen: ``exact`` or ``threshold``, see ``aap_hw.policy``.
    target : the machine that memory is counted for; None leaves memory out.
    threshold_weights : the resource that a threshold's weights are shares of; None takes the first limited one of
        latency, FLOPs and parameters, and parameters if none is.
    limits : the user's options that keep groups or branches from being cut, for who wonders why so little can be.
    mixture : if groups are given precisions, too, what is known of that. Then ``network`` is in the more exact one, and
        so is the unpruned one that shares are of.
    """

    network: Network
    candidates: Mapping[str, tuple[int, ...]]
    table: LatencyTable
    slowdown: Slowdown = ALONE
    calibration: float = 1.0
    unpruned_ms: float | None = None
    blocks: tuple[tuple[str, ...], ...] = ()
    sensitivities: Mapping[str, float] = field(default_factory=dict)
    allocator: str = "exact"
    threshold_weights: str | None = None
    target: DeviceTarget | None = None
    limits: tuple[str, ...] = ()
    mixture: Mixture | None = None

    @property
    def dense(self) -> dict[str, float]:
        """What the unpruned network takes of every resource; its latency in ms, measured if it was."""
        predicted = self.spent(self.network.dense, self._no_int8)
        return predicted if self.unpruned_ms is None else {**predicted, LATENCY.name: self.unpruned_ms}

    @property
    def _no_int8(self) -> tuple[str, ...]:
        return () if self.mixture is None else tuple(self.mixture.network.read)

    def network_of(self, floats: Sequence[str] | None) -> Network:
        """The kernels of a plan whose layers ``floats`` stay in floating point."""
        return self.network if self.mixture is None or floats is None else self.mixture.network.network(floats)

    def spent(self, widths: Mapping[str, int], floats: Sequence[str] | None = None) -> dict[str, float]:
        """What the network takes of every resource at the given widths; its latency in ms as predicted.

        Of a network of mixed precisions ``floats`` are the layers in floating point.
        """
        counts = {name: float(sum(count(k, widths) for k in self.network.kernels)) for name, count in COUNTS.items()}
        if self.target is not None:
            from aap_hw.compile.library.footprint import peak_bytes  # loads TVM: two seconds that others do without

            counts[MEMORY.name] = float(peak_bytes(self.network, widths, self.target))
        kernels = kernel_latencies(self.network_of(floats), widths, self.table)
        return {LATENCY.name: self._calibrated(kernels, self._slowdown(floats)), **counts}

    def _calibrated(self, kernels: list[KernelLatency], slowdown: Slowdown) -> float:
        # Summed as the policy sums, so that both agree on which plans meet a budget.
        return self._network_ms(math.fsum(row.latency_us for row in kernels), slowdown)

    def _network_ms(self, alone_us: float, slowdown: Slowdown) -> float:
        return slowdown.network_us(alone_us) * self.calibration / 1e3

    def _slowdown(self, floats: Sequence[str] | None) -> Slowdown:
        return self.slowdown if self.mixture is None or floats is None else self.mixture.slowdown(floats, self.slowdown)

    @doing("choosing widths")
    def plan(self, scores: Scores, budgets: Mapping[str, float], at_most: Widths | None = None) -> Plan:
        """The plan with the most attention kept that is predicted to meet the budgets; none is slower than unpruned.

        The value of a plan is the sum over groups of sensitivity * log(share of attention kept). For the first channels
        that go, that is the first-order estimate of what the loss grows by; the log also says that groups work in
        series, what reaches the output being the product of what each lets through, so that none is emptied. A branch
        that is removed counts as if REMOVED_SHARE of each of its groups were kept: the stream goes on without it. A
        threshold does not ask for any value.

        With precisions, it is the most valuable one of `plans`, so that no precision alone gives a better one.

        Parameters
        ----------
        scores
            Attention of every channel that is still there, by group.
        budgets
            What is allowed of each resource that is limited, by name; latency in ms as predicted.
        at_most
            Widths that an earlier round left; none is exceeded.

        Raises
        ------
        Unreachable : no plan meets the budgets; the smallest reachable amount is named.
        MissingKernelError : the table lacks a kernel of the network.
        """
        found = self.plans(scores, budgets, at_most)
        seconds = math.fsum(plan.seconds for plan in found.values())
        return replace(max(found.values(), key=lambda plan: plan.kept_attention), seconds=seconds)

    def plans(self, scores: Scores, budgets: Mapping[str, float], at_most: Widths | None = None) -> dict[str, Plan]:
        """The best plan of all that may be, and that of each precision alone, where there are several to choose from.

        They are called ``mixed`` and as the precisions are, and those that cannot meet the budgets are left out. Each
        precision is tried alone as its slowdown may be known, which is another one than that of mixtures. Parameters
        and errors are those of `plan`.
        """
        problem = self.problem(scores, [*budgets, self._weights(budgets)], at_most)
        tried: dict[str, tuple[Problem, Slowdown]] = {MIXED: (problem, self.slowdown)}
        if self.mixture is not None:
            alone = self.mixture.slowdowns
            for precision in self.mixture.network.precisions:
                tried[precision] = problem.of_precision(precision), alone.get(precision, self.slowdown)
        found: dict[str, Plan] = {}
        refusals: list[UserError] = []
        for name, (each, slowdown) in tried.items():
            try:
                found[name] = self._best(each, slowdown, scores, budgets, at_most)
            except (Unreachable, Undecided) as refusal:
                refusals.append(refusal)
        if not found:
            raise refusals[0]
        return found

    def _best(
        self,
        problem: Problem,
        slowdown: Slowdown,
        scores: Scores,
        budgets: Mapping[str, float],
        at_most: Widths | None,
    ) -> Plan:
        """The best plan of some labels, of a network that is so much slower than its kernels."""
        dense = kernel_latencies(self.network, self.network.dense, self.table)
        dense_us = math.fsum(row.latency_us for row in dense)
        if self.mixture is not None:
            dense_us = slowdown.alone_of(self._slowdown(self._no_int8).network_us(dense_us))
        allowed = {**budgets, LATENCY.name: dense_us}
        if LATENCY.name in budgets:
            asked_us = slowdown.alone_of(budgets[LATENCY.name] * 1e3 / self.calibration)
            allowed[LATENCY.name] = min(asked_us * (1 - ROUNDING), dense_us)
        try:
            if self.allocator != "exact":
                return self._plan(
                    allocate_by_threshold(problem, scores, self._weights(budgets), allowed), scores, at_most
                )
            if self.mixture is None:
                return self._plan(allocate(problem, allowed), scores, at_most)
            return self._within(problem, scores, budgets, allowed, at_most)
        except Infeasible as refusal:
            raise self._unreachable(refusal, budgets, problem, slowdown) from refusal

    def _within(
        self,
        problem: Problem,
        scores: Scores,
        budgets: Mapping[str, float],
        allowed: Mapping[str, float],
        at_most: Widths | None,
    ) -> Plan:
        """A plan of mixed precisions that is predicted to keep the latency budget as the network that it is.

        What is chosen may be in one precision altogether, whose slowdown is another one.
        """
        limit_ms = budgets.get(LATENCY.name, math.inf)
        while True:
            found = allocate(problem, allowed, relative_gap=MIXED_GAP)
            plan = self._plan(found, scores, at_most)
            if plan.predicted_ms <= limit_ms * (1 + 3 * ROUNDING):
                return plan
            less = found.spent[LATENCY.name] * min(limit_ms / plan.predicted_ms, 1 - LEAST_CHANGE)
            allowed = {**allowed, LATENCY.name: less}

    def plan_at(self, threshold: float, scores: Scores, at_most: Widths | None = None) -> Plan:
        """The plan that the paper's rule gives at a threshold T, whatever it takes."""
        weights = self._weights({})
        problem = self.problem(scores, [weights], at_most)
        return self._plan(allocate_at_threshold(problem, scores, weights, threshold), scores, at_most)

    def lowest_threshold(self, scores: Scores, at_most: Widths | None = None) -> float:
        """The lowest T at which the paper's rule cuts something; infinite if there is none."""
        weights = self._weights({})
        return lowest_threshold(self.problem(scores, [weights], at_most), scores, weights)

    def problem(self, scores: Scores, resources: Collection[str], at_most: Widths | None = None) -> Problem:
        """The groups that may be narrowed, what their widths are worth, and what they take of some resources.

        Latency is always among them, in microseconds of the kernels on their own.
        """
        allowed = self._left(scores, at_most)
        labels = self._labels(allowed)
        importance = self._importance([name for name, widths in allowed.items() if len(widths) > 1])
        # What cannot be narrowed is known by its domain.
        worth = [importance(each.name if each.name in self.candidates else each.domain) for each in labels]
        choices = [self._choice(each, one, scores) for each, one in zip(labels, worth, strict=True)]
        together = [
            groups for groups in self.blocks if all(allowed[name][0] == 0 < len(allowed[name]) - 1 for name in groups)
        ]
        costs: dict[str, Sequence[KernelCost] | PeakCost] = {
            name: self._costs(allowed, labels, COUNTS[name]) for name in resources if name in COUNTS
        }
        if self.target is not None and MEMORY.name in resources:
            from aap_hw.prune.footprints import memory_cost

            costs[MEMORY.name] = memory_cost(self.network, allowed, self.target)
        if self.mixture is None:
            costs[LATENCY.name] = latency_costs(self.network, allowed, self.table)
            return Problem(choices, costs, together)
        costs[LATENCY.name] = self.mixture.latency(allowed, labels, self._latency_us)
        return Problem(choices, costs, together, self.mixture.alike(labels))

    def _labels(self, allowed: Mapping[str, tuple[int, ...]]) -> list[Labels]:
        if self.mixture is None:
            return [Labels(name, widths) for name, widths in allowed.items() if len(widths) > 1]
        return self.mixture.labels(allowed, [name for name, widths in self.candidates.items() if len(widths) > 1])

    def _choice(self, labels: Labels, importance: float, scores: Scores) -> GroupChoice:
        """What each label is worth."""
        of_width = np.zeros(len(labels.widths))
        if len(labels.widths) > 1:
            of_width = self._value(labels.widths, scores[labels.name])
        losses = [self.mixture.loss(labels.domain, each) for each in labels.precisions] if self.mixture else []
        value = np.array([of_width[w] + (losses[p] if losses else 0.0) for w, p in labels.each])
        if labels.widths[0] == 0:
            value[0] = min(value[0] - (losses[0] if losses else 0.0), value[1]) if len(value) > 1 else 0.0
        precisions = tuple(labels.precisions[p] for _, p in labels.each) if labels.precisions else ()
        return GroupChoice(labels.name, tuple(labels.widths[w] for w, _ in labels.each), importance * value, precisions)

    def _costs(
        self, allowed: Mapping[str, tuple[int, ...]], labels: Sequence[Labels], cost: CostOfKernel
    ) -> list[KernelCost]:
        if self.mixture is None:
            return kernel_costs(self.network, allowed, cost)
        return self.mixture.counted(allowed, labels, cost)

    def _latency_us(self, kernel: Kernel, widths: Widths) -> float:
        return self.table.latency(kernel.at(widths)).us

    def _importance(self, groups: Sequence[str]) -> Callable[[str], float]:
        """Sensitivity of anything relative to the mean of some groups."""
        total = math.fsum(self.sensitivities.get(name, 0.0) for name in groups)
        if total <= 0:
            return lambda name: 1.0
        return lambda name: self.sensitivities.get(name, 0.0) * len(groups) / total

    def _value(self, widths: Sequence[int], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        value: NDArray[np.float64] = np.log(np.maximum(kept_share(scores, widths), LEAST_SHARE))
        if widths[0] == 0:
            value[0] = min(value[1], math.log(REMOVED_SHARE))
        return value

    def _weights(self, budgets: Iterable[str]) -> str:
        """The resource that a threshold's weights are shares of."""
        if self.threshold_weights is not None:
            return self.threshold_weights
        limited = [name for name in (LATENCY.name, FLOPS.name, PARAMETERS.name) if name in budgets]
        return next(iter(limited), PARAMETERS.name)

    def _left(self, scores: Scores, at_most: Widths | None) -> dict[str, tuple[int, ...]]:
        # A group that a cut network does not show any more stays as wide as it is.
        return {name: each if name in scores else each[-1:] for name, each in self._allowed(at_most).items()}

    def _allowed(self, at_most: Widths | None) -> dict[str, tuple[int, ...]]:
        """The candidates of each group that an earlier round left."""
        limits = {**self.network.dense, **(at_most or {})}
        removable = {name for groups in self.blocks for name in groups} if self.allocator == "exact" else ()
        candidates = {name: (0, *each) if name in removable else each for name, each in self.candidates.items()}
        return {
            name: tuple(w for w in widths if w <= limits[name]) or (limits[name],)
            for name, widths in candidates.items()
        }

    def _plan(self, found: Allocation, scores: Scores, at_most: Widths | None) -> Plan:
        before = {**self.network.dense, **(at_most or {})}
        widths = {name: found.widths.get(name, left[-1]) for name, left in self._allowed(at_most).items()}
        precisions: dict[str, str] | None = None
        floats: list[str] | None = None
        if self.mixture is not None:
            chosen = self.mixture.precisions(found, self._labels(self._left(scores, at_most)))
            precisions, floats = self.mixture.by_group(chosen), list(self.mixture.network.floats(chosen))
        spent = self.spent(widths, floats)
        narrowed = [name for name in found.widths if name in self.candidates]
        return Plan(
            widths=widths,
            keep={
                name: best_channels(scores[name], width).tolist()
                for name, width in found.widths.items()
                if width < before.get(name, 0)
            },
            predicted_ms=spent[LATENCY.name],
            spent=spent,
            kept_attention=math.exp(found.value / len(narrowed)) if narrowed else 1.0,
            gap=found.gap,
            seconds=found.seconds,
            kernels=kernel_latencies(self.network_of(floats), widths, self.table),
            precisions=precisions,
            floats=floats,
        )

    def _unreachable(
        self, refusal: Infeasible, budgets: Mapping[str, float], problem: Problem, slowdown: Slowdown
    ) -> Unreachable:
        def amount(resource: str, smallest: float) -> float:
            return self._network_ms(smallest, slowdown) * (1 + 3 * ROUNDING) if resource == LATENCY.name else smallest

        smallest = amount(refusal.resource, refusal.smallest)
        least = {}
        if len(budgets) > 1:
            least = {name: amount(name, each) for name, each in least_amounts(problem, budgets).items()}
        provenance = self.table.device["provenance"]
        return Unreachable.of(
            refusal.resource, smallest, budgets, self.dense, least, refusal.given, self.limits, provenance
        )
