"""Padding: a convolution takes along the zeros around its image; any other padding is a copy.

A padded image is only made when something asks for it. A convolution does not ask, as it pads by itself (`padded_by`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from aap_hw.compile.families.movement import PADDING_MODES
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.rules.pooling import three, two
from aap_hw.compile.front.rules.registry import Takes, rule
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import WidthExpr
from aap_hw.graph.program.call import Call, added_by_padding, shape_of

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition

Sides = tuple[int, int]

# Most axes of a padded tensor: the batch, channels, and the three axes of a volume.
MOST_AXES = 5


@dataclass(frozen=True)
class Padding:
    """What is put around something: ``mode`` and ``fill`` as PyTorch has them."""

    mode: str = "constant"
    fill: float = 0.0

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes in a key, which leaves zeros out."""
        return {"mode": self.mode if self.mode != "constant" else "", "value": self.fill or ""}


@dataclass(frozen=True)
class Padded:
    """An image and what is put around it, not yet a kernel.

    Attributes
    ----------
    image, value : the padded node, and the name of its value at that point.
    sides : before and behind along each axis of the image, outermost first.
    how : the kind of padding.
    rows : the padded values are vectors (N, ..., C) in PyTorch's order, not an image.
    """

    image: Node
    value: str
    sides: tuple[Sides, ...]
    how: Padding = Padding()
    rows: bool = False

    @property
    def is_zeros(self) -> bool:
        """Whether a convolution can do this padding itself."""
        return self.how == Padding() and not self.rows

    def emit(self, partition: Partition, node: Node) -> None:
        """Add the kernel that pads; a volume is padded within its planes first, then across them."""
        shape = shape_of(self.image)
        size, value, batch = list(shape[1:-1] if self.rows else shape[2:]), self.value, shape[0]
        how = self.how.attributes
        sides = self.sides
        if len(size) == 1:
            size, sides = ([size[0], 1], (*sides, (0, 0))) if self.rows else ([1, size[0]], ((0, 0), *sides))
        if len(size) == 3:
            width = partition.graph.width_of(self.image.name, -1 if self.rows else 1)
            key = KernelKey.make("pad", size[1:], batch * size[0], **how, **padding_of(sides[1:]))
            value = partition.add_inner(Kernel(f"{node.name}_planes", key, (value,), (width, width)))
            area = [extent + sum(each) for extent, each in zip(size[1:], sides[1:], strict=True)]
            size, sides = [size[0], area[0] * area[1]], (sides[0], (0, 0))
        partition.emit(node, "pad", self.image, [value], rows=self.rows, size=tuple(size), **how, **padding_of(sides))


def padding_of(sides: Sequence[Sides]) -> dict[str, Any]:
    """Attributes of a key, which names the padding behind an image only if it differs from that before it."""
    before, behind = zip(*sides, strict=True)
    return {"padding": before, "padding_end": behind if behind != before else ""}


def sides_of(padding: Any, kernel: Sequence[int], dilation: Sequence[int], axes: int) -> tuple[Sides, ...]:
    """A convolution's own padding; for ``"same"`` the larger half of an odd number lies behind the image."""
    if padding == "same":
        whole = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((each // 2, each - each // 2) for each in whole)
    if padding == "valid":
        padding = 0
    return tuple((each, each) for each in (three(padding) if axes == 3 else two(padding, 0, axes)))


def padded_by(partition: Partition, node: Node, sides: Sequence[Sides]) -> Padded:
    """What a convolution reads, with all zeros around it: its own, and those of a padding before it."""
    image, around = Call(node)["input"], list(sides)
    padded = partition.placement.unmade(image)
    if not isinstance(padded, Padded) or not padded.is_zeros:
        return Padded(image, partition.placement.value_of(image, node), tuple(around))
    before = padded.sides if len(padded.sides) == len(around) else ((0, 0), *padded.sides)
    both = zip(before, around, strict=True)
    return Padded(padded.image, padded.value, tuple((a[0] + b[0], a[1] + b[1]) for a, b in both))


@rule("pad", "constant_pad_nd", takes=Takes.ANYTHING)
def pad(partition: Partition, node: Node) -> None:
    """Zero channels before and behind those of an image, or any padding around it."""
    call = Call(node)
    image, rank = call.first, len(shape_of(call.first))
    amounts = added_by_padding(call)
    how = Padding(call.get("mode", "constant"), float(call.get("value") or 0))
    is_float = image.meta["val"].dtype == torch.float32
    if min(map(min, amounts)) < 0 or amounts[0] != (0, 0) or how.mode not in PADDING_MODES or not is_float or rank < 2:
        raise partition.refused("this padding has no kernel yet", node)
    if any(amounts[1]) and rank == 4 and not any(map(any, amounts[2:])) and how == Padding():
        _pad_channels(partition, node, *amounts[1])
        return
    is_image = partition.placement.is_image(image)
    feeds = any(Call(user).name.startswith("conv") for user in node.users)
    rows = not is_image and 2 < rank <= MOST_AXES and amounts[-1] == (0, 0) and partition.has_fixed_rows(node)
    if not (rows or is_image or feeds) and _pad_numbers(partition, node, amounts, how):
        return
    is_cut = any(length.terms for length in partition.lengths_of(node)[2:])
    if not rows and (amounts[1] != (0, 0) or is_cut or not 2 < rank <= MOST_AXES):
        raise partition.refused("this padding has no kernel yet", node)
    value = (partition.placement.value_in_order if rows else partition.placement.value_of)(image, node)
    sides = tuple(amounts[1:-1] if rows else amounts[2:])
    partition.placement.defer(node, Padded(image, value, sides, how, rows), is_image=not rows)


def _pad_channels(partition: Partition, node: Node, before: int, behind: int) -> None:
    """Zero channels around those of an image; how many follows from the widths, unless two sides of the code differ."""
    image = Call(node).first
    inputs = [partition.placement.value_of(image, node)]
    if before and behind and before != behind:
        partition.emit(node, "pad_channels", image, inputs, before=before, after=behind)
    else:
        side = "first" if not before else "last" if not behind else "middle"
        partition.emit(node, "pad_channels", image, inputs, side=side)


def _pad_numbers(partition: Partition, node: Node, amounts: Sequence[Sides], how: Padding) -> bool:
    """Pad a tensor of fixed size along one axis or two neighbouring ones; returns whether it was such a tensor.

    The axes behind these count as channels, and the axes before them as images.
    """
    image = Call(node).first
    shape, axes = shape_of(image), [axis for axis, each in enumerate(amounts) if any(each)]
    is_cut = any(length.terms for length in partition.lengths_of(node))
    if is_cut or not axes or axes[-1] - axes[0] > 1:
        return False
    first, behind = axes[0], axes[-1] + 1
    size, sides = (1, *shape[first:behind])[-2:], ((0, 0), *amounts[first:behind])[-2:]
    key = KernelKey.make("pad", size, math.prod(shape[:first]), **how.attributes, **padding_of(sides))
    width = WidthExpr(math.prod(shape[behind:]))
    value = partition.placement.value_in_order(image, node)
    partition.add(node, Kernel(node.name, key, (value,), (width, width)), is_image=False)
    return True
