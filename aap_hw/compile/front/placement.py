"""Placement: in which memory, and in which order of axes, each value of a network lies at a point of the program.

A value (N, C, ...) lies in one of three ways:

- as an *image*: in memory (N, ..., C), channels last. Convolutions and what follows them read and make these;
- *plain*: in PyTorch's order of axes. Rows (N, ..., C) lie so, and vectors (N, C), which have one order only;
- *moved*: nothing was copied yet, and a `View` says where in the memory of another value its own are.

A kernel asks for a value in the order that it reads (``value_of``, ``value_in_order``, ``value_as_it_lies``), and the
kernel that copies it into that order is added if there is none yet. A value that is only described (`Unmade`) is made
when it is first asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch.fx import Node

from aap_hw.compile.families.slow import CONSTANT, PLAIN, WEIGHT
from aap_hw.compile.front.copies import image_order, strided_copy
from aap_hw.compile.front.lengths import TooManyWidths
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.views import View
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph.program.call import shape_of
from aap_hw.graph.program.source import explain, op_name

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition


class Unmade(Protocol):
    """A value that no kernel makes before something asks for it."""

    def emit(self, partition: Partition, node: Node) -> None:
        """Add the kernel that makes the value of ``node``."""


@dataclass(frozen=True)
class Moved:
    """A value that is only moved: the walk that finds it, and the first node that it was the value of."""

    view: View
    node: Node


class Placement:
    """Where the values of a partition in the making lie; names are those of the kernels or inputs that make them."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._names: dict[Node, str] = {}
        self._images: set[Node] = set()
        self._moved: dict[Node, Moved] = {}
        self._unmade: dict[Node, Unmade] = {}
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    # How a value lies.

    def is_image(self, node: Node) -> bool:
        """Whether a value (N, C, ...) lies in memory as (N, ..., C), and not in PyTorch's order."""
        return node in self._images

    def is_plain(self, node: Node) -> bool:
        """Whether a value lies in memory in PyTorch's order of axes."""
        return not self.is_image(node) or not _has_two_orders(node)

    def is_rows(self, node: Node) -> bool:
        """Whether a value is vectors (N, ..., C) that lie one behind the other, as an image's pixels do."""
        return len(shape_of(node)) > 2 and not self._partition.is_parameter(node) and not self.is_image(node)

    def is_in_turned_input(self, node: Node) -> bool:
        """Whether a value in PyTorch's order is in memory what an input image is once it is channels last."""
        name = self.held_by(node)
        turned = (image for image in self._images if image.name == name and name in self._partition.inputs)
        return not self.is_image(node) and any(map(_has_two_orders, turned))

    def is_moved(self, node: Node) -> bool:
        """Whether a value is only moved, and nothing of it was copied yet."""
        return node in self._moved

    def is_made(self, node: Node) -> bool:
        """Whether a kernel before this point of the program makes a value."""
        return node in self._names or node in self._moved

    def held_by(self, node: Node) -> str:
        """Name of what a node holds now, without making anything; empty if that has no name yet."""
        return self._names.get(node, "")

    def name_of_copy(self, name: str, order: str, node: Node) -> str:
        """What a copy in another order is called: memory that is read under several shapes has one for each."""
        shapes = self._shapes.setdefault(f"{name}_{order}", [])
        if (shape := shape_of(node)) not in shapes:
            shapes.append(shape)
        number = shapes.index(shape) + 1
        return f"{name}_{order}" if number == 1 else f"{name}_{order}_{number}"

    # Values as they are read.

    def value_of(self, node: Node, reader: Node) -> str:
        """Name of what a node holds at this point of the program; (N, C, ...) lies as (N, ..., C)."""
        if node in self._moved:
            moved = self._moved[node]
            if not _has_two_orders(node):
                return self._plain_copy(node)
            return self._copied(node, moved, self.name_of_copy(moved.node.name, "nhwc", node), image_order(node))
        name = self.value_as_it_lies(node, reader)
        if self.is_image(node) or not _has_two_orders(node):
            return name
        if self.is_in_turned_input(node):  # which `to_nhwc` would read as it came
            moved = Moved(self.view_of(node, reader), node)
            return self._copied(node, moved, self.name_of_copy(node.name, "nhwc", node), image_order(node))
        turned = self.name_of_copy(name, "nhwc", node)
        if not self._partition.has_kernel(turned):
            shape, width = shape_of(node), self._partition.graph.width_of(node.name)
            key = KernelKey.make("to_nhwc", _area(shape), shape[0])
            self._partition.add_inner(Kernel(turned, key, (name,), (width, width)))
        return turned

    def value_in_order(self, node: Node, reader: Node) -> str:
        """Name of what a node holds at this point of the program, in PyTorch's order of axes."""
        if node in self._moved:
            return self._plain_copy(node)
        if self.is_plain(node):
            return self.value_as_it_lies(node, reader)
        moved = Moved(self.view_of(node, reader), node)
        return self._copied(node, moved, self.name_of_copy(moved.view.name, "nchw", node), range(len(shape_of(node))))

    def value_as_it_lies(self, node: Node, reader: Node) -> str:
        """Name of what a node holds at this point of the program, as an image or plain: `is_image` says which."""
        self.make(node)
        if node in self._moved:
            return self.value_of(node, reader) if node in self._images else self._plain_copy(node)
        if node not in self._names:
            problem = f"{op_name(reader)} on a parameter or constant of the model has no kernel yet"
            raise self._partition.refused(problem, reader)
        return self._names[node]

    def view_of(self, node: Node, reader: Node) -> View:
        """A value, or a constant, as a walk through the memory that it lies in; nothing is copied."""
        if node in self._moved:
            return self._moved[node].view
        partition, lengths = self._partition, self._partition.lengths_of(node)
        varying = [length for length in lengths if length.terms]
        if len(varying) > 1:
            groups = TooManyWidths(*varying).groups
            partition.fix(groups, explain("moves a value of which several axes can be cut", reader))
            return self.view_of(node, reader)
        if partition.is_parameter(node):
            name, kind = partition.constant(node), WEIGHT if partition.is_learned(node) else CONSTANT
        else:
            name, kind = self.value_as_it_lies(node, reader), PLAIN
        order = image_order(node) if self.is_image(node) else range(len(lengths))
        return View.of(name, lengths, shape_of(node), order, kind)

    def plain_view_of(self, node: Node, reader: Node) -> View:
        """A value in PyTorch's order, copied into it if it lies in another, as a walk from end to end."""
        lengths = self._partition.lengths_of(node)
        return View.of(self.value_in_order(node, reader), lengths, shape_of(node), range(len(lengths)), PLAIN)

    # Where a value is put.

    def place(self, node: Node, name: str, *, is_image: bool) -> None:
        """The value of ``node`` is the one with a name, which lies as an image or plain."""
        self._names[node] = name
        self._note_order(node, is_image)

    def move(self, node: Node, view: View) -> None:
        """The value of ``node`` is a view, which needs no kernel until something reads it in another order."""
        plain, image = range(len(shape_of(node))), image_order(node)
        if view.kind == PLAIN and view.is_everything(plain):
            self.place(node, view.name, is_image=False)
        elif view.kind == PLAIN and len(shape_of(node)) > 2 and view.is_everything(image):
            self.place(node, view.name, is_image=True)
        else:
            self._moved[node] = Moved(view, node)
            # Where channels lie side by side, a copy as an image is the quick one.
            self._note_order(node, view.contiguous_axis == 1)

    def same_value(self, node: Node, source: Node) -> None:
        """The value of ``node`` is that of ``source``, from here on."""
        self._moved.pop(node, None)
        self._images.discard(node)
        if source in self._moved:
            self._moved[node] = self._moved[source]
            self._note_order(node, source in self._images)
        else:
            self.renamed(node, source, is_image=self.is_image(source))
        self._unmade.pop(node, None)

    def renamed(self, node: Node, source: Node, *, is_image: bool) -> None:
        """The value of ``node`` is that of ``source`` in memory, read under another shape, which needs no kernel."""
        name = self.value_as_it_lies(source, node)
        self._images.discard(node)
        self.place(node, name, is_image=is_image)

    # Values that wait until something asks for them.

    def defer(self, node: Node, unmade: Unmade, *, is_image: bool) -> None:
        """Make the value of ``node`` only when something asks for it."""
        self._unmade[node] = unmade
        self._note_order(node, is_image)

    def unmade(self, node: Node) -> Unmade | None:
        """How a value will be made, if no kernel makes it yet."""
        return self._unmade.get(node)

    def make(self, node: Node) -> None:
        """Add the kernel of a value that waits."""
        if (unmade := self._unmade.pop(node, None)) is not None:
            unmade.emit(self._partition, node)

    def all_unmade(self) -> Mapping[Node, Unmade]:
        """The values that wait now."""
        return dict(self._unmade)

    def unmake(self, waiting: Mapping[Node, Unmade]) -> None:
        """Let values wait again that waited at an earlier point; the kernels added since then are gone."""
        self._unmade = dict(waiting)
        for node in waiting:
            self._names.pop(node, None)

    def _note_order(self, node: Node, is_image: bool) -> None:
        if is_image and len(shape_of(node)) > 2:
            self._images.add(node)

    def _plain_copy(self, node: Node) -> str:
        moved = self._moved[node]
        return self._copied(node, moved, moved.node.name, range(len(shape_of(node))))

    def _copied(self, node: Node, moved: Moved, name: str, order: Sequence[int]) -> str:
        """Name of what holds a moved value with its axes in some order."""
        if not self._partition.has_kernel(name):
            kernel = strided_copy(self._partition, name, node, [moved.view], order)
            assert kernel is not None
            self._partition.add_inner(kernel)
        return name


def _has_two_orders(node: Node) -> bool:
    """Whether (N, C, ...) and (N, ..., C) differ in memory."""
    shape = shape_of(node)
    return len(shape) > 2 and shape[1] > 1 and math.prod(shape[2:]) > 1


def _area(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width of (N, C, H, W); what has other axes is an image of one column."""
    return shape[2:] if len(shape) == 4 else (math.prod(shape[2:]), 1)
