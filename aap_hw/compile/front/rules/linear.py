"""Linear layers, also where they are written as a product with a matrix of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from aap_hw.compile.families.convolution import POINTWISE
from aap_hw.compile.front.rules.weighted import Layer, weighted
from aap_hw.graph.program.call import shape_of
from aap_hw.graph.program.weights import is_product_with

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


def add_linear(partition: Partition, node: Node, layer: Layer) -> None:
    """Add the kernel of a linear layer of vectors (N, C), or of rows (N, ..., C), the pixels of a 1x1 convolution."""
    if len(shape_of(layer.image)) == 2:
        weighted(partition, node, "linear", layer)
    elif len(shape_of(layer.image)) > 2 and partition.has_fixed_rows(layer.image):
        weighted(partition, node, "conv2d", layer, rows=True, **POINTWISE)
    else:
        raise partition.refused("a linear layer of as many vectors as there are channels has no kernel yet", node)


def is_layer(partition: Partition, node: Node, left: Node, right: Node) -> bool:
    """Whether a product is a linear layer that is written by hand: rows times a matrix (C_in, C_out) of parameters.

    All that reads the matrix must read it so: in int8 it has scales along one axis.
    """
    is_of_rows = len(shape_of(left)) > 1 and not partition.is_parameter(left) and partition.has_fixed_rows(left)
    is_weight = len(shape_of(right)) == 2 and partition.is_learned(right)
    return (
        is_of_rows
        and is_weight
        and all(is_product_with(user, right) for user in right.users)
        and {each.meta["val"].dtype for each in (node, left, right)} == {torch.float32}
    )
