"""Partition: an exported network becomes a list of kernels, each with what is fused into it.

The driver walks the program in order and asks the rule of each operator (`rules`) for its kernels; a rule takes along
what follows it and has no other reader. Channel counts stay functions of the group widths, so that one partition
serves every width plan. Nothing is compiled here, and TVM is not needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import Node

from aap_hw.compile.kernel import KernelKey
from aap_hw.compile.memory import Memory, is_same_view, writes_in_place
from aap_hw.compile.network import Kernel, Network, Normalization, is_rectified, with_layout_changes
from aap_hw.compile.rules import RULES
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph, WidthExpr
from aap_hw.graph.call import Call, shape_of
from aap_hw.graph.source import source_line

# Operators that change nothing at inference.
TRANSPARENT = {"dropout", "feature_dropout", "contiguous", "clone", "detach", "alias", "to", "_to_copy"}


def partition(graph: ChannelGraph) -> Network:
    """Split a traced network into kernels.

    Raises
    ------
    UserError : an operator has no kernel; the sentence names it and its source line.
    """
    return with_layout_changes(Partition(graph).run())


class Partition:
    """A partition in the making: what the rules read of the program, and where they put their kernels.

    Attributes
    ----------
    graph, memory
        Widths of the program's values, and which of them share memory.
    image
        Name of the network's input.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        signature = graph.program.graph_signature
        self._parameters: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._nodes = list(graph.program.graph.nodes)
        self.memory = Memory(self._nodes)
        self.image = ""
        self._value: dict[Node, str] = {}
        self._absorbed: set[Node] = set()
        self._void: set[Node] = set()
        self._waiting: dict[Node, Callable[[], None]] = {}
        self._kernels: list[Kernel] = []

    def run(self) -> Network:
        """Visit every operator once."""
        image, output = self._ends()
        self.image = self._value[image] = image.name
        for node in self._nodes:
            if node.op == "call_function" and not self._is_void(node):
                self._visit(node)
                if writes_in_place(node) and node in self._value:
                    self._overwrite(node)
        if not self._kernels:
            raise UserError("the network computes nothing that takes time: there is no kernel in it")
        return Network(
            tuple(self._kernels),
            image.name,
            shape_of(image),
            self.value_of(output, output),
            shape_of(output),
            {group.name: group.width for group in self.graph.groups},
        )

    def _ends(self) -> tuple[Node, Node]:
        """The network's input and its output."""
        images = [n for n in self._nodes if n.op == "placeholder" and n.name not in self._parameters]
        outputs = next(n for n in self._nodes if n.op == "output").all_input_nodes
        if len(images) != 1 or len(outputs) != 1:
            raise UserError(
                f"the network has {len(images)} inputs and {len(outputs)} outputs, and only one of each can be "
                "compiled so far; wrap the model in a module that returns one tensor"
            )
        pixels = images[0].meta["val"]
        if pixels.dim() not in (2, 4) or pixels.dtype != torch.float32:
            raise UserError(
                f"the network's input is {pixels.dim()}-D {pixels.dtype}, and only float32 images (N, C, H, W) and "
                "vectors (N, C) can be compiled so far; convert the model with .float() or reshape its input"
            )
        return images[0], outputs[0]

    def _visit(self, node: Node) -> None:
        if node in self._waiting:
            self._waiting.pop(node)()
        if node in self._absorbed or _is_assertion(node):
            return
        op = Call(node).name
        if (op in TRANSPARENT and _keeps_type(node)) or _is_identity(node):
            self.same_value(node, Call(node).first)
            return
        rule = RULES.get(op)
        if rule is None:
            advice = "replace it in the model or leave that part out"
            raise self.refused(f"the operator {node.target} has no kernel yet", node, advice)
        rule(self, node)

    def _is_void(self, node: Node) -> bool:
        """Whether a value is made of zeros alone, as in a removed branch: no kernel makes it."""
        sources = [source for source in node.all_input_nodes if not self.is_parameter(source)]
        if Call(node).name == "zeros_like" or (sources and all(source in self._void for source in sources)):
            self._void.add(node)
        return node in self._void

    def _overwrite(self, node: Node) -> None:
        """Whoever reads the memory that an in-place operator wrote to sees its result from here on."""
        for other in self.memory.stale_after(node):
            if not is_same_view(other, node):
                problem = f"{node.target} writes into a tensor of which another view is read later"
                raise self.refused(problem, node, "use the form that does not work in place")
            self._value[other] = self._value[node]

    # What rules read.

    def next_alone(self, node: Node) -> Node | None:
        """The one operator that reads a value, if there is one and no kernel took it along yet."""
        users = list(node.users)
        alone = len(users) == 1 and users[0].op == "call_function" and users[0] not in self._absorbed
        return users[0] if alone else None

    def value_of(self, node: Node, reader: Node) -> str:
        """Name of what a node holds at this point of the program."""
        if node not in self._value:
            raise self.refused(f"{reader.target} on a parameter or constant of the model has no kernel yet", reader)
        return self._value[node]

    def is_parameter(self, node: Node) -> bool:
        """Whether a node is a weight or constant of the model."""
        return node.op != "call_function" and node.name != self.image

    def is_zero(self, node: Node) -> bool:
        """Whether a value is known to be zero everywhere."""
        return node in self._void and Call(node).name == "zeros_like"

    def is_rectified(self, node: Node, activation: str) -> bool:
        """Whether an activation would change nothing of the value of a node."""
        return is_rectified(self._kernels, self._value.get(node, ""), activation)

    def parameter(self, node: Node | None, reader: Node) -> str | None:
        """Name of a weight in the model's state; None stays None."""
        if node is None:
            return None
        if node.name not in self._parameters:
            raise self.refused(f"{reader.target} with weights that are computed on the way has no kernel yet", reader)
        return self._parameters[node.name]

    def refused(self, problem: str, node: Node, advice: str = "") -> UserError:
        """The error that says that an operator cannot be compiled, with its source line."""
        line = source_line(node)
        return UserError(problem + (f" ({line})" if line else "") + (f"; {advice}" if advice else ""))

    # What rules do.

    def emit(
        self,
        node: Node,
        op: str,
        image: Node,
        inputs: list[str],
        *,
        width_in: WidthExpr | None = None,
        weight: str | None = None,
        bias: str | None = None,
        normalization: Normalization | None = None,
        **attributes: object,
    ) -> None:
        """Add the kernel that makes the value of ``node`` from images of the size and batch of ``image``.

        ``width_in`` is the width of ``image`` unless it is given.
        """
        shape = shape_of(image)
        key = KernelKey.make(op, shape[2:], shape[0], **attributes)
        width_in, width_out = width_in or self.graph.width_of(image.name), self.graph.width_of(node.name)
        self._value[node] = node.name
        self._kernels.append(Kernel(node.name, key, tuple(inputs), width_in, width_out, weight, bias, normalization))

    def absorb(self, *nodes: Node) -> None:
        """Operators that a kernel takes along: no rule is asked for them."""
        self._absorbed.update(nodes)

    def wait(self, node: Node, emit: Callable[[], None]) -> None:
        """Add a kernel only when the program reaches ``node``: it reads what is there by then."""
        self._waiting[node] = emit

    def same_value(self, node: Node, source: Node) -> None:
        """The value of ``node`` is that of ``source``."""
        self._value[node] = self.value_of(source, node)


def _is_assertion(node: Node) -> bool:
    return Call(node).name.startswith("_assert") and not node.users


def _keeps_type(node: Node) -> bool:
    return bool(node.meta["val"].dtype == Call(node).first.meta["val"].dtype)


def _is_identity(node: Node) -> bool:
    """Pooling to the size that the image already has, and slices of everything."""
    call = Call(node)
    is_candidate = call.name in ("adaptive_avg_pool2d", "slice")
    return is_candidate and bool(call.first.meta["val"].shape == node.meta["val"].shape)
