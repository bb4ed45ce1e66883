"""torch-pruning as a comparator: which channels it keeps when its ratio is raised until a budget is met.

Global magnitude pruning with widths rounded to multiples of 8, as its documentation recommends for speed. It prunes the
layers that make one of our cuttable groups alone; layers whose channels meet in sums stay whole, as it has no rule for
channels that are padded with zeros. Where rounding down leaves nothing of a layer, version 1.6.1 leaves it whole, which
is slower at a higher ratio; here such a layer keeps its best 8 channels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping

import torch
from _allocators import LATENCY, Allocator, Chosen
from torch import nn

from aap_hw.graph import ChannelGraph
from aap_hw.policy.problem import Plan, Problem
from aap_hw.prune.planning import Planner

Kept = dict[str, list[int]]
ROUND_TO = 8
# Ratios are tried in steps of half a percent.
RATIOS = 200


def torch_pruning(
    module: nn.Module, graph: ChannelGraph, input_shape: tuple[int, int, int], fits: Callable[[Mapping[str, int]], bool]
) -> Kept | None:
    """Channels kept of every group that is cut, at about the smallest ratio whose widths fit; None if none does."""
    free = [group.name for group in graph.groups if group.frozen is None]
    widths = {group.name: group.width for group in graph.groups}

    def kept(step: int) -> Kept:
        return _pruned(module, free, widths, input_shape, step / RATIOS)

    def good(step: int) -> bool:
        return fits({**widths, **{name: len(channels) for name, channels in kept(step).items()}})

    low, high = 0, RATIOS - 1
    if not good(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return kept(high)


def as_allocator(
    module: nn.Module, graph: ChannelGraph, input_shape: tuple[int, int, int], planner: Planner
) -> Allocator:
    """Its widths on our table, each snapped up to a candidate; it chooses by magnitude, whatever the scores are."""

    def allocator(problem: Problem, budget: float) -> Chosen | None:
        def plan(widths: Mapping[str, int]) -> Plan:
            return tuple(bisect_left(choice.widths, widths[choice.name]) for choice in problem.choices)

        kept = torch_pruning(module, graph, input_shape, lambda w: problem.spent(LATENCY, plan(w)) <= budget)
        if kept is None:
            return None
        widths = {name: len(channels) for name, channels in kept.items()}
        return Chosen(plan({**planner.network.dense, **widths}))

    return allocator


def _pruned(
    module: nn.Module, free: list[str], widths: Mapping[str, int], input_shape: tuple[int, int, int], ratio: float
) -> Kept:
    import copy

    import torch_pruning as tp

    network = copy.deepcopy(module)
    names = {layer: name for name, layer in network.named_modules()}
    ignored = [layer for layer, name in names.items() if isinstance(layer, (nn.Conv2d, nn.Linear)) and name not in free]

    class Pruner(tp.pruner.MagnitudePruner):  # type: ignore[misc]
        def _round_to(self, n_pruned: int, current_channels: int, round_to: int) -> int:
            return min(super()._round_to(n_pruned, current_channels, round_to), max(current_channels - round_to, 0))

    pruner = Pruner(
        network,
        torch.zeros(1, *input_shape),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        round_to=ROUND_TO,
        ignored_layers=ignored,
    )
    kept = {}
    # One step: all indices are those of the unpruned network.
    for group in pruner.step(interactive=True):
        dependency, indices = group[0]
        name, removed = names[dependency.target.module], set(indices)
        kept[name] = [channel for channel in range(widths[name]) if channel not in removed]
        group.prune()
    return kept
