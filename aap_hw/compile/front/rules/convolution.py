"""Convolutions and linear layers, with the batch normalisation, residual addition and activation behind them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from aap_hw.compile.families.convolution import POINTWISE
from aap_hw.compile.families.elementwise import ACTIVATIONS
from aap_hw.compile.front.aliases import writes_in_place
from aap_hw.compile.front.network import Normalization
from aap_hw.compile.front.program import is_transparent
from aap_hw.compile.front.rules.elementwise import has_running_statistics, normalization_of
from aap_hw.compile.front.rules.padding import Padded, padded_by, padding_of, sides_of
from aap_hw.compile.front.rules.pooling import is_image_of, three, two
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.front.rules.steps import factor_of, step_behind, turns_to_image
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
        raise partition.refused("a convolution that slides along channels has no kernel yet", node)
    is_depthwise = 1 < groups == shape_of(image)[1]
    kernel, dilation = two(shape_of(weight)[2:], 1, axes), two(call["dilation"], 1, axes)
    read = padded_by(partition, node, sides_of(call["padding"], kernel, dilation, axes))
    _weighted(
        partition,
        node,
        "depthwise_conv2d" if is_depthwise else "conv2d",
        read,
        groups="" if is_depthwise or groups == 1 else groups,
        kernel=kernel,
        stride=two(call["stride"], 1, axes),
        dilation=dilation,
        layout="nchw" if axes == 2 and read.value in partition.inputs else "",
        **padding_of(read.sides),
    )


@rule("conv3d", takes=Takes.ANYTHING)
def convolution_of_volumes(partition: Partition, node: Node) -> None:
    """Convolutions of volumes (N, C, D, H, W); if the window is 1 along some axes they are convolutions of images."""
    call = Call(node)
    image, weight, groups = call["input"], call["weight"], call["groups"]
    if not is_image_of(image, 5):
        raise partition.refused("a convolution of one volume without a batch axis has no kernel", node)
    kernel, stride, dilation = shape_of(weight)[2:], list(three(call["stride"])), list(three(call["dilation"]))
    read = padded_by(partition, node, sides_of(call["padding"], kernel, dilation, 3))
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
        _weighted(partition, node, of_images, read, size=tuple(size[1:]), batch=n * size[0], **window(slice(1, 3)))
    elif is_whole(slice(1, 3)):
        columns: dict[str, Any] = {"kernel": (kernel[0], 1), "stride": (stride[0], 1), "dilation": (dilation[0], 1)}
        around = padding_of((read.sides[0], (0, 0)))
        of_columns = (size[0], size[1] * size[2])
        _weighted(partition, node, of_images, read, size=of_columns, **in_groups, **columns, **around)
    elif is_depthwise and shape_of(weight)[0] > groups:
        raise partition.refused("a depthwise convolution that makes several channels of each has no kernel yet", node)
    else:
        op = "depthwise_conv3d" if is_depthwise else "conv3d"
        _weighted(partition, node, op, read, size=tuple(size), **window(slice(3)))


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
    _weighted(
        partition,
        node,
        op,
        size=shape_of(image)[2:] if axes == 3 else None,
        groups="" if is_depthwise or groups == 1 else groups,
        kernel=(1, *shape_of(weight)[2:])[-max(axes, 2) :],
        stride=along("stride", 1),
        padding=along("padding", 0),
        output_padding=beyond if any(beyond) else "",
    )


@rule("linear", takes=Takes.ANYTHING)
def linear(partition: Partition, node: Node) -> None:
    """Linear layers of vectors (N, C), and of rows (N, ..., C), which are the pixels of a 1x1 convolution."""
    vectors = Call(node)["input"]
    if len(shape_of(vectors)) == 2:
        _weighted(partition, node, "linear")
    elif len(shape_of(vectors)) > 2 and partition.has_fixed_rows(vectors):
        _weighted(partition, node, "conv2d", rows=True, **POINTWISE)
    else:
        raise partition.refused("a linear layer of as many vectors as there are channels has no kernel yet", node)


def _weighted(
    partition: Partition, node: Node, op: str, source: Padded | None = None, *, rows: bool = False, **attributes: Any
) -> None:
    """A kernel with weights, and the element-wise chain behind it that only it feeds."""
    call = Call(node)
    weight, bias = partition.parameter(call["weight"], node), partition.parameter(call["bias"], node)
    normalization: Normalization | None = None
    addition: tuple[Node, Node, bool] | None = None  # the operator, the value that it adds, and whether that is rows
    turned = False  # whether the rows are permuted to an image
    steps, last = ["bias"], node

    def takes(follower: Node) -> bool:
        """Whether the kernel takes along an operator that is not a function in its epilogue."""
        nonlocal normalization, addition, turned
        name, as_rows = Call(follower).name, rows and not turned
        if name == "batch_norm" and last is node and not rows and has_running_statistics(follower):
            normalization = normalization_of(partition, follower)
        elif as_rows and turns_to_image(follower):
            turned = True
        elif is_plain_sum() and (factor := factor_of(partition, follower, last, -1 if as_rows else 1)):
            normalization = replace(normalization or Normalization(), factor=factor)
        elif name == "add" and addition is None and (other := _residual(partition, follower, last, as_rows)):
            addition = follower, other, as_rows
            steps.append("add")
        else:
            return is_transparent(follower)
        return True

    def is_plain_sum() -> bool:
        """Whether the value so far is the sum of products plus bias, and has no factor yet."""
        return steps == ["bias"] and (normalization is None or normalization.factor is None)

    while True:
        follower = partition.next_alone(last)
        if follower is not None and takes(follower):
            absorbed: tuple[Node, ...] = (follower,)
        elif step := step_behind(partition, last):
            absorbed = step.nodes
            steps.append(step.text)
        else:
            break
        partition.absorb(*absorbed)
        last = absorbed[-1]
        if steps[-1] in ACTIVATIONS:
            break
    image = call["input"] if source is None else source.image
    read_input = partition.placement.value_in_order if rows else partition.placement.value_of
    inputs = [read_input(image, node) if source is None else source.value]

    def emit() -> None:
        if addition is not None:
            reader, added, are_rows = addition
            read_added = partition.placement.value_in_order if are_rows else partition.placement.value_of
            inputs.append(read_added(added, reader))
        partition.emit(
            last,
            op,
            image,
            inputs,
            rows=rows,
            turned=turned,
            width_in=None,
            weight=weight,
            bias=bias,
            normalization=normalization,
            epilogue=tuple(steps),
            **attributes,
        )

    # The input is read as it is now, but a residual as it is when the program adds it.
    if addition is None:
        emit()
    else:
        partition.wait(addition[0], emit)


def _residual(partition: Partition, add: Node, this: Node, rows: bool) -> Node | None:
    """What ``add`` adds to ``this``, if it can be fused: another activation of the same shape."""
    others = [a for a in add.args if isinstance(a, Node) and a is not this]
    if len(others) != 1 or Call(add)["alpha"] != 1:
        return None
    if partition.is_parameter(others[0]) or partition.is_void(others[0]):
        return None  # nothing holds it
    if rows and not partition.placement.is_plain(others[0]):
        return None
    if writes_in_place(add) and Call(add).first is not this and partition.memory.stale_after(add):
        return None
    return others[0] if shape_of(others[0]) == shape_of(add) == shape_of(this) else None
