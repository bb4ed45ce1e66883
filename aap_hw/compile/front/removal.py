"""Which residual branches can be removed from a compiled network without changing its other kernels.

The network without a branch must have the same kernels as the network with it, except the branch's own. Only then does
a latency table say what removal saves. An activation behind the addition is dropped if the shortcut has been through it
already, and the shortcut's pitch must not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aap_hw.compile.front.network import Kernel, Network, is_rectified
from aap_hw.compile.front.pitch import with_pitched_images
from aap_hw.graph.groups.blocks import Block


def removable(network: Network, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The blocks whose kernels all vanish with their groups, and which leave no activation and no other pitch behind.

    Blocks are removed from the last one back. A shortcut has no pitch while a later block adds it, and may get one only
    without all later blocks. So what holds when all of these are removed together holds for any of them.
    """
    found: list[Block] = []
    for block in reversed(blocks):
        if gone := _all_its_kernels(network, block):
            left = _without(network, gone)
            if with_pitched_images(left) == left:
                network = left
                found.append(block)
    return tuple(reversed(found))


def _all_its_kernels(network: Network, block: Block) -> list[Kernel]:
    """The kernels of a block; empty if some of them would stay when its groups vanish."""
    widths = {**network.dense, **dict.fromkeys(block.groups, 0)}
    gone = [kernel for kernel in network.kernels if kernel.is_removed(widths)]
    own = [
        kernel
        for kernel in network.kernels
        if kernel.name in block.nodes or (kernel.weight or "").rpartition(".")[0] in block.modules
    ]
    if not gone or gone != own:
        return []
    # The last kernel adds the shortcut, which is its second input.
    steps = gone[-1].key.epilogue
    if "add" not in steps:
        return []
    behind = steps[steps.index("add") + 1 :]
    return [] if behind and not is_rectified(network.kernels, gone[-1].inputs[-1], behind[0]) else gone


def _without(network: Network, branch: Sequence[Kernel]) -> Network:
    """The network without a branch: readers of its last kernel read the shortcut."""
    last, shortcut = branch[-1].name, branch[-1].inputs[-1]

    def name(value: str) -> str:
        return shortcut if value == last else value

    kernels = tuple(replace(k, inputs=tuple(map(name, k.inputs))) for k in network.kernels if k not in branch)
    return replace(network, kernels=kernels, outputs=tuple(replace(o, name=name(o.name)) for o in network.outputs))
