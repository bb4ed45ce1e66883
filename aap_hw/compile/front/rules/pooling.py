"""Pooling over windows and over whole images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.fx import Node

from aap_hw.compile.front.rules.registry import rule
from aap_hw.graph.call import Call, shape_of
from aap_hw.graph.source import op_name

if TYPE_CHECKING:
    from aap_hw.compile.front.partition import Partition


def two(value: Any) -> tuple[int, int]:
    """A size for both axes, given as one number or two."""
    pair = list(value) if isinstance(value, (list, tuple)) else [value]
    return int(pair[0]), int(pair[-1])


@rule("max_pool2d", "avg_pool2d")
def pool(partition: Partition, node: Node) -> None:
    """Maximum or mean of windows."""
    call = Call(node)
    image = call["self"]
    if len(shape_of(image)) != 4:
        raise partition.refused("pooling of one image without a batch axis has no kernel", node)
    if two(call.get("dilation", 1)) != (1, 1):
        raise partition.refused("pooling with dilation has no kernel yet", node)
    if call.get("divisor_override"):
        raise partition.refused("average pooling with its own divisor has no kernel yet", node)
    kernel, padding = two(call["kernel_size"]), two(call["padding"])
    stride = two(call["stride"] or kernel)
    whole = tuple((shape_of(image)[2 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2))
    partition.emit(
        node,
        call.name,
        image,
        [partition.value_of(image, node)],
        kernel=kernel,
        stride=stride,
        padding=padding,
        ceil="1" if shape_of(node)[2:] != whole else "",
        padding_counts="no" if any(padding) and call.get("count_include_pad") is False else "",
    )


@rule("adaptive_avg_pool2d")
def adaptive_pool(partition: Partition, node: Node) -> None:
    """Pooling to a given size, where all windows are of one size."""
    image = Call(node)["self"]
    before, after = shape_of(image)[-2:], shape_of(node)[-2:]
    if len(shape_of(image)) != 4 or before[0] % after[0] or before[1] % after[1]:
        raise partition.refused(f"pooling {before} to {after} pixels has no kernel yet", node)
    inputs, kernel = [partition.value_of(image, node)], (before[0] // after[0], before[1] // after[1])
    if after == (1, 1):
        partition.emit(node, "global_avg_pool2d", image, inputs)
    else:
        partition.emit(node, "avg_pool2d", image, inputs, kernel=kernel, stride=kernel, padding=(0, 0))


@rule("mean")
def mean(partition: Partition, node: Node) -> None:
    """The mean over whole images, with or without the axes that it leaves empty."""
    call = Call(node)
    image = call["self"]
    if len(shape_of(image)) != 4 or sorted(d % 4 for d in call.get("dim") or []) != [2, 3]:
        raise partition.refused(f"{op_name(node)} has a kernel only over whole images so far", node)
    partition.emit(node, "global_avg_pool2d", image, [partition.value_of(image, node)])
