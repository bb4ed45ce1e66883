"""The methods that are compared by accuracy: each names the channels to keep at a latency budget on the same table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from _allocators import FLOPS, Allocator, exact, exact_flops, threshold, uniform, widths_of
from _torch_pruning import torch_pruning

from aap_hw.attention.alternatives import weight_l1
from aap_hw.policy import LATENCY, best_channels
from aap_hw.prune.baseline import Baseline, scores_of
from aap_hw.prune.task import PruneSettings, Task

Kept = dict[str, list[int]]
# Name of each method, ours first, and how it is written in a table.
METHODS = {
    "exact": "attention + exact latency, depth too (aap-hw)",
    "exact_no_depth": "attention + exact latency, widths only (aap-hw --no-depth)",
    "threshold": "attention + threshold (AAP's rule)",
    "flops": "attention + FLOPs",
    "uniform": "magnitude + uniform width",
    "torch_pruning": "torch-pruning (global magnitude)",
}


class Chooser:
    """Chooses for one network; what methods have in common is worked out once."""

    def __init__(self, task: Task, dense: Baseline) -> None:
        self._task, self._dense = task, dense
        self._attention = dict(scores_of(task, dense.module, dense.graph, PruneSettings()))
        self._magnitude = weight_l1(dense.module, dense.graph)
        # Whole branches are removed by our choice only: what it is compared with knows nothing of depth.
        self._deep = dense.planner.problem(self._attention, [FLOPS])
        self._flat = replace(dense.planner, blocks={}).problem(self._attention, [FLOPS])

    def kept(self, method: str, budget_ms: float) -> Kept | None:
        """Channels kept of every group that is cut; None if the method cannot reach the budget."""
        if method == "torch_pruning":
            shape = self._task.origin.input_shape
            return torch_pruning(
                self._dense.module, self._dense.graph, shape, lambda widths: self.predicted_ms(widths) <= budget_ms
            )
        allocators: dict[str, Allocator] = {
            "exact": exact,
            "exact_no_depth": exact,
            "threshold": threshold(self._attention),
            "flops": exact_flops,
            "uniform": uniform,
        }
        planner = self._dense.planner
        alone_us = planner.slowdown.alone_of(budget_ms * 1e3 / planner.calibration)
        problem = self._deep if method == "exact" else self._flat
        chosen = allocators[method](problem, alone_us)
        if chosen is None:
            return None
        scores = self._magnitude if method == "uniform" else self._attention
        widths = widths_of(problem, chosen)
        unpruned = self._dense.network.dense
        return {g: best_channels(scores[g], w).tolist() for g, w in widths.items() if w < unpruned[g]}

    def predicted_ms(self, widths: Mapping[str, int]) -> float:
        """Latency of a network by the table; groups that are not named keep their width."""
        return self._dense.planner.spent({**self._dense.network.dense, **widths})[LATENCY.name]
