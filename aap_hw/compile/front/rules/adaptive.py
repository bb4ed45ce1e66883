"""Pooling to a given size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.front.rules.pooling import is_image_of, two
from aap_hw.compile.front.rules.reductions import reduced
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.rules.resizing import resized, resized_volume
from aap_hw.graph.program.call import Call, shape_of

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", takes=Takes.ANYTHING)
def adaptive_pool(partition: Partition, node: Node) -> None:
    """Pooling to a given size; if all windows have the same size it is ordinary pooling.

    Where channels that can be cut run along one of the axes, which then stays as long, it is the mean over the others.
    """
    image, axes = Call(node)["self"], int(Call(node).name[-2])
    if not is_image_of(image, 2 + axes):
        raise partition.refused("pooling of one image without a batch axis has no kernel", node)
    before, after = shape_of(image)[2:], shape_of(node)[2:]
    if any(length.terms for length in partition.lengths_of(image)[2:]):
        pooled = [dim for dim, (b, a) in enumerate(zip(before, after, strict=True), 2) if b != a]
        if any(shape_of(node)[dim] != 1 for dim in pooled) or not pooled:
            raise partition.refused(f"pooling {before} to {after} beside channels has no kernel yet", node)
        reduced(partition, node, node, image, pooled, "reduce", of="mean")
        return
    inputs = [partition.placement.value_of(image, node)]
    if math.prod(after) == 1:
        partition.emit(node, "global_avg_pool2d", image, inputs)
    elif axes < 3 and not any(b % a for b, a in zip(before, after, strict=True)):
        kernel = two([b // a for b, a in zip(before, after, strict=True)], 1, axes)
        partition.emit(node, "avg_pool2d", image, inputs, kernel=kernel, stride=kernel, padding=(0, 0))
    elif axes < 3:
        resized(partition, node, image, "mean")
    else:
        resized_volume(partition, node, image, "mean")


def largest_of_windows(partition: Partition, node: Node, call: Call) -> None:
    """Add the kernels of the first result of an adaptive maximum, whose second are places."""
    image, axes = call["self"], int(call.name[-2])
    if not is_image_of(image, 2 + axes):
        raise partition.refused("pooling of one image without a batch axis has no kernel", node)
    if math.prod(shape_of(node)[2:]) == 1:
        reduced(partition, node, node, image, range(2, 2 + axes), "reduce", of="amax")
    else:
        (resized_volume if axes == 3 else resized)(partition, node, image, "largest")
