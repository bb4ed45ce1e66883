"""Which points a network may ask a latency table for: every kernel at every width that its groups can give it.

A kernel behind a concatenation reads the sum of many groups: combinations of these are beyond counting, but their sums
are few, as all widths are multiples of one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from aap_hw.compile.front.network import Kernel, Network
from aap_hw.compile.keys.address import Address
from aap_hw.graph import ChannelGraph, WidthExpr
from aap_hw.policy import candidate_widths

if TYPE_CHECKING:
    from aap_hw.compile.keys.target import DeviceTarget
    from aap_hw.device import DeviceProfile


def granularity_of(profile: DeviceProfile, target: DeviceTarget) -> int:
    """Step between candidate widths, in channels."""
    step = profile.widths.granularity
    return target.lanes if step == "vector" else int(step)


def group_candidates(graph: ChannelGraph, granularity: int, at_most: int) -> dict[str, tuple[int, ...]]:
    """Candidate widths of each channel group, ascending; a frozen group has its own width only.

    Heads are computed one by one, so that any number of them is worth considering; also where the model's code
    leaves no other choice than to cut whole ones.
    """
    heads = {group.name for group in graph.groups if group.is_of_heads or graph.kinds[group.name] == "heads"}
    return {
        group.name: (group.width,)
        if group.frozen
        else candidate_widths(group.width, 1 if group.name in heads else granularity, at_most)
        for group in graph.groups
    }


def points_of(network: Network, candidates: Mapping[str, Sequence[int]]) -> list[Address]:
    """Table addresses of a network in calling order, each once."""
    found: dict[Address, None] = {}
    for kernel in network.kernels:
        for widths in distinct_widths(kernel, kernel.groups, candidates):
            found[kernel.at(widths)] = None
    return list(found)


def distinct_widths(
    kernel: Kernel, groups: Sequence[str], candidates: Mapping[str, Sequence[int]]
) -> list[dict[str, int]]:
    """Widths of some groups, once for each combination of its own widths that their candidates give a kernel."""
    found: dict[tuple[int, ...], dict[str, int]] = {(0,) * len(kernel.widths): {}}
    for name in groups:
        counts = [_counts(width, name) for width in kernel.widths]
        found = {
            tuple(so_far + times * width for so_far, times in zip(sums, counts, strict=True)): {**widths, name: width}
            for sums, widths in found.items()
            for width in candidates[name]
        }
    return list(found.values())


def _counts(length: WidthExpr, group: str) -> int:
    return sum(times for name, times in length.terms if name == group)
