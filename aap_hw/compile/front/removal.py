"""Which residual branches can be removed from a compiled network without changing its other kernels.

The network without a branch must have the same kernels as the network with it, except the branch's own. Only then does
a latency table say what removal saves. So the network is partitioned again without the branch, and compared. What may
stand in the way: an activation behind the addition that has something to do again, a shortcut that becomes pitched, or
an addition that was fused with others.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace

from aap_hw.compile.front.network import Branch, Kernel, Network
from aap_hw.compile.front.partition import partition
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.groups.blocks import Block


def removable(network: Network, graph: ChannelGraph, chosen: ChannelGraph) -> tuple[Network, tuple[Block, ...]]:
    """The branches that can go, and the network whose kernels know which of them they go with.

    Branches are removed from the last one back. A shortcut has no pitch while a later branch adds it, and may get one
    only without all later branches. So what holds when all of these are removed together holds for any of them.

    Parameters
    ----------
    network, graph
        ``network`` is what ``partition`` makes of ``graph``.
    chosen
        The same graph with more groups frozen, whose branches may be removed.
    """
    free = frozenset(group.name for group in chosen.groups if group.frozen is None)
    found: list[Block] = []
    left = network
    for block in reversed(chosen.blocks):
        try:
            smaller = partition(graph, without=[block, *found])
            network = _marked(network, block, _difference(left, smaller), free)
        except UserError as reason:
            logging.getLogger(__name__).debug("the branch of '%s' stays: %s", block.name, reason)
            continue
        found.append(block)
        left = smaller
    return network, tuple(reversed(found))


@dataclass(frozen=True)
class _Gone:
    """Names of the kernels that go with a branch, and of the last, in whose place others read the shortcut."""

    names: frozenset[str]
    last: str


def _difference(network: Network, smaller: Network) -> _Gone:
    """What a network loses without a branch.

    Raises
    ------
    UserError : other kernels have changed.
    """
    names = {kernel.name for kernel in smaller.kernels}
    gone = frozenset(kernel.name for kernel in network.kernels if kernel.name not in names)
    stay = [kernel for kernel in network.kernels if kernel.name in names]
    if [kernel.name for kernel in stay] != [kernel.name for kernel in smaller.kernels]:
        raise UserError("without it, there would be other kernels")
    read = [(old.name, new.name) for old, new in zip(network.outputs, smaller.outputs, strict=True)]
    for before, after in zip(stay, smaller.kernels, strict=True):
        if replace(before, inputs=after.inputs) != after:
            raise UserError(f"without it, '{before.key}' would be '{after.key}'")
        read += zip(before.inputs, after.inputs, strict=True)
    changed = {(old, new) for old, new in read if old != new}
    last, *others = [old for old, _ in changed] or [""]
    if others or last not in gone:
        raise UserError("its sum is not the only value that others read")
    return _Gone(gone, last)


def _marked(network: Network, block: Block, gone: _Gone, free: Collection[str]) -> Network:
    """The network whose kernels know that they go with a branch, where their widths do not tell.

    Raises
    ------
    UserError : no table of costs by the widths of two groups tells what goes.
    """
    widths = {**network.dense, **dict.fromkeys(block.groups, 0)}
    kernels: list[Kernel] = []
    for kernel in network.kernels:
        if kernel.name in gone.names:
            if not kernel.is_removed(widths):
                group = next((name for name in kernel.groups if name in block.groups), block.name)
                kernel = replace(kernel, branch=Branch(group, is_last=kernel.name == gone.last))
            if len(set(kernel.groups) & set(free)) > 2:
                raise UserError(f"the kernel '{kernel.name}' depends on more than two groups of channels")
        elif kernel.is_removed(widths) and kernel.branch is None:
            raise UserError(f"the kernel '{kernel.name}' has no channels without it")
        kernels.append(kernel)
    return replace(network, kernels=tuple(kernels))
