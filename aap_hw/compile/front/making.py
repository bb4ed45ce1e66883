"""A partition in the making: what rules can ask about a program, and what they can do.

A rule gets a `Partition`, asks about the nodes around its operator, and adds kernels. Where values lie in memory is in
`placement`. Which rule is called when is decided in `partition`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Node

from aap_hw.compile.front.aliases import Memory, writes_in_place
from aap_hw.compile.front.network import Kernel, Normalization, is_rectified
from aap_hw.compile.front.placement import Placement, Unmade
from aap_hw.compile.front.program import NoKernel, is_of_shape, state_names, values_read
from aap_hw.compile.front.views import View
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import ChannelGraph, WidthExpr
from aap_hw.graph.groups.blocks import Block
from aap_hw.graph.groups.branches import keeps_zero
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import op_name

_MAKE_ZEROS = ("zeros", "new_zeros", "zeros_like")


@dataclass(frozen=True)
class Saved:
    """A snapshot before a rule is called, which may add kernels before it refuses."""

    kernels: int
    absorbed: frozenset[Node]
    waiting: Mapping[Node, Callable[[], None]]
    unmade: Mapping[Node, Unmade]


class Partition:
    """The kernels of a program up to a point, and what is known about its nodes.

    Parameters
    ----------
    graph
        The traced network.
    nodes, inputs
        Its program, and the nodes of it that the network takes.
    stored
        Names of nodes whose values something holds, so that no kernel may compute past them.
    without
        Residual branches that are left out.

    Attributes
    ----------
    graph, memory
        Widths of the program's values, and which of them share memory.
    inputs
        Names of the values that the network takes.
    placement
        Where values lie in memory.
    kernels
        Those that were added so far.
    fixed
        Groups whose widths some kernel cannot follow, and why.
    moved_behind
        For each kernel whose result is the value of a node in another order, that node's name.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        nodes: Sequence[Node],
        inputs: Sequence[Node],
        stored: Collection[str] = (),
        without: Sequence[Block] = (),
    ) -> None:
        # Nothing of a group of one channel can be cut, so that its length needs no letter in a key. A group of one head
        # may be what is left of several, whose kernels have the same keys.
        single = {each.name: "it has one channel" for each in graph.groups if each.width == 1 and not each.is_of_heads}
        self.graph, self.memory = graph.frozen(single), Memory(nodes)
        self.inputs, self.batch = frozenset(node.name for node in inputs), shape_of(inputs[0])[0]
        self.placement, self._stored = Placement(self), stored
        self.kernels: list[Kernel] = []
        self.fixed: dict[str, str] = {}
        self.moved_behind: dict[str, str] = {}
        self._parameters = state_names(graph.program)
        self._constants: set[Node] = set()
        self._left_out = frozenset(name for block in without for name in block.nodes)
        self._void: set[Node] = set()
        self._zeros = {node for node in nodes if node.name in {block.branch for block in without}}
        self._absorbed: set[Node] = set()
        self._waiting: dict[Node, Callable[[], None]] = {}
        for node in nodes:  # before any rule is called, as rules look ahead
            if node.op == "call_function":
                self._classify(node)

    def _classify(self, node: Node) -> None:
        """Note whether a value is left out, or made of weights and constants alone, and whether it is zero."""
        sources = [source for source in values_read(node) if not self.is_parameter(source)]
        if node.name in self._left_out or (sources and all(map(self.is_void, sources))):
            self._void.add(node)
        elif is_of_shape(node) or not sources:
            self._constants.add(node)
        else:
            return
        read = [source for source in node.all_input_nodes if source in sources or self.is_zero(source)]
        if Call(node).name in _MAKE_ZEROS or (read and keeps_zero(node) and all(map(self.is_zero, read))):
            self._zeros.add(node)
        elif self.is_constant(node) and writes_in_place(node):
            self._zeros.difference_update(self.memory.sharing(node))

    # What rules read.

    def next_alone(self, node: Node) -> Node | None:
        """The only operator that reads a value; None if there are several, or a kernel took it along already."""
        users = list(node.users) if not self.is_stored(node) else []
        alone = len(users) == 1 and users[0].op == "call_function" and users[0] not in self._absorbed
        return users[0] if alone else None

    def is_stored(self, node: Node) -> bool:
        """Whether something must hold the value of a node, even if a kernel could take its reader along."""
        return node.name in self._stored

    def has_kernel(self, name: str) -> bool:
        """Whether there is a kernel of that name."""
        return any(kernel.name == name for kernel in self.kernels)

    def is_taken(self, node: Node) -> bool:
        """Whether a kernel has taken an operator along."""
        return node in self._absorbed

    def lengths_of(self, node: Node) -> list[WidthExpr]:
        """Lengths of a value's axes."""
        return [self.graph.width_of(node.name, dim) for dim in range(len(shape_of(node)))]

    def has_fixed_rows(self, node: Node) -> bool:
        """Whether a value (N, ..., C) has as many vectors whatever the widths are."""
        return not any(length.terms for length in self.lengths_of(node)[:-1])

    def is_parameter(self, node: Node) -> bool:
        """Whether a node is a weight or constant of the model, or computed from these alone."""
        return self.is_constant(node) or (node.op != "call_function" and node.name not in self.inputs)

    def is_learned(self, node: Node) -> bool:
        """Whether a node is a parameter of the model."""
        return node.name in self.graph.program.graph_signature.inputs_to_parameters

    def is_constant(self, node: Node) -> bool:
        """Whether an operator computes with weights and constants alone, or only with the shape of what it reads."""
        return node in self._constants

    def is_void(self, node: Node) -> bool:
        """Whether a value is left out, so that no kernel makes it."""
        return node in self._void

    def is_zero(self, node: Node) -> bool:
        """Whether a value is known to be zero everywhere."""
        return node in self._zeros

    def is_rectified(self, node: Node, activation: str) -> bool:
        """Whether an activation would change nothing of the value of a node."""
        return is_rectified(self.kernels, self.placement.held_by(node), activation)

    def parameter(self, node: Node | None, reader: Node) -> str | None:
        """Name of a weight in the model's state, or of what is computed from weights alone; None stays None."""
        if node is None:
            return None
        if not self.is_parameter(node):
            raise self.refused(f"{op_name(reader)} with weights that depend on the input has no kernel yet", reader)
        return self.constant(node)

    def constant(self, node: Node) -> str:
        """Name of a weight or constant, or of what is computed from these alone."""
        return self._parameters.get(node.name, node.name)

    def refused(self, problem: str, node: Node, advice: str = "") -> NoKernel:
        """The error that says that an operator cannot be compiled, with its source line."""
        return NoKernel.of(node, problem, advice)

    @property
    def fixed_widths(self) -> dict[str, int]:
        """Widths of the groups that are frozen."""
        return {group.name: group.width for group in self.graph.groups if group.frozen}

    # What rules do.

    def emit(
        self,
        node: Node,
        op: str,
        image: Node,
        inputs: list[str],
        *,
        rows: bool = False,
        size: tuple[int, ...] | None = None,
        batch: int | None = None,
        turned: bool = False,
        width_in: WidthExpr | None = None,
        weight: str | None = None,
        bias: str | None = None,
        normalization: Normalization | None = None,
        is_turned: bool = False,
        **attributes: object,
    ) -> None:
        """Add the kernel that makes the value of ``node`` from images of the size and batch of ``image``.

        With ``rows`` both are vectors (N, ..., C), each of which is a pixel; ``turned`` if the result is an image (N,
        C, ...) all the same. ``size``, ``batch`` and ``width_in`` are those of ``image`` unless they are given.
        """
        shape, channels = shape_of(image), -1 if rows else 1
        if size is None:
            size = (math.prod(shape[1:-1]), 1) if rows else _size(shape)
        key = KernelKey.make(op, size, batch or shape[0], **attributes)
        made = self.graph.width_of(node.name, 1 if turned else channels)
        widths = width_in or self.graph.width_of(image.name, channels), made
        kernel = Kernel(node.name, key, tuple(inputs), widths, weight, bias, normalization, is_turned=is_turned)
        self.add(node, kernel, is_image=turned or not rows)

    def add(self, node: Node, kernel: Kernel, *, is_image: bool) -> None:
        """Add a kernel that makes the value of ``node``, as an image or plain (see `placement`)."""
        self.placement.place(node, node.name, is_image=is_image)
        self.kernels.append(kernel)

    def add_inner(self, kernel: Kernel) -> str:
        """Add a kernel for an intermediate value that belongs to no node; returns its name."""
        self.kernels.append(kernel)
        return kernel.name

    def fix(self, groups: Iterable[str], reason: str) -> None:
        """Treat groups as frozen, because a kernel cannot follow their widths."""
        self.fixed.update(dict.fromkeys(groups, reason))
        self.graph = self.graph.frozen(self.fixed)

    def absorb(self, *nodes: Node) -> None:
        """Mark operators that a kernel takes along, so that no rule is called for them."""
        self._absorbed.update(nodes)

    def add_moved(self, node: Node, kernel: Kernel, view: View) -> None:
        """Add a kernel; the value of ``node`` is a view of its result."""
        self.kernels.append(kernel)
        self.placement.move(node, view)
        self.moved_behind[kernel.name] = node.name

    def wait(self, node: Node, emit: Callable[[], None]) -> None:
        """Call ``emit`` when the program reaches ``node``, so that the kernel reads the values of that point."""
        self._waiting[node] = emit

    # What the driver does.

    def reach(self, node: Node) -> None:
        """Add the kernel that waits for ``node``, if there is one."""
        if node in self._waiting:
            self._waiting.pop(node)()

    def saved(self) -> Saved:
        """A snapshot, from which `restore` undoes what a rule does."""
        absorbed, waiting = frozenset(self._absorbed), dict(self._waiting)
        return Saved(len(self.kernels), absorbed, waiting, self.placement.all_unmade())

    def restore(self, saved: Saved) -> None:
        """Undo what a rule did before it refused an operator; groups that it fixed stay fixed."""
        del self.kernels[saved.kernels :]
        self._absorbed, self._waiting = set(saved.absorbed), dict(saved.waiting)
        self.placement.unmake(saved.unmade)


def _size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width of (N, C, ...): an axis alone is an image of one row, and a vector has neither."""
    return (math.prod(shape[2:-1]), shape[-1]) if len(shape) > 2 else ()
