"""torch-pruning as a comparator: which channels it keeps when its ratio is raised until a budget is met.

Global magnitude pruning with widths rounded to multiples of 8, as its documentation recommends for speed. It prunes
those of our groups that it sees the same: all but the ones that meet in sums with channels padded by zeros, for which
it has no rule. Where rounding down leaves nothing of a layer, version 1.6.1 leaves it whole, which is slower at a
higher ratio; here such a layer keeps its best 8 channels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

import torch
from _allocators import LATENCY, Allocator, Chosen
from torch import nn

from aap_hw.graph import ChannelGraph
from aap_hw.graph.groups.groups import Axis
from aap_hw.policy.problem import Plan, Problem
from aap_hw.prune.planning import Planner

Kept = dict[str, list[int]]
ROUND_TO = 8
LAYERS = (nn.Conv2d, nn.Linear)
# Ratios are tried in steps of half a percent.
RATIOS = 200


def torch_pruning(
    module: nn.Module, graph: ChannelGraph, input_shape: tuple[int, int, int], fits: Callable[[Mapping[str, int]], bool]
) -> Kept | None:
    """Channels kept of every group that is cut, at about the smallest ratio whose widths fit; None if none does."""
    image = torch.zeros(1, *input_shape)
    group_of = _groups_of_layers(module, graph, image)
    widths = {group.name: group.width for group in graph.groups}

    def kept(step: int) -> Kept:
        return _pruned(module, group_of, widths, image, step / RATIOS)

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
        return Chosen(plan({**planner.costs.network.dense, **widths}))

    return allocator


def _groups_of_layers(module: nn.Module, graph: ChannelGraph, image: torch.Tensor) -> dict[str, str]:
    """Our group that each layer makes, of the groups that both see the same."""
    import torch_pruning as tp

    ours = {
        frozenset(axis.parameter.removesuffix(".weight") for axis in group.axes if _is_made(axis)): group.name
        for group in graph.groups
        if group.frozen is None
    }
    names = {layer: name for name, layer in module.named_modules()}
    group_of: dict[str, str] = {}
    for theirs in tp.DependencyGraph().build_dependency(module, image).get_all_groups(root_module_types=LAYERS):
        layers = frozenset(names[dependency.target.module] for dependency, _ in theirs if _makes(dependency))
        if layers in ours:
            group_of |= dict.fromkeys(layers, ours[layers])
    return group_of


def _is_made(axis: Axis) -> bool:
    return axis.role in ("out", "depthwise") and axis.parameter.endswith(".weight")


def _makes(dependency: Any) -> bool:
    """Whether a layer's own channels are meant, and not those that it reads; for a depthwise one they are the same."""
    layer = dependency.target.module
    is_depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
    return isinstance(layer, LAYERS) and (is_depthwise or dependency.handler.__name__ == "prune_out_channels")


def _pruned(
    module: nn.Module, group_of: Mapping[str, str], widths: Mapping[str, int], image: torch.Tensor, ratio: float
) -> Kept:
    import copy

    import torch_pruning as tp

    network = copy.deepcopy(module)
    names = {layer: name for name, layer in network.named_modules()}
    ignored = [layer for layer, name in names.items() if isinstance(layer, LAYERS) and name not in group_of]

    class Pruner(tp.pruner.MagnitudePruner):  # type: ignore[misc]
        def _round_to(self, n_pruned: int, current_channels: int, round_to: int) -> int:
            return min(super()._round_to(n_pruned, current_channels, round_to), max(current_channels - round_to, 0))

    pruner = Pruner(
        network,
        image,
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
        name, removed = group_of[names[dependency.target.module]], set(indices)
        kept[name] = [channel for channel in range(widths[name]) if channel not in removed]
        group.prune()
    return kept
