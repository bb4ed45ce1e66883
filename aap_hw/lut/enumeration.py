"""Which points a network may ask a latency table for: every kernel at every combination of its candidate widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

from aap_hw.compile.kernel import Address
from aap_hw.compile.network import Kernel, Network
from aap_hw.graph import ChannelGraph
from aap_hw.policy import candidate_widths

if TYPE_CHECKING:
    from aap_hw.compile.target import CpuTarget
    from aap_hw.device import DeviceProfile


def granularity_of(profile: DeviceProfile, target: CpuTarget) -> int:
    """Step between candidate widths, in channels."""
    step = profile.widths.granularity
    return target.lanes if step == "vector" else int(step)


def group_candidates(graph: ChannelGraph, granularity: int, at_most: int) -> dict[str, tuple[int, ...]]:
    """Candidate widths of each channel group, ascending; a frozen group has its own width only."""
    return {
        group.name: (group.width,) if group.frozen else candidate_widths(group.width, granularity, at_most)
        for group in graph.groups
    }


def groups_of(kernel: Kernel) -> tuple[str, ...]:
    """Names of the channel groups that a kernel's latency depends on, in order."""
    terms = [*kernel.width_in.terms, *kernel.width_out.terms]
    return tuple(dict.fromkeys(name for name, _ in terms))


def points_of(network: Network, candidates: Mapping[str, Sequence[int]]) -> list[Address]:
    """Table addresses of a network in calling order, each once."""
    found: dict[Address, None] = {}
    for kernel in network.kernels:
        groups = groups_of(kernel)
        for widths in product(*(candidates[name] for name in groups)):
            found[kernel.at(dict(zip(groups, widths, strict=True)))] = None
    return list(found)
