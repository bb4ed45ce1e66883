"""Operands of products of computed values: where they lie in memory, and how a key says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING

from torch.fx import Node

from aap_hw.compile.families.slow import PLAIN, WEIGHT
from aap_hw.compile.front.copies import strided_copy
from aap_hw.compile.front.lengths import NoLength, TooManyWidths, length_text, product, settled
from aap_hw.compile.front.views import ONE, NoView, View, fused, size_of
from aap_hw.graph import WidthExpr
from aap_hw.graph.program.call import shape_of
from aap_hw.graph.program.source import op_name

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition

NOWHERE = WidthExpr(0)
# For each axis of the product (images, heads, rows, columns), the axes of an operand that form it.
Groups = tuple[Sequence[int], ...]


@dataclass(frozen=True)
class Operand:
    """A value as a product reads it: the memory that it lies in, and a walk through it along four axes.

    ``sizes`` are those of the uncut network. An axis of length 1 has no stride.
    """

    name: str
    values: WidthExpr
    sizes: tuple[int, ...]
    strides: tuple[WidthExpr | None, ...]
    offset: WidthExpr
    kind: str = PLAIN

    @property
    def is_constant(self) -> bool:
        """Whether it does not depend on the network's input."""
        return self.kind != PLAIN

    @property
    def is_learned(self) -> bool:
        """Whether it is a parameter of the model."""
        return self.kind == WEIGHT

    @staticmethod
    def of(partition: Partition, node: Node, reader: Node, groups: Groups) -> Operand:
        """A value as an operand, with its axes grouped into those of the product; copied first if it must be."""
        try:
            operand = operand_of(partition.placement.view_of(node, reader), groups)
            if operand.is_constant or operand.has_neighbours:
                return operand
        except NoView:
            pass
        try:
            if not partition.is_parameter(node):
                return operand_of(partition.placement.plain_view_of(node, reader), groups)
        except NoView:
            pass
        try:
            return operand_of(_in_order_of(partition, node, reader, groups), groups)
        except NoView:
            raise partition.refused("a product of these operands has no kernel yet", reader) from None

    @property
    def has_neighbours(self) -> bool:
        """Whether the values of a row or of a column are contiguous; else only values of different heads may be."""
        return ONE in self.strides[2:] or 1 in self.sizes[2:]

    @property
    def turned(self) -> Operand:
        """The operand with its matrices transposed."""
        sizes, strides = self.sizes, self.strides
        return replace(self, sizes=(*sizes[:2], *sizes[:1:-1]), strides=(*strides[:2], *strides[:1:-1]))


def _in_order_of(partition: Partition, node: Node, reader: Node, groups: Groups) -> View:
    """A copy of a value whose axes lie in the order of some groups of them."""
    order = [axis for group in groups for axis in group]
    name = f"{reader.name}_{node.name}_in_order_{'_'.join(map(str, order))}"  # a value may be both operands
    lengths = partition.lengths_of(node)
    view = View.of(name, lengths, shape_of(node), order, PLAIN)
    if partition.has_kernel(name):
        return view
    read = partition.placement.view_of(node, reader)
    kernel = strided_copy(partition, name, node, [read], order, at_any_cost=False)
    if kernel is None:
        raise NoView
    partition.add_inner(kernel)
    return view


def operand_of(view: View, groups: Groups) -> Operand:
    """A view as an operand, with its axes grouped into those of the product.

    Raises
    ------
    NoView : the axes of a group are no single walk.
    """
    sizes, strides = list[int](), list[WidthExpr | None]()
    for group in groups:
        loops = fused([loop for axis in group for loop in view.axes[axis]])
        if len(loops) > 1 or any(loop.wrap is not None for loop in loops):
            raise NoView
        sizes.append(size_of(loops))
        strides.append(loops[0].stride if loops else None)
    return Operand(view.name, view.values, tuple(sizes), tuple(strides), view.offset, view.kind)


def matrices(node: Node, rank: int = 0, images: int | None = None) -> Groups:
    """The groups of axes of (N, ..., rows, columns), or of an operand that lacks some of the first of ``rank`` axes.

    ``images`` is how many axes count as images, if not as many as usual.
    """
    own, rank = len(shape_of(node)), max(rank, len(shape_of(node)))
    axes, images = list(range(own)), images_of(rank) if images is None else images
    return [axis for axis in axes if axis + rank - own < images], *_last(axes, rank - own, images)


def images_of(rank: int) -> int:
    """How many of ``rank`` axes count as images; the axis between these and rows and columns is heads."""
    return max(rank - 3, min(rank - 2, 1))


def _last(axes: list[int], missing: int, images: int) -> tuple[list[int], list[int], list[int]]:
    heads = [axis for axis in axes[:-2] if axis + missing >= images]
    return heads, axes[-2:-1], axes[-1:]


def is_walk(partition: Partition, node: Node, reader: Node, groups: Groups) -> bool:
    """Whether each of some groups of axes is one axis of a product, as a value lies or in PyTorch's order of axes."""
    view = partition.placement.view_of(node, reader)
    lengths = [partition.graph.width_of(node.name, dim) for dim in range(len(shape_of(node)))]
    for each in (view, View.of(view.name, lengths, shape_of(node), range(len(lengths)), view.kind)):
        try:
            operand_of(each, groups)
        except NoView:
            continue
        return True
    return False


@dataclass(frozen=True)
class Lengths:
    """Lengths of a product's axes behind the batch, by letter, and the two widths of its key."""

    batch: int
    axes: Mapping[str, WidthExpr]
    read: WidthExpr
    made: WidthExpr
    fixed: Mapping[str, int]

    @staticmethod
    def of(partition: Partition, batch: int, axes: Mapping[str, WidthExpr], made: str) -> Lengths:
        """Lengths of axes; the letters in ``made`` are axes of the result.

        Raises
        ------
        TooManyWidths : they depend on more widths than a key has.
        """
        fixed = partition.fixed_widths
        settled_axes = {letter: settled(length, fixed) for letter, length in axes.items()}
        varying = {letter: length for letter, length in settled_axes.items() if length.terms}
        widths = dict.fromkeys(length for letter, length in varying.items() if letter in made)
        if len(widths) > 1:
            raise TooManyWidths(*widths)
        width = next(iter(widths), ONE)
        read = next((length for length in varying.values() if length != width), width)
        return Lengths(batch, settled_axes, read, width, fixed)

    def having(self, **axes: WidthExpr) -> Lengths:
        """The same with other lengths of some axes."""
        return replace(self, axes={**self.axes, **axes})

    @property
    def shape(self) -> str:
        """The text of all lengths in a key."""
        return ",".join(map(self._text, self.axes.values()))

    def walk(self, operand: Operand, letters: str) -> str:
        """The text in a key of where an operand with these axes lies; empty if it lies in this order without gaps.

        Raises
        ------
        TooManyWidths : it depends on more widths than a key has.
        """
        plain = self._plain(letters)
        is_whole = operand.offset == NOWHERE and bool(plain) and operand.values == self._all(letters)
        is_in_order = all(s is None or s == p for s, p in zip(operand.strides, plain, strict=False))
        own = (self.batch, *(self.axes[letter].constant for letter in letters))
        is_broadcast = any(
            size == 1 and (length > 1 or bool(letter and self.axes[letter].terms))
            for size, length, letter in zip(operand.sizes, own, ["", *letters], strict=True)
        )
        if is_whole and is_in_order and not is_broadcast:
            return ""
        strides = ",".join(self._text(stride or NOWHERE) for stride in operand.strides)
        offset = "" if operand.offset == NOWHERE else f";{self._text(operand.offset)}"
        return f"{self._text(operand.values)};{strides}{offset}"

    def _plain(self, letters: str) -> list[WidthExpr]:
        """Strides of axes that lie in this order; empty if two of the lengths depend on widths."""
        try:
            lengths = [self.axes[letter] for letter in letters]
            return [reduce(product, lengths[axis:], ONE) for axis in range(len(lengths) + 1)]
        except NoLength:
            return []

    def _all(self, letters: str) -> WidthExpr:
        return reduce(product, [self.axes[letter] for letter in letters], WidthExpr(self.batch))

    def _text(self, length: WidthExpr) -> str:
        return length_text(settled(length, self.fixed), self.read, self.made)


def length_of(partition: Partition, node: Node, axes: Sequence[int]) -> WidthExpr:
    """Length of several axes together."""
    try:
        return reduce(product, [partition.graph.width_of(node.name, axis) for axis in axes], WidthExpr(1))
    except NoLength as problem:
        raise partition.refused(f"{op_name(node)} that can be cut in several ways has no kernel yet", node) from problem


def images_among(partition: Partition, node: Node, axes: Sequence[int]) -> int:
    """How many images there are, whose axes must not be cut."""
    length = length_of(partition, node, axes)
    if length.terms:
        raise partition.refused(f"{op_name(node)} of as many images as channels has no kernel yet", node)
    return length.constant


def image_axes(partition: Partition, node: Node) -> int | None:
    """How many axes of a product count as images: none if the heads that lie among them can be cut, else as usual."""
    return 0 if len(shape_of(node)) == 3 and partition.graph.width_of(node.name, 0).terms else None
