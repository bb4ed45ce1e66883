"""One decision of the policy: how many filters each group keeps, by table and budgets, and which, by attention.

What may be chosen, and what that is worth, is in `aap_hw.prune.choices`; what a network takes, in `aap_hw.prune.costs`.
Pure but for its inputs: nothing is trained, compiled or written here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from aap_hw.activity import doing
from aap_hw.compile.keys.precision import MIXED
from aap_hw.errors import UserError
from aap_hw.lut.calibrating import Slowdown
from aap_hw.lut.predicting import KernelLatency
from aap_hw.policy import (
    FLOPS,
    LATENCY,
    PARAMETERS,
    Allocation,
    Infeasible,
    Problem,
    Undecided,
    allocate_at_threshold,
    allocate_by_threshold,
    allocate_to_fit,
    best_channels,
    least_amounts,
    lowest_threshold,
)
from aap_hw.prune.choices import Choices, Scores, Widths
from aap_hw.prune.costs import Costs
from aap_hw.prune.unreachable import Unreachable

# A budget is converted to the table's unit and its cost back: what rounding may add to it on the way.
ROUNDING = 1e-12
# How far from the best a plan may be, as a share of its value; and one of mixed precisions.
GAP = 1e-4
MIXED_GAP = 1e-3


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
    gap : how far the choice may be from the best, as a share of its value; proven by the solver, for what the kernels'
        costs are to it (`aap_hw.policy.fitting`). None if nothing is proven, as of a threshold.
    seconds : that the choice took.
    kernels : what the table says of each kernel at these widths, in calling order.
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
    costs : what the network takes at any widths.
    candidates : widths that each group may take, ascending.
    blocks : residual branches that may be removed, each by the groups that go with it.
    sensitivities : how much the network's outputs depend on each group, in any unit; empty counts all alike.
    allocator : how widths are chosen: ``exact`` or ``threshold``, see ``aap_hw.policy``.
    threshold_weights : the resource that a threshold's weights are shares of; None takes the first limited one of
        latency, FLOPs and parameters, and parameters if none is.
    limits : the user's options that keep groups or branches from being cut, for who wonders why so little can be.
    """

    costs: Costs
    candidates: Mapping[str, tuple[int, ...]]
    blocks: tuple[tuple[str, ...], ...] = ()
    sensitivities: Mapping[str, float] = field(default_factory=dict)
    allocator: str = "exact"
    threshold_weights: str | None = None
    limits: tuple[str, ...] = ()

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
        return _best_of(self.plans(scores, budgets, at_most))

    @doing("choosing widths")
    def curve(self, scores: Scores, budgets: Sequence[Mapping[str, float]]) -> list[Plan | UserError]:
        """What `plan` gives for each of several budgets, or why it gives none; what is common to all is made once."""
        limited = {name for each in budgets for name in (*each, self._weights(each))}
        problems = self._problems(scores, limited, None)
        found: list[Plan | UserError] = []
        for each in budgets:
            try:
                found.append(_best_of(self._plans(problems, scores, each, None)))
            except (Unreachable, Undecided) as refusal:
                found.append(refusal)
        return found

    def plans(self, scores: Scores, budgets: Mapping[str, float], at_most: Widths | None = None) -> dict[str, Plan]:
        """The best plan of all that may be, and that of each precision alone, where there are several to choose from.

        They are called ``mixed`` and as the precisions are, and those that cannot meet the budgets are left out. Each
        precision is tried alone as its slowdown may be known, which is another one than that of mixtures. Parameters
        and errors are those of `plan`.
        """
        problems = self._problems(scores, [*budgets, self._weights(budgets)], at_most)
        return self._plans(problems, scores, budgets, at_most)

    def _problems(
        self, scores: Scores, resources: Collection[str], at_most: Widths | None
    ) -> dict[str, tuple[Problem, Slowdown]]:
        """All that may be, and each precision alone, with how much longer such a network takes than its kernels."""
        problem = self.problem(scores, resources, at_most)
        found: dict[str, tuple[Problem, Slowdown]] = {MIXED: (problem, self.costs.slowdown)}
        if self.costs.mixture is not None:
            for precision in self.costs.mixture.network.precisions:
                found[precision] = problem.of_precision(precision), self.costs.slowdown_in(precision)
        return found

    def _plans(
        self,
        problems: Mapping[str, tuple[Problem, Slowdown]],
        scores: Scores,
        budgets: Mapping[str, float],
        at_most: Widths | None,
    ) -> dict[str, Plan]:
        found: dict[str, Plan] = {}
        refusals: list[UserError] = []
        for name, (each, slowdown) in problems.items():
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
        dense_us = self.costs.dense_alone_us(slowdown)
        allowed = {**budgets, LATENCY.name: dense_us}
        if LATENCY.name in budgets:
            asked_us = self.costs.alone_us(budgets[LATENCY.name], slowdown)
            allowed[LATENCY.name] = min(asked_us * (1 - ROUNDING), dense_us)
        try:
            if self.allocator == "exact":
                found = self._allocate(problem, slowdown, scores, allowed, at_most)
            else:
                found = allocate_by_threshold(problem, scores, self._weights(budgets), allowed)
        except Infeasible as refusal:
            raise self._unreachable(refusal, budgets, problem, slowdown) from refusal
        return self._plan(found, scores, at_most)

    def _allocate(
        self,
        problem: Problem,
        slowdown: Slowdown,
        scores: Scores,
        allowed: Mapping[str, float],
        at_most: Widths | None,
    ) -> Allocation:
        """The best labels whose network takes what is allowed; of latency that is the sum over its kernels."""

        def takes(found: Allocation) -> dict[str, float]:
            chosen = self._chosen(found, self._choices(scores, at_most))
            spent = self.costs.spent(chosen.widths, chosen.floats)
            return {**spent, LATENCY.name: self.costs.alone_us(spent[LATENCY.name], slowdown)}

        gap = GAP if self.costs.mixture is None else MIXED_GAP
        return allocate_to_fit(problem, allowed, takes, relative_gap=gap)

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
        """What may be chosen, what it is worth, and what it takes of some resources; of latency in any case."""
        return self._choices(scores, at_most).problem(resources)

    def _choices(self, scores: Scores, at_most: Widths | None) -> Choices:
        return Choices(
            self.costs.network,
            self.candidates,
            self.costs.table,
            self.blocks if self.allocator == "exact" else (),
            self.sensitivities,
            self.costs.target,
            self.costs.mixture,
            scores,
            at_most or {},
        )

    def _weights(self, budgets: Iterable[str]) -> str:
        """The resource that a threshold's weights are shares of."""
        if self.threshold_weights is not None:
            return self.threshold_weights
        limited = [name for name in (LATENCY.name, FLOPS.name, PARAMETERS.name) if name in budgets]
        return next(iter(limited), PARAMETERS.name)

    def _plan(self, found: Allocation, scores: Scores, at_most: Widths | None) -> Plan:
        before = {**self.costs.network.dense, **(at_most or {})}
        chosen = self._chosen(found, self._choices(scores, at_most))
        spent = self.costs.spent(chosen.widths, chosen.floats)
        narrowed = [name for name in found.widths if name in self.candidates]
        return Plan(
            widths=chosen.widths,
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
            kernels=self.costs.kernels(chosen.widths, chosen.floats),
            precisions=chosen.precisions,
            floats=chosen.floats,
        )

    def _chosen(self, found: Allocation, choices: Choices) -> _Chosen:
        widths = {name: found.widths.get(name, allowed[-1]) for name, allowed in choices.allowed.items()}
        if (mixture := self.costs.mixture) is None:
            return _Chosen(widths)
        precisions = mixture.precisions(found, choices.labels)
        return _Chosen(widths, mixture.by_group(precisions), list(mixture.network.floats(precisions)))

    def _unreachable(
        self, refusal: Infeasible, budgets: Mapping[str, float], problem: Problem, slowdown: Slowdown
    ) -> Unreachable:
        def amount(resource: str, smallest: float) -> float:
            if resource != LATENCY.name:
                return smallest
            return self.costs.network_ms(smallest, slowdown) * (1 + 3 * ROUNDING)

        smallest = amount(refusal.resource, refusal.smallest)
        least = {}
        if len(budgets) > 1:
            least = {name: amount(name, each) for name, each in least_amounts(problem, budgets).items()}
        provenance = self.costs.table.device["provenance"]
        return Unreachable.of(
            refusal.resource, smallest, budgets, self.costs.dense, least, refusal.given, self.limits, provenance
        )


@dataclass(frozen=True)
class _Chosen:
    """What labels are of the network; see `Plan`."""

    widths: dict[str, int]
    precisions: dict[str, str] | None = None
    floats: list[str] | None = None


def _best_of(plans: Mapping[str, Plan]) -> Plan:
    """The plan that keeps the most, with the time that all of them took."""
    seconds = math.fsum(plan.seconds for plan in plans.values())
    return replace(max(plans.values(), key=lambda plan: plan.kept_attention), seconds=seconds)
