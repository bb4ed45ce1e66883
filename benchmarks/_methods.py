"""The methods that are compared by accuracy: each names the channels to keep at a latency budget on the same table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from _allocators import FLOPS, Allocator, exact, exact_flops, threshold, uniform, widths_of
from _torch_pruning import torch_pruning

from aap_hw.attention.alternatives import weight_l1
from aap_hw.compile.keys.precision import FP32, INT8, NetworkPrecision
from aap_hw.policy import LATENCY, Problem, best_channels
from aap_hw.prune.baseline import Baseline, scores_of
from aap_hw.prune.planning import Scores
from aap_hw.prune.task import PruneSettings, Task

Kept = dict[str, list[int]]


@dataclass(frozen=True)
class Method:
    """A way to a faster network.

    Attributes
    ----------
    label : how it is written in a table.
    chooser : what chooses the channels, as `Chooser.kept` calls it.
    precision : what the network is deployed in. In int8 it is quantised after training.
    seeds : how many trainings tell what it reaches, where there is time for several.
    """

    label: str
    chooser: str
    precision: NetworkPrecision = FP32
    seeds: int = 1


# Ours first.
METHODS = {
    "int8": Method("read attention + exact latency, int8 (aap-hw --precision int8)", "exact", INT8, seeds=2),
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
OURS = ("int8", "exact", "exact_no_depth")
LABELS = {name: method.label for name, method in METHODS.items()}


class Chooser:
    """Chooses for one network in one precision; what methods have in common is worked out once."""

    def __init__(self, task: Task, dense: Baseline, settings: PruneSettings) -> None:
        self._task, self._dense = task, dense
        module, graph, planner = dense.module, dense.graph, dense.planner
        self._read = dict(scores_of(task, module, graph, settings))
        self._attention = dict(scores_of(task, module, graph, replace(settings, score="attention")))
        self._magnitude = weight_l1(module, graph)
        # Depth and the sensitivity of groups are ours: what our choice is compared with knows nothing of them.
        self._ours = planner.problem(self._read, [FLOPS])
        self._narrow = replace(planner, blocks=()).problem(self._read, [FLOPS])
        self._others = replace(planner, blocks=(), sensitivities={}).problem(self._attention, [FLOPS])

    def kept(self, chooser: str, budget_ms: float) -> Kept | None:
        """Channels kept of every group that is cut, none if nothing needs to be; None if the budget is out of reach."""
        if self.predicted_ms({}) <= budget_ms:
            return {}
        if chooser == "unpruned":
            return None
        if chooser == "torch_pruning":
            shape = self._task.origin.inputs.image
            assert shape is not None
            return torch_pruning(
                self._dense.module, self._dense.graph, shape, lambda widths: self.predicted_ms(widths) <= budget_ms
            )
        how: dict[str, tuple[Problem, Allocator, Scores]] = {
            "exact": (self._ours, exact, self._read),
            "exact_no_depth": (self._narrow, exact, self._read),
            "published_attention": (self._others, exact, self._attention),
            "threshold": (self._others, threshold(self._attention), self._attention),
            "flops": (self._others, exact_flops, self._attention),
            "uniform": (self._others, uniform, self._magnitude),
        }
        problem, allocator, scores = how[chooser]
        planner = self._dense.planner
        chosen = allocator(problem, planner.slowdown.alone_of(budget_ms * 1e3 / planner.calibration))
        if chosen is None:
            return None
        widths, unpruned = widths_of(problem, chosen), self._dense.network.dense
        return {g: best_channels(scores[g], w).tolist() for g, w in widths.items() if w < unpruned[g]}

    def predicted_ms(self, widths: Mapping[str, int]) -> float:
        """Latency of a network by the table; groups that are not named keep their width."""
        return self._dense.planner.spent({**self._dense.network.dense, **widths})[LATENCY.name]
