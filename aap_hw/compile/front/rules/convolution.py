"""Convolutions, with the batch normalisation, residual addition and activation behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.fx import Node

from aap_hw.compile.front.rules.computed import by_computed_filters
from aap_hw.compile.front.rules.padding import padded_by, padding_of, sides_of
from aap_hw.compile.front.rules.pooling import is_image_of, three, two
from aap_hw.compile.front.rules.products import mix_places
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.rules.weighted import Layer, weighted
from aap_hw.graph.program.call import Call, shape_of

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


@rule("conv1d", "conv2d", takes=Takes.ANYTHING)
def convolution(partition: Partition, node: Node) -> None:
    """Convolutions of images, and of (N, C, L), which is an image of one row: dense, grouped and depthwise."""
    call = Call(node)
    image, weight, groups = call["input"], call["weight"], call["groups"]
    axes = len(shape_of(weight)) - 2
    if not is_image_of(image, 2 + axes):
        raise partition.refused("a convolution of one image without a batch axis has no kernel", node)
    if any(length.terms for length in partition.lengths_of(image)[2:]):
        if axes == 1 and groups == 1 and set(shape_of(weight)[2:]) == set(call["stride"]) == {1} and _is_unpadded(call):
            mix_places(partition, node)
            return
        raise partition.refused("a convolution that slides along channels has no kernel yet", node)
    if not partition.is_parameter(weight):
        by_computed_filters(partition, node)
        return
    is_depthwise = 1 < groups == shape_of(image)[1]
    kernel, dilation = two(shape_of(weight)[2:], 1, axes), two(call["dilation"], 1, axes)
    read = padded_by(partition, node, sides_of(call["padding"], kernel, dilation, axes))
    is_as_it_came = read.value in partition.inputs and not partition.placement.is_in_turned_input(read.image)
    weighted(
        partition,
        node,
        "depthwise_conv2d" if is_depthwise else "conv2d",
        Layer.padded(node, read),
        groups="" if is_depthwise or groups == 1 else groups,
        kernel=kernel,
        stride=two(call["stride"], 1, axes),
        dilation=dilation,
        layout="nchw" if axes == 2 and is_as_it_came else "",
        **padding_of(read.sides),
    )


def _is_unpadded(call: Call) -> bool:
    """Whether a convolution's result is as long as its input along each axis."""
    return shape_of(call["input"])[2:] == call.out_shape[2:]


@rule("conv3d", takes=Takes.ANYTHING)
def convolution_of_volumes(partition: Partition, node: Node) -> None:
    """Convolutions of volumes (N, C, D, H, W); if the window is 1 along some axes they are convolutions of images."""
    call = Call(node)
    image, weight, groups = call["input"], call["weight"], call["groups"]
    if not is_image_of(image, 5):
        raise partition.refused("a convolution of one volume without a batch axis has no kernel", node)
    kernel, stride, dilation = shape_of(weight)[2:], list(three(call["stride"])), list(three(call["dilation"]))
    read = padded_by(partition, node, sides_of(call["padding"], kernel, dilation, 3))
    layer = Layer.padded(node, read)
    n, _, *size = shape_of(read.image)
    is_depthwise = 1 < groups == shape_of(image)[1]
    of_images = "depthwise_conv2d" if is_depthwise else "conv2d"
    in_groups: dict[str, Any] = {"groups": "" if is_depthwise or groups == 1 else groups}

    def window(axes: slice) -> dict[str, Any]:
        of_axes = {"kernel": kernel[axes], "stride": tuple(stride[axes]), "dilation": tuple(dilation[axes])}
        return {**in_groups, **of_axes, **padding_of(read.sides[axes])}

    def is_whole(axes: slice) -> bool:
        """Whether the window, the stride and the padding do nothing along some axes."""
        return {*kernel[axes], *stride[axes]} == {1} and not any(map(any, read.sides[axes]))

    if is_whole(slice(1)):
        weighted(partition, node, of_images, layer, size=tuple(size[1:]), batch=n * size[0], **window(slice(1, 3)))
    elif is_whole(slice(1, 3)):
        columns: dict[str, Any] = {"kernel": (kernel[0], 1), "stride": (stride[0], 1), "dilation": (dilation[0], 1)}
        around = padding_of((read.sides[0], (0, 0)))
        of_columns = (size[0], size[1] * size[2])
        weighted(partition, node, of_images, layer, size=of_columns, **in_groups, **columns, **around)
    elif is_depthwise and shape_of(weight)[0] > groups:
        raise partition.refused("a depthwise convolution that makes several channels of each has no kernel yet", node)
    else:
        op = "depthwise_conv3d" if is_depthwise else "conv3d"
        weighted(partition, node, op, layer, size=tuple(size), **window(slice(3)))


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", takes=Takes.ANYTHING)
def transposed_convolution(partition: Partition, node: Node) -> None:
    """Transposed convolutions of images, lines and volumes: dense, grouped and, of images and lines, depthwise."""
    call = Call(node)
    image, weight, groups = call["input"], call["weight"], call["groups"]
    axes = len(shape_of(weight)) - 2
    if not is_image_of(image, 2 + axes):
        raise partition.refused("a transposed convolution of one image without a batch axis has no kernel", node)

    def along(name: str, fill: int) -> tuple[int, ...]:
        return three(call[name]) if axes == 3 else two(call[name], fill, axes)

    if set(along("dilation", 1)) != {1}:
        raise partition.refused("a transposed convolution with dilation has no kernel yet", node)
    channels, made = shape_of(weight)[:2]
    if 1 < groups == channels and made > 1:
        # Cutting it would change the number of groups, which is part of the key.
        raise partition.refused("a depthwise convolution that makes several channels of each has no kernel yet", node)
    is_depthwise, beyond = 1 < groups == channels, along("output_padding", 0)
    if is_depthwise and axes == 3:
        raise partition.refused("a depthwise transposed convolution of volumes has no kernel yet", node)
    op = "depthwise_conv_transpose2d" if is_depthwise else f"conv_transpose{max(axes, 2)}d"
    weighted(
        partition,
        node,
        op,
        Layer.of(node),
        size=shape_of(image)[2:] if axes == 3 else None,
        groups="" if is_depthwise or groups == 1 else groups,
        kernel=(1, *shape_of(weight)[2:])[-max(axes, 2) :],
        stride=along("stride", 1),
        padding=along("padding", 0),
        output_padding=beyond if any(beyond) else "",
    )
