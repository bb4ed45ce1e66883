"""The methods that are compared by accuracy: each names the channels to keep at a latency budget on the same table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from _allocators import FLOPS, Allocator, exact, exact_flops, threshold, uniform, widths_of
from _torch_pruning import torch_pruning

from aap_hw.attention.alternatives import weight_l1
from aap_hw.compile.keys.precision import FP32, INT8, MIXED, NetworkPrecision
from aap_hw.policy import LATENCY, Problem, best_channels
from aap_hw.prune.baseline import Baseline
from aap_hw.prune.choices import Scores
from aap_hw.prune.scoring import scores_of
from aap_hw.prune.task import PruneSettings, Task
from aap_hw.prune.unreachable import Unreachable

Kept = dict[str, list[int]]


@dataclass(frozen=True)
class Method:
    """A way to a faster network.

    Attributes
    ----------
    label : how it is written in a table.
    chooser : what chooses the channels, as `Chooser.kept` calls it.
    precision : what the network is deployed in; a mixed one is chosen layer by layer. What is in int8 is quantised
        after training.
    seeds : how many trainings tell what it reaches, where there is time for several.
    """

    label: str
    chooser: str
    precision: NetworkPrecision = FP32
    seeds: int = 1


# Ours first.
METHODS = {
    "joint": Method("widths, depth and precisions at once (aap-hw --precision mixed)", "joint", MIXED, seeds=2),
    "exact": Method("read attention + exact latency, depth too (aap-hw)", "exact"),
    "exact_no_depth": Method("read attention + exact latency, widths only (aap-hw --no-depth)", "exact_no_depth"),
    "unpruned_int8": Method("unpruned, int8", "unpruned", INT8),
    "torch_pruning_int8": Method("torch-pruning (global magnitude), then int8", "torch_pruning", INT8, seeds=2),
    "torch_pruning": Method("torch-pruning (global magnitude)", "torch_pruning"),
    "published_attention": Method(
        "published attention + exact latency, groups alike, widths only", "published_attention"
    ),
    "threshold": Method("published attention + threshold (AAP's rule)", "threshold"),
    "flops": Method("published attention + FLOPs, groups alike", "flops"),
    "uniform": Method("magnitude + uniform width", "uniform"),
}
OURS = ("joint", "exact", "exact_no_depth")
LABELS = {name: method.label for name, method in METHODS.items()}


@dataclass(frozen=True)
class Choice:
    """A network that a method chose.

    Attributes
    ----------
    kept : channels of every group that is cut; empty if none is.
    precision : what it computes in: float32 or int8.
    floats : layers that stay in float32 all the same.
    predicted_ms : its latency by the table.
    """

    kept: Kept
    precision: NetworkPrecision
    floats: tuple[str, ...]
    predicted_ms: float


class Chooser:
    """Chooses for one network; what methods have in common is worked out once.

    Parameters
    ----------
    floats
        For methods that deploy in int8: the layers that stay in float32. The latency is then what ``dense``, which is
        of mixed precision, has for such a network, so that all methods' budgets are of one table and one calibration.
    """

    def __init__(
        self, task: Task, dense: Baseline, settings: PruneSettings, floats: tuple[str, ...] | None = None
    ) -> None:
        self._task, self._dense, self._settings, self._floats = task, dense, settings, floats

    def choice(self, chooser: str, budget_ms: float) -> Choice | None:
        """What is within a latency budget, the unpruned network if that is; None if the budget is out of reach."""
        if chooser == "joint":
            return self._joint(budget_ms)
        kept: Kept | None = {} if self._predicted_ms({}) <= budget_ms else self._kept(chooser, budget_ms)
        if kept is None:
            return None
        predicted_ms = self._predicted_ms({group: len(channels) for group, channels in kept.items()})
        return Choice(kept, FP32 if self._floats is None else INT8, self._floats or (), predicted_ms)

    def _joint(self, budget_ms: float) -> Choice | None:
        planner = self._dense.planner
        assert planner.costs.mixture is not None
        try:
            plan = planner.plan(self._read, {LATENCY.name: budget_ms})
        except Unreachable:
            return None
        floats = tuple(plan.floats or ())
        if planner.costs.mixture.network.is_floating(floats):
            return Choice(plan.keep, FP32, (), plan.predicted_ms)
        return Choice(plan.keep, INT8, floats, plan.predicted_ms)

    def _kept(self, chooser: str, budget_ms: float) -> Kept | None:
        if chooser == "unpruned":
            return None
        if chooser == "torch_pruning":
            shape = self._task.origin.inputs.image
            assert shape is not None
            return torch_pruning(
                self._dense.module, self._dense.graph, shape, lambda widths: self._predicted_ms(widths) <= budget_ms
            )
        how: dict[str, tuple[Problem, Allocator, Scores]] = {
            "exact": (self._ours, exact, self._read),
            "exact_no_depth": (self._narrow, exact, self._read),
            "published_attention": (self._others, exact, self._attention),
            "threshold": (self._others, threshold(self._attention), self._attention),
            "flops": (self._others, exact_flops, self._attention),
            "uniform": (self._others, uniform, weight_l1(self._dense.module, self._dense.graph)),
        }
        problem, allocator, scores = how[chooser]
        planner = self._dense.planner
        chosen = allocator(problem, planner.costs.alone_us(budget_ms, planner.costs.slowdown))
        if chosen is None:
            return None
        widths, unpruned = widths_of(problem, chosen), self._dense.network.dense
        return {g: best_channels(scores[g], w).tolist() for g, w in widths.items() if w < unpruned[g]}

    @cached_property
    def _read(self) -> Scores:
        return self._scores(self._settings)

    @cached_property
    def _attention(self) -> Scores:
        return self._scores(replace(self._settings, score="attention"))

    def _scores(self, settings: PruneSettings) -> Scores:
        return dict(scores_of(self._task, self._dense.module, self._dense.graph, settings))

    # Depth and the sensitivity of groups are ours: what our choice is compared with knows nothing of them.

    @cached_property
    def _ours(self) -> Problem:
        return self._dense.planner.problem(self._read, [FLOPS])

    @cached_property
    def _narrow(self) -> Problem:
        return replace(self._dense.planner, blocks=()).problem(self._read, [FLOPS])

    @cached_property
    def _others(self) -> Problem:
        return replace(self._dense.planner, blocks=(), sensitivities={}).problem(self._attention, [FLOPS])

    def _predicted_ms(self, widths: Mapping[str, int]) -> float:
        """Latency of a network by the table; groups that are not named keep their width."""
        return self._dense.planner.costs.spent({**self._dense.network.dense, **widths}, self._floats)[LATENCY.name]
