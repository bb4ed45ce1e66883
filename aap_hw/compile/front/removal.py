"""Which residual branches leave a compiled network without a trace when they are removed.

The kernels of the network without a branch must be those of the network with it, less the branch's own: then what is
measured for a table says what removal saves. An activation behind the addition does not stay behind if the shortcut has
been through it already, and the shortcut must not become an image with another pitch than it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aap_hw.compile.front.network import Kernel, Network, is_rectified
from aap_hw.compile.front.pitch import with_pitched_images
from aap_hw.graph.blocks import Block


def removable(network: Network, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The blocks whose kernels all go with their groups, that leave no activation behind, and no other pitch.

    From the last block back: a shortcut that a block still reads is added, so that it is not pitched, and only without
    all blocks behind it can it become so. What holds for these removed together therefore holds for any of them.
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
    """The kernels of a block that vanishes with its groups; none if something of it would stay."""
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
    """The network without a branch: what read its last kernel reads the shortcut."""
    last, shortcut = branch[-1].name, branch[-1].inputs[-1]

    def name(value: str) -> str:
        return shortcut if value == last else value

    kernels = tuple(replace(k, inputs=tuple(map(name, k.inputs))) for k in network.kernels if k not in branch)
    return replace(network, kernels=kernels, outputs=tuple(replace(o, name=name(o.name)) for o in network.outputs))
