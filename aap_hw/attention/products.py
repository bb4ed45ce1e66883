"""What products of two activations read of a channel: queries are read by keys, and keys by queries.

A layer reads a channel with weights, a product with the other activation's values. Both are told as the variance that
the channel adds to what is computed, so that they add up; see `aap_hw.attention.reading`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from aap_hw.attention.sums import ActivationSums
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.walk.labels import IntArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Operand:
    """One side of a product.

    Parameters
    ----------
    node
        Name of its node.
    dim
        The axis that is summed over.
    index
        Positions along it of each channel of the group, shape (width, multiplicity).
    """

    node: str
    dim: int
    index: IntArray


@dataclass(frozen=True, eq=False)
class Product:
    """Two activations that are multiplied and summed over channels of one group.

    Parameters
    ----------
    operands
        Both sides.
    heads
        How many such products there are side by side.
    scale
        What the products are multiplied by.
    """

    operands: tuple[Operand, Operand]
    heads: int
    scale: float

    def variance(self, sums: Mapping[str, ActivationSums]) -> Array:
        """What each channel of the group adds to the variance of the products, shape (width,)."""
        varies, energies = (
            [read(sums[each.node])[each.index].mean(axis=1) for each in self.operands]
            for read in (ActivationSums.variance, ActivationSums.energy)
        )
        added: Array = self.heads * self.scale**2 * (varies[0] * energies[1] + varies[1] * energies[0])
        return added


def products_of(graph: ChannelGraph, group: str) -> list[Product]:
    """The products that sum over channels of a group."""
    found = []
    for meeting in graph.meetings:
        sides = [_operand(graph, node, group) for node in (meeting.left, meeting.right)]
        left, right = sides
        if left is not None and right is not None and left.index.shape == right.index.shape:
            found.append(Product((left, right), _heads(graph, meeting.left), _scale(meeting.node)))
    return found


def _operand(graph: ChannelGraph, node: Node, group: str) -> Operand | None:
    names = [{name for name, _ in graph.width_of(node.name, dim).terms} for dim in range(len(shape_of(node)))]
    along = [dim for dim, found in enumerate(names) if group in found]
    return Operand(node.name, along[0], graph.positions_of(node.name, group)[1]) if along else None


def _heads(graph: ChannelGraph, operand: Node) -> int:
    """The axis behind the images, or what lies among them: (N, heads, rows, columns) or (N heads, rows, columns)."""
    images, *heads = shape_of(operand)[:-2] or (1,)
    return math.prod(heads) if heads else max(1, images // graph.batch)


def _scale(product: Node) -> float:
    """The factor of a product: of attention its own, of another the number that it is multiplied by at once."""
    call = Call(product)
    if call.name == "scaled_dot_product_attention":
        return float(call["scale"] or shape_of(call["query"])[-1] ** -0.5)
    for user in product.users if len(product.users) == 1 else ():
        number = user.args[1] if len(user.args) == 2 else None
        if isinstance(number, (int, float)) and number and Call(user).name in ("mul", "div"):
            return float(number if Call(user).name == "mul" else 1 / number)
    return 1.0
