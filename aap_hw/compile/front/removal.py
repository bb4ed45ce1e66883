"""Which residual branches can be removed from a compiled network without changing its other kernels.

The network without a branch must have the same kernels as the network with it, except the branch's own. Only then does
a latency table say what removal saves. So the network is partitioned again without the branch, and compared. What may
stand in the way: an activation behind the addition that has something to do again, a shortcut that becomes pitched or
lies in another order than the sum, or an addition that was fused with others.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from aap_hw.compile.front.network import Branch, Kernel, Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.front.pitch import with_pitched_images
from aap_hw.compile.keys.precision import BFLOAT16, FP32, NetworkPrecision
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.groups.blocks import Block


@dataclass(frozen=True)
class _Gone:
    """Names of the kernels that go with a branch, and of the last, in whose place others read the shortcut."""

    block: Block
    names: frozenset[str]
    last: str
    shortcut: str


def removable(
    network: Network,
    graph: ChannelGraph,
    chosen: ChannelGraph,
    precision: NetworkPrecision = FP32,
    floats: Collection[str] = (),
    half: str = BFLOAT16,
) -> tuple[Network, tuple[Block, ...]]:
    """The branches that can go, and the network whose kernels know which of them they go with.

    A branch is removed alone first. If all others then read the shortcut just as they read the sum, the same holds for
    any number of branches, but for pitch: a shortcut has none while a later branch adds it, and may get one only
    without all later branches. So branches are also removed from the last one back. That no more can happen is tried
    with all of them and with every other one.

    Parameters
    ----------
    network, graph
        ``network`` is what ``partition`` makes of ``graph`` in the ``precision``, with the layers ``floats`` in
        float32 or in ``half``, as of `partition`.
    chosen
        The same graph with more groups frozen, whose branches may be removed.
    """

    def split(without: Sequence[Block]) -> Network:
        return _bare(partition(graph, precision, None, without, floats, half))

    free = frozenset(group.name for group in chosen.groups if group.frozen is None)
    found: list[_Gone] = []
    bare = _bare(network)
    left, marked = bare, network
    for block in reversed(chosen.blocks):
        try:
            gone = _difference(bare, split([block]), block)
            smaller = _without(left, [gone])
            if with_pitched_images(smaller) != smaller:
                raise UserError("its shortcut would be pitched")
            marked = _marked(marked, gone, free)
        except UserError as reason:
            _log(f"the branch of '{block.name}' stays: {reason}")
            continue
        found.append(gone)
        left = smaller
    for some in {tuple(found[first::step]) for first, step in ((0, 1), (0, 2), (1, 2))}:
        without = [gone.block for gone in some]
        if some and split(without) != _without(bare, some):
            _log("all branches stay, as without several of them others change")
            return network, ()
    return marked, tuple(gone.block for gone in reversed(found))


def _bare(network: Network) -> Network:
    """The network without what it says of its values beside its kernels."""
    return replace(network, in_half=frozenset())


def _log(sentence: str) -> None:
    logging.getLogger(__name__).debug(sentence)


def _difference(network: Network, smaller: Network, block: Block) -> _Gone:
    """What a network loses without a branch; ``smaller`` is what is left.

    Raises
    ------
    UserError : other kernels have changed.
    """
    names = {kernel.name for kernel in smaller.kernels}
    stay = [kernel for kernel in network.kernels if kernel.name in names]
    if [kernel.name for kernel in stay] != [kernel.name for kernel in smaller.kernels]:
        raise UserError("without it, there would be other kernels")
    read = [(old.name, new.name) for old, new in zip(network.outputs, smaller.outputs, strict=True)]
    for before, after in zip(stay, smaller.kernels, strict=True):
        if replace(before, inputs=after.inputs) != after:
            raise UserError(f"without it, '{before.key}' would be '{after.key}'")
        read += zip(before.inputs, after.inputs, strict=True)
    changed = {(old, new) for old, new in read if old != new}
    if len(changed) != 1:
        raise UserError("its sum is not the only value that others read")
    ((last, shortcut),) = changed
    gone = _Gone(
        block, frozenset(kernel.name for kernel in network.kernels if kernel.name not in names), last, shortcut
    )
    if _without(network, [gone]) != smaller:
        raise UserError("without it, others would read something else")
    return gone


def _without(network: Network, branches: Iterable[_Gone]) -> Network:
    """The network without branches, the last one first: readers of a branch's last kernel read the shortcut."""
    for gone in branches:
        name = {gone.last: gone.shortcut}
        kernels = tuple(
            replace(kernel, inputs=tuple(name.get(value, value) for value in kernel.inputs))
            for kernel in network.kernels
            if kernel.name not in gone.names
        )
        outputs = tuple(replace(each, name=name.get(each.name, each.name)) for each in network.outputs)
        scaled = {held: value for held, value in network.scaled.items() if held not in gone.names}
        network = replace(network, kernels=kernels, outputs=outputs, scaled=scaled)
    return network


def _marked(network: Network, gone: _Gone, free: Collection[str]) -> Network:
    """The network whose kernels know that they go with a branch, where their widths do not tell.

    Raises
    ------
    UserError : no table of costs by the widths of two groups tells what goes.
    """
    block = gone.block
    widths = {**network.dense, **dict.fromkeys(block.groups, 0)}
    kernels: list[Kernel] = []
    for kernel in network.kernels:
        if kernel.name in gone.names:
            if not kernel.is_removed(widths):
                group = next((name for name in kernel.groups if name in block.groups), block.name)
                kernel = replace(kernel, branch=Branch(group, is_last=kernel.name == gone.last))
            summed, others = kernel.sides(free)
            if len(summed) + len(others) > 2 and (len(others) > 1 or summed.keys() & set(block.groups)):
                raise UserError(f"the kernel '{kernel.name}' depends on more than two groups of channels")
        elif kernel.is_removed(widths) and kernel.branch is None:
            raise UserError(f"the kernel '{kernel.name}' has no channels without it")
        kernels.append(kernel)
    return replace(network, kernels=tuple(kernels))
