"""Pooling over windows and over whole images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from aap_hw.compile.families.windows import Axis
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.rules.resizing import MOST_TERMS
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import op_name

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


def two(value: Any, fill: int = 0, axes: int = 2) -> tuple[int, int]:
    """A size for both axes of an image, given as one number or several; a line is an image of one row."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    return (fill if axes == 1 else int(numbers[0])), int(numbers[-1])


def three(value: Any) -> tuple[int, int, int]:
    """A size for all axes of a volume, given as one number or three."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    return int(numbers[0]), int(numbers[len(numbers) // 2]), int(numbers[-1])


def is_image_of(node: Node, rank: int) -> bool:
    """Whether a value is float32 (N, C, ...) with ``rank`` axes."""
    return len(shape_of(node)) == rank and bool(node.meta["val"].dtype == torch.float32)


@rule("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", takes=Takes.ANYTHING)
def pool(partition: Partition, node: Node) -> None:
    """Maximum or mean of windows."""
    pooled(partition, node, Call(node))


def pooled(partition: Partition, node: Node, call: Call) -> None:
    """Add the kernel that makes the value of ``node``, the result of a pooling or the first of two."""
    name = call.name.removesuffix("_with_indices")
    image, axes = call["self"], int(name[-2])
    if not is_image_of(image, 2 + axes):
        raise partition.refused("pooling of one image without a batch axis has no kernel", node)
    divisor = call.get("divisor_override") or ""
    kernel, padding = two(call["kernel_size"], 1, axes), two(call["padding"], 0, axes)
    stride, dilation = two(call["stride"] or call["kernel_size"], 1, axes), two(call.get("dilation", 1), 1, axes)
    size, reach = (1, *shape_of(image)[2:])[-2:], [dilation[i] * (kernel[i] - 1) + 1 for i in range(2)]
    whole = tuple((size[i] + 2 * padding[i] - reach[i]) // stride[i] + 1 for i in range(2))
    is_ceiled = (1, *shape_of(node)[2:])[-2:] != whole
    for numbers in zip(size, kernel, stride, padding, dilation, strict=True):
        if Axis(*numbers, ceil=is_ceiled, padding_end=numbers[3]).misses_image:
            raise partition.refused("pooling with windows that lie outside of the image has no kernel", node)
    value, width = partition.placement.value_of(image, node), partition.graph.width_of(image.name)
    ceil = "1" if is_ceiled else ""
    if math.prod(kernel) > MOST_TERMS and name.startswith("avg") and kernel == size and not (any(padding) or divisor):
        partition.emit(node, "global_avg_pool2d", image, [value])
        return
    if math.prod(kernel) > MOST_TERMS and name.startswith("max") and 1 not in kernel:
        # First down, then across: the code of a window grows with its size.
        windows = {"kernel": kernel, "stride": stride, "padding": padding}
        windows |= {"dilation": dilation} if dilation != (1, 1) else {}
        key = KernelKey.make("max_pool2d", size, shape_of(image)[0], ceil=ceil, **_along(0, windows))
        value = partition.add_inner(Kernel(f"{node.name}_columns", key, (value,), (width, width)))
        between = (1, *shape_of(node)[2:])[-2], size[1]
        partition.emit(node, "max_pool2d", image, [value], size=between, ceil=ceil, **_along(1, windows))
        return
    partition.emit(
        node,
        "sum_pool2d" if divisor else f"{name[:-2]}2d",
        image,
        [value],
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation if dilation != (1, 1) else "",
        ceil=ceil,
        padding_counts="no" if any(padding) and call.get("count_include_pad") is False and not divisor else "",
        divisor=divisor,
    )


def _along(axis: int, windows: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """The attributes of windows that are as wide as others along one axis, and one pixel along the other."""
    found: dict[str, Any] = {name: [0, 0] if name == "padding" else [1, 1] for name in windows}
    for name, pair in windows.items():
        found[name][axis] = pair[axis]
    return found


@rule("max_pool3d", "avg_pool3d", takes=Takes.ANYTHING)
def pool_of_volumes(partition: Partition, node: Node) -> None:
    """Maximum or mean of windows of volumes: first in each plane, then across the planes."""
    call = Call(node)
    divisor = call.get("divisor_override")
    image, op = call["self"], "sum_pool2d" if divisor else f"{call.name[:-2]}2d"
    kernel, padding = three(call["kernel_size"]), three(call["padding"])
    stride = three(call["stride"] or kernel)
    if not is_image_of(image, 5) or three(call.get("dilation", 1)) != (1, 1, 1):
        raise partition.refused(f"{op_name(node)} with these operands has no kernel yet", node)
    (n, _, *size), made = shape_of(image), shape_of(node)[2:]
    whole = [(s + 2 * p - k) // t + 1 for s, p, k, t in zip(size, padding, kernel, stride, strict=True)]
    common: dict[str, Any] = {
        "ceil": "1" if list(made) != whole else "",
        "padding_counts": "no" if any(padding) and call.get("count_include_pad") is False and not divisor else "",
        "divisor": divisor or "",
    }
    value, width = partition.placement.value_of(image, node), partition.graph.width_of(image.name)
    planes = {"kernel": kernel[1:], "stride": stride[1:], "padding": padding[1:], **common}
    if (kernel[0], stride[0]) == (1, 1):
        partition.emit(node, op, image, [value], size=tuple(size[1:]), batch=n * size[0], **planes)
        return
    if (kernel[1:], stride[1:]) != ((1, 1), (1, 1)):
        key = KernelKey.make(op, size[1:], n * size[0], **planes | {"divisor": "1" if divisor else ""})
        value = partition.add_inner(Kernel(f"{node.name}_planes", key, (value,), (width, width)))
    across = {"kernel": (kernel[0], 1), "stride": (stride[0], 1), "padding": (padding[0], 0), **common}
    partition.emit(node, op, image, [value], size=(size[0], made[1] * made[2]), **across)
