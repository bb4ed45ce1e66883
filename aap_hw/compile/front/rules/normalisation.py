"""Normalisation by an image's own statistics: layer, RMS, group and instance norms, with an activation behind them."""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from aap_hw.compile.front.lengths import NoLength, product
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.rules.elementwise import with_activation
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import WidthExpr
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import op_name

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


@rule("layer_norm", "rms_norm", takes=Takes.ROWS)
def over_channels(partition: Partition, node: Node) -> None:
    """Over the last axes of vectors, or of rows of them; or over the channels of images (N, C, 1, 1)."""
    call = Call(node)
    vectors, weight = call["input"], partition.parameter(call["weight"], node)
    bias = partition.parameter(call.get("bias"), node)
    shape, rank = shape_of(vectors), len(call["normalized_shape"])
    is_of_images = rank > 1 and rank == len(shape) - 1 and set(shape[2:]) == {1}
    is_of_several = rank > 1 and not is_of_images
    if len(shape) <= rank or len(shape) < 2 or (bias and not weight):
        raise partition.refused(f"{op_name(node)} over these axes has no kernel yet", node)
    lengths = partition.lengths_of(vectors)
    if not is_of_images and any(length.terms for length in lengths[:-rank]):
        raise partition.refused("a normalisation of as many vectors as there are channels has no kernel yet", node)
    epsilon = torch.finfo(torch.float32).eps if call["eps"] is None else call["eps"]
    placement = partition.placement
    inputs = [(placement.value_of if is_of_images else placement.value_in_order)(vectors, node)]
    last, steps = with_activation(partition, node)
    how: dict[str, Any] = {"eps": repr(float(epsilon)), "affine": "1" if weight else "", "epilogue": steps}
    if is_of_several:  # as one axis
        key = KernelKey.make(call.name, (math.prod(shape[1:-rank]), 1), shape[0], **how)
        try:
            width = reduce(product, lengths[-rank:], WidthExpr(1))
        except NoLength as problem:
            raise partition.refused(f"{op_name(node)} over such axes has no kernel yet", node) from problem
        partition.add(last, Kernel(last.name, key, tuple(inputs), (width, width), weight, bias), is_image=False)
        return
    partition.emit(last, call.name, vectors, inputs, rows=not is_of_images, weight=weight, bias=bias, **how)


@rule("group_norm", "instance_norm", takes=Takes.ANYTHING)
def over_pixels(partition: Partition, node: Node) -> None:
    """Over the pixels of each group of channels of images (N, C, ...); an instance norm has groups of one."""
    call = Call(node)
    image, weight = call["input"], partition.parameter(call["weight"], node)
    bias, shape = partition.parameter(call["bias"], node), shape_of(image)
    with_statistics = call.name == "instance_norm" and not call["use_input_stats"]
    is_float = image.meta["val"].dtype == torch.float32
    if len(shape) < 3 or with_statistics or not is_float or (bias and not weight):
        raise partition.refused(f"{op_name(node)} with these operands has no kernel yet", node)
    # One group stays one when its channels get fewer; of several, whole ones go.
    is_one = call.name == "group_norm" and call["num_groups"] == 1
    each = "all" if is_one else 1 if call.name == "instance_norm" else shape[1] // call["num_groups"]
    width = partition.graph.width_of(image.name)
    inputs = (partition.placement.value_of(image, node),)
    last, steps = with_activation(partition, node)
    key = KernelKey.make(
        "group_norm",
        (math.prod(shape[2:]), 1),
        shape[0],
        each=each,
        eps=repr(float(call["eps"])),
        affine="1" if weight else "",
        epilogue=steps,
    )
    partition.add(last, Kernel(last.name, key, inputs, (width, width), weight, bias), is_image=True)
