"""One decision of the policy: how many filters each group keeps, by table and budgets, and which, by attention.

Pure but for its inputs: nothing is trained, compiled or written here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aap_hw.activity import doing
from aap_hw.compile.front.network import Kernel, Network
from aap_hw.errors import UserError
from aap_hw.lut.calibrating import ALONE, Slowdown
from aap_hw.lut.predicting import KernelLatency, kernel_costs, kernel_latencies, latency_costs
from aap_hw.lut.table import LatencyTable
from aap_hw.policy import (
    FLOPS,
    LATENCY,
    MEMORY,
    PARAMETERS,
    RESOURCES,
    Allocation,
    GroupChoice,
    Infeasible,
    KernelCost,
    PeakCost,
    Problem,
    allocate,
    allocate_at_threshold,
    allocate_by_threshold,
    best_channels,
    kept_share,
    least_amounts,
    lowest_threshold,
)

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


class Unreachable(UserError):  # noqa: N818 - an answer about the budgets, not a fault
    """No plan meets the budgets.

    Attributes
    ----------
    resource : the name of what there is too little of.
    smallest : the smallest amount of it that a plan reaches, while it keeps the budgets of ``given``.
    """

    def __init__(
        self,
        resource: str,
        budget: float,
        smallest: float,
        dense: float,
        given: tuple[str, ...] = (),
        limits: tuple[str, ...] = (),
    ) -> None:
        self.resource, self.smallest, self.given = resource, smallest, given
        unit = f" {RESOURCES[resource].unit}".rstrip() or f" {resource}"
        within = f" within the budget of {' and '.join(given)}" if given else ""
        super().__init__(
            f"no plan reaches {budget:.4g}{unit}: the smallest reachable {resource}{within} is {_up(smallest)}{unit} "
            f"({_up(100 * smallest / dense)}% of the unpruned network); allow at least that"
            + (f", or leave out {' '.join(limits)}" if limits else "")
        )


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
    """

    widths: dict[str, int]
    keep: dict[str, list[int]]
    predicted_ms: float
    spent: dict[str, float]
    kept_attention: float
    gap: float | None
    seconds: float
    kernels: list[KernelLatency]

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

    @property
    def dense(self) -> dict[str, float]:
        """What the unpruned network takes of every resource; its latency in ms, measured if it was."""
        predicted = self.spent(self.network.dense)
        return predicted if self.unpruned_ms is None else {**predicted, LATENCY.name: self.unpruned_ms}

    def spent(self, widths: Mapping[str, int]) -> dict[str, float]:
        """What the network takes of every resource at the given widths; its latency in ms as predicted."""
        counts = {name: float(sum(count(k, widths) for k in self.network.kernels)) for name, count in COUNTS.items()}
        if self.target is not None:
            from aap_hw.compile.library.footprint import peak_bytes  # loads TVM: two seconds that others do without

            counts[MEMORY.name] = float(peak_bytes(self.network, widths, self.target))
        return {LATENCY.name: self._calibrated(kernel_latencies(self.network, widths, self.table)), **counts}

    def _calibrated(self, kernels: list[KernelLatency]) -> float:
        # Summed as the policy sums, so that both agree on which plans meet a budget.
        return self._network_ms(math.fsum(row.latency_us for row in kernels))

    def _network_ms(self, alone_us: float) -> float:
        return self.slowdown.network_us(alone_us) * self.calibration / 1e3

    @doing("choosing widths")
    def plan(self, scores: Scores, budgets: Mapping[str, float], at_most: Widths | None = None) -> Plan:
        """The plan with the most attention kept that is predicted to meet the budgets; none is slower than unpruned.

        The value of a plan is the sum over groups of sensitivity * log(share of attention kept). For the first channels
        that go, that is the first-order estimate of what the loss grows by; the log also says that groups work in
        series, what reaches the output being the product of what each lets through, so that none is emptied. A branch
        that is removed counts as if REMOVED_SHARE of each of its groups were kept: the stream goes on without it. A
        threshold does not ask for any value.

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
        weights = self._weights(budgets)
        problem = self.problem(scores, [*budgets, weights], at_most)
        dense_us = math.fsum(row.latency_us for row in kernel_latencies(self.network, self.network.dense, self.table))
        allowed = {**budgets, LATENCY.name: dense_us}
        if LATENCY.name in budgets:
            asked_us = self.slowdown.alone_of(budgets[LATENCY.name] * 1e3 / self.calibration)
            allowed[LATENCY.name] = min(asked_us * (1 - ROUNDING), dense_us)
        try:
            if self.allocator == "exact":
                found = allocate(problem, allowed)
            else:
                found = allocate_by_threshold(problem, scores, weights, allowed)
        except Infeasible as refusal:
            raise self._unreachable(refusal, budgets, problem) from refusal
        return self._plan(found, scores, at_most)

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
        # A group that a cut network does not show any more stays as wide as it is.
        allowed = {name: each if name in scores else each[-1:] for name, each in self._allowed(at_most).items()}
        open_to_choice = {name: widths for name, widths in allowed.items() if len(widths) > 1}
        importance = self._importance(list(open_to_choice))
        choices = [
            GroupChoice(name, widths, importance[name] * self._value(name, widths, scores[name]))
            for name, widths in open_to_choice.items()
        ]
        together = [
            groups for groups in self.blocks if all(allowed[name][0] == 0 < len(allowed[name]) - 1 for name in groups)
        ]
        costs: dict[str, Sequence[KernelCost] | PeakCost] = {
            name: kernel_costs(self.network, allowed, COUNTS[name]) for name in resources if name in COUNTS
        }
        if self.target is not None and MEMORY.name in resources:
            from aap_hw.prune.footprints import memory_cost

            costs[MEMORY.name] = memory_cost(self.network, allowed, self.target)
        costs[LATENCY.name] = latency_costs(self.network, allowed, self.table)
        return Problem(choices, costs, together)

    def _importance(self, groups: Sequence[str]) -> dict[str, float]:
        """Sensitivity of each group relative to their mean."""
        total = math.fsum(self.sensitivities.get(name, 0.0) for name in groups)
        if total <= 0:
            return dict.fromkeys(groups, 1.0)
        return {name: self.sensitivities.get(name, 0.0) * len(groups) / total for name in groups}

    def _value(self, name: str, widths: Sequence[int], scores: NDArray[np.float64]) -> NDArray[np.float64]:
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
        spent = self.spent(widths)
        return Plan(
            widths=widths,
            keep={
                name: best_channels(scores[name], width).tolist()
                for name, width in found.widths.items()
                if width < before[name]
            },
            predicted_ms=spent[LATENCY.name],
            spent=spent,
            kept_attention=math.exp(found.value / len(found.widths)) if found.widths else 1.0,
            gap=found.gap,
            seconds=found.seconds,
            kernels=kernel_latencies(self.network, widths, self.table),
        )

    def _unreachable(self, refusal: Infeasible, budgets: Mapping[str, float], problem: Problem) -> Unreachable:
        dense = self.dense

        def amount(resource: str, smallest: float) -> float:
            return self._network_ms(smallest) * (1 + 3 * ROUNDING) if resource == LATENCY.name else smallest

        asked = budgets.get(refusal.resource, dense[refusal.resource])
        smallest = amount(refusal.resource, refusal.smallest)
        found = Unreachable(refusal.resource, asked, smallest, dense[refusal.resource], refusal.given, self.limits)
        if len(budgets) > 1:
            least = {name: amount(name, each) for name, each in least_amounts(problem, budgets).items()}
            rows = [
                (name, _text(name, budgets[name]), _reached(name, each, dense[name])) for name, each in least.items()
            ]
            found.details = _lines([("", "asked for", "smallest reachable alone"), *rows])
        return found


def _text(resource: str, amount: float) -> str:
    return f"{amount:.4g} {RESOURCES[resource].unit}".rstrip()


def _reached(resource: str, smallest: float, dense: float) -> str:
    unit = f" {RESOURCES[resource].unit}".rstrip()
    return f"{_up(smallest)}{unit} ({_up(100 * smallest / dense)}% of the unpruned network)"


def _lines(rows: Sequence[tuple[str, str, str]]) -> tuple[str, ...]:
    """A table as lines of text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return tuple("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _up(value: float) -> str:
    """Three significant digits, or a whole number, rounded up, so that the figure given can be asked for."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"
