"""Which residual branches leave a compiled network without a trace when they are removed.

The kernels of the network without a branch must be those of the network with it, less the branch's own: then what is
measured for a table says what removal saves. An activation behind the addition does not stay behind if the shortcut has
been through it already, and the shortcut must not become an image with another pitch than it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from aap_hw.compile.network import Kernel, Network, is_rectified
from aap_hw.compile.pitch import with_pitched_images
from aap_hw.graph.blocks import Block


def removable(network: Network, blocks: Iterable[Block]) -> tuple[Block, ...]:
    """The blocks whose kernels all go with their groups, and that leave no activation behind."""
    return tuple(block for block in blocks if _vanishes(network, block))


def _vanishes(network: Network, block: Block) -> bool:
    widths = {**network.dense, **dict.fromkeys(block.groups, 0)}
    gone = [kernel for kernel in network.kernels if kernel.is_removed(widths)]
    own = [
        kernel
        for kernel in network.kernels
        if kernel.name in block.nodes or (kernel.weight or "").rpartition(".")[0] in block.modules
    ]
    if not gone or gone != own:
        return False
    # The last kernel adds the shortcut, which is its second input.
    steps = gone[-1].key.epilogue
    if "add" not in steps:
        return False
    shortcut, behind = gone[-1].inputs[-1], steps[steps.index("add") + 1 :]
    if behind and not is_rectified(network.kernels, shortcut, behind[0]):
        return False
    left = _without(network, gone, shortcut)
    return with_pitched_images(left) == left


def _without(network: Network, gone: Sequence[Kernel], shortcut: str) -> Network:
    """The network without a branch: what read its last kernel reads the shortcut."""
    last = gone[-1].name

    def name(value: str) -> str:
        return shortcut if value == last else value

    kernels = tuple(replace(k, inputs=tuple(map(name, k.inputs))) for k in network.kernels if k not in gone)
    return replace(network, kernels=kernels, outputs=tuple(replace(o, name=name(o.name)) for o in network.outputs))
