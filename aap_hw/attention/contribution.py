"""How much of a residual stream's attention each of its branches contributes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from aap_hw.attention.observer import Watcher, up_to_last
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.blocks import Block


def contributions(graph: ChannelGraph, blocks: Iterable[Block], images: Tensor) -> dict[str, float]:
    """For each block x + F(x), the share E|F| / (E|F| + E|x|), by the block's name.

    The mean is over images, channels and pixels: attention with p = 1, before anything is added.

    Parameters
    ----------
    images
        Shape (N, C, H, W), of the size that the graph was traced with; they are run one traced batch at a time.

    Raises
    ------
    UserError : there are fewer images than in one traced batch, or an activation is not finite.
    """
    wanted = tuple(blocks)
    if not wanted:
        return {}
    seen = {node: 0.0 for block in wanted for node in (block.branch, block.shortcut)}

    def see(node: str, value: object) -> None:
        if node in seen and isinstance(value, Tensor):
            seen[node] += float(value.abs().mean(dtype=torch.float64))

    network = up_to_last(graph.program.module(check_guards=False), seen)
    batch = next(node.meta["val"].shape[0] for node in network.graph.nodes if node.op == "placeholder")
    whole = len(images) // batch * batch
    if not whole:
        raise UserError(f"{len(images)} calibration images are not a whole batch of {batch}; pass more")
    with torch.no_grad():
        for start in range(0, whole, batch):
            Watcher(network, see).run(images[start : start + batch])
    found = {}
    for block in wanted:
        branch, shortcut = seen[block.branch], seen[block.shortcut]
        found[block.name] = branch / (branch + shortcut) if branch else 0.0
        if not 0 <= found[block.name] <= 1:
            raise UserError(f"the activations of block {block.name} are not finite; check the weights and the images")
    return found
