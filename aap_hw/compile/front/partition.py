"""Partition: an exported network becomes a list of kernels, each with what is fused into it.

The driver walks the program in order and asks the rule of each operator (`rules`) for its kernels; a rule takes along
what follows it and has no other reader. An operator without a rule, or in a case that its rule refuses, becomes a
kernel on the slow path (`rules.slow`). Channel counts stay functions of the group widths, so that one partition serves
every width plan. Nothing is compiled here, and TVM is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from aap_hw.compile.families.slow import CONSTANT, PLAIN, WEIGHT
from aap_hw.compile.front.aliases import Memory, is_same_view, writes_in_place
from aap_hw.compile.front.copies import image_order, strided_copy
from aap_hw.compile.front.lengths import TooManyWidths
from aap_hw.compile.front.network import Kernel, Network, Normalization, Port, is_rectified, with_layout_changes
from aap_hw.compile.front.pitch import with_pitched_images
from aap_hw.compile.front.rules import RULES
from aap_hw.compile.front.rules.slow import TYPES, slow_kernel
from aap_hw.compile.front.views import View
from aap_hw.compile.keys.key import KernelKey
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph, WidthExpr
from aap_hw.graph.call import Call, is_tensor, shape_of
from aap_hw.graph.source import explain, op_name, quoted

# Operators that change nothing at inference.
TRANSPARENT = {
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "contiguous",
    "clone",
    "detach",
    "alias",
    "to",
    "_to_copy",
    "type_as",
}


def partition(graph: ChannelGraph) -> Network:
    """Split a traced network into kernels.

    Raises
    ------
    UserError : an operator can have no kernel; the sentence names it and its source line.
    """
    return Partition(graph).run()


class NoKernel(UserError):  # noqa: N818 - an answer of a rule
    """An operator, in the way it is used, has no kernel with a schedule."""


class Unmade(Protocol):
    """How the value of a node will be made, if anything asks for it."""

    def emit(self, partition: Partition, node: Node) -> None:
        """Add the kernel."""


class Partition:
    """A partition in the making: what the rules read of the program, and where they put their kernels.

    Attributes
    ----------
    graph, memory
        Widths of the program's values, and which of them share memory.
    inputs
        Names of the values that the network takes.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self._parameters = state_names(graph.program)
        self._nodes = list(_that_matter(graph.program.graph).nodes)
        self.memory = Memory(self._nodes)
        self.inputs: frozenset[str] = frozenset()
        self._value: dict[Node, str] = {}
        self._images: set[Node] = set()
        self._constants: set[Node] = set()
        self._fixed: dict[str, str] = {}
        self._absorbed: set[Node] = set()
        self._void: set[Node] = set()
        self._waiting: dict[Node, Callable[[], None]] = {}
        self._moved: dict[Node, Moved] = {}
        self._unmade: dict[Node, Unmade] = {}
        self._kernels: list[Kernel] = []

    def run(self) -> Network:
        """Visit every operator that has an effect once."""
        inputs, outputs = self._ends()
        self._check_sizes()
        self._check_calls()
        self.inputs = frozenset(node.name for node in inputs)
        taken = tuple(Port(node.name, shape_of(node), _is_image(node)) for node in inputs)
        for node, port in zip(inputs, taken, strict=True):
            self._value[node] = node.name
            if port.is_image:
                self._images.add(node)  # or is turned by a kernel that is added at the end
        operators = [node for node in self._nodes if node.op == "call_function"]
        for node in operators:  # all at once, as a kernel takes along what comes later
            if self._makes_zeros(node):
                self._void.add(node)
            elif is_of_shape(node) or all(map(self.is_parameter, node.all_input_nodes)):
                self._constants.add(node)
        for node in operators:
            if node not in self._void and node not in self._constants:
                self._visit(node)
                if writes_in_place(node) and node in self._value:
                    self._overwrite(node)
        returned = tuple(self._returned(output) for output in outputs)
        if not self._kernels:
            raise UserError("the network computes nothing that takes time: there is no kernel in it")
        network = Network(
            tuple(self._kernels),
            taken,
            returned,
            {group.name: group.width for group in self.graph.groups},
            self._fixed,
        )
        to_turn = [not self.is_plain(output) and output not in self._moved for output in outputs]
        network = with_layout_changes(network, to_turn)
        return with_pitched_images(network)

    def _ends(self) -> tuple[list[Node], list[Node]]:
        """The network's inputs and outputs."""
        inputs = [n for n in self._nodes if n.op == "placeholder" and n.name not in self._parameters]
        returned = next(n for n in self._nodes if n.op == "output").args[0]
        assert isinstance(returned, tuple | list)
        outputs = [each for each in returned if isinstance(each, Node)]
        if not outputs:
            raise UserError("the network returns no tensor, so that there is nothing to compute")
        for node in inputs:
            value = node.meta["val"]
            if value.dtype not in TYPES or value.dim() < (2 if len(inputs) == 1 else 1):
                raise UserError(
                    f"the network's input {node.name} is {value.dim()}-D {value.dtype}, and only float32 or whole "
                    "numbers with a batch axis, such as images (N, C, H, W), can be compiled so far; convert the model "
                    "with .float()"
                )
        return inputs, outputs

    def _check_sizes(self) -> None:
        for node in self._nodes:
            if is_tensor(node) and any(isinstance(extent, torch.SymInt) for extent in node.meta["val"].shape):
                problem = f"the size of what {op_name(node)} makes depends on the values of the input"
                raise self.refused(problem, node, "return what it is made from, and do this behind the network")

    def _check_calls(self) -> None:
        """Refuse calls of whole graphs, as ``torch.cond`` is, and convolutions of inputs that have no channels."""
        for node in self._nodes:
            call = Call(node)
            read, weight = call.get("input"), call.get("weight")
            if call.name.startswith("conv") and isinstance(read, Node) and read.op == "placeholder":
                shape = shape_of(read)
                if isinstance(weight, Node) and len(shape) < len(shape_of(weight)):
                    advice = f"give each sample an axis of channels: --input {'x'.join(map(str, (1, *shape[1:])))}"
                    raise self.refused(f"{op_name(node)} takes the batch for channels", node, advice)
            if node.target is torch.ops.higher_order.wrap_with_autocast:
                name = str(node.args[1]).removeprefix("torch.")
                function = node.args[4]
                assert isinstance(function, Node)
                inside = self.graph.program.graph_module.get_submodule(str(function.target))
                assert isinstance(inside, torch.fx.GraphModule)
                first = next((n for n in inside.graph.nodes if quoted(n)), node)
                problem = f"torch.autocast computes in {name}, and only float32 can be compiled so far"
                raise self.refused(problem, first, "leave it out of the model")
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                problem, advice = f"{op_name(node)} has no kernel here", "leave that part out of the model"
                raise self.refused(problem, node, advice)

    def _returned(self, output: Node) -> Port:
        self._make(output)
        if output not in self._value and output not in self._moved:
            problem = f"the network returns {self.constant(output)}, which does not depend on the input"
            raise self.refused(problem, output, "leave it out of what forward returns")
        if output in self._moved:
            return Port(self._plain_copy(output), shape_of(output))
        return Port(self.value_as_it_lies(output, output), shape_of(output))

    def _visit(self, node: Node) -> None:
        if node in self._waiting:
            self._waiting.pop(node)()
        if node in self._absorbed:
            return
        op = Call(node).name
        if self.is_transparent(node) or _is_identity(node):
            self.same_value(node, Call(node).first)
            return
        before, unmade = (len(self._kernels), set(self._absorbed), dict(self._waiting)), dict(self._unmade)
        try:
            rule = RULES.get(op)
            if rule is None or not rule.is_for(self._tensors(node)):
                raise self.refused(f"the operator {op_name(node)} has no kernel yet", node)
            rule.make(self, node)
        except NoKernel:
            del self._kernels[before[0] :]
            self._absorbed, self._waiting, self._unmade = before[1], before[2], unmade
            for each in unmade:
                self._value.pop(each, None)
            if is_tensor(node):
                slow_kernel(self, node)
            elif any(Call(user).name != "getitem" for user in node.users):
                raise

    def _tensors(self, node: Node) -> list[torch.Tensor]:
        """All that an operator reads and makes, but for weights."""
        nodes = [each for each in (node, *node.all_input_nodes) if is_tensor(each) and not self.is_parameter(each)]
        return [each.meta["val"] for each in nodes]

    def _makes_zeros(self, node: Node) -> bool:
        """Whether a value is made of zeros alone, as in a removed branch."""
        sources = [source for source in node.all_input_nodes if not self.is_parameter(source)]
        return Call(node).name == "zeros_like" or bool(sources and all(source in self._void for source in sources))

    def _overwrite(self, node: Node) -> None:
        """Whoever reads the memory that an in-place operator wrote to sees its result from here on."""
        for other in self.memory.stale_after(node):
            if not is_same_view(other, node):
                problem = "writes into a tensor of which another view is read later"
            elif other in self._constants:
                problem = "writes what depends on the input into a tensor of constants that is read later"
            else:
                self.same_value(other, node)
                self._unmade.pop(other, None)
                continue
            raise self.refused(f"{op_name(node)} {problem}", node, "use the form that does not work in place")

    # What rules read.

    def next_alone(self, node: Node) -> Node | None:
        """The one operator that reads a value, if there is one and no kernel took it along yet."""
        users = list(node.users)
        alone = len(users) == 1 and users[0].op == "call_function" and users[0] not in self._absorbed
        return users[0] if alone else None

    def is_transparent(self, node: Node) -> bool:
        """Whether an operator changes nothing of what it reads."""
        return Call(node).name in TRANSPARENT and _keeps_type(node)

    def is_taken(self, node: Node) -> bool:
        """Whether a kernel has taken an operator along."""
        return node in self._absorbed

    def value_of(self, node: Node, reader: Node) -> str:
        """Name of what a node holds at this point of the program; (N, C, ...) lies as (N, ..., C)."""
        if node in self._moved:
            moved = self._moved[node]
            if not _has_two_orders(node):
                return self._plain_copy(node)
            return self._copied(node, moved, f"{moved.node.name}_nhwc", image_order(node))
        name = self.value_as_it_lies(node, reader)
        if self.is_image(node) or not _has_two_orders(node):
            return name
        turned = f"{name}_nhwc"
        if all(kernel.name != turned for kernel in self._kernels):
            shape, width = shape_of(node), self.graph.width_of(node.name)
            key = KernelKey.make("to_nhwc", _area(shape), shape[0])
            self._kernels.append(Kernel(turned, key, (name,), (width, width)))
        return turned

    def value_in_order(self, node: Node, reader: Node) -> str:
        """Name of what a node holds at this point of the program, in PyTorch's order of axes."""
        if node in self._moved:
            return self._plain_copy(node)
        if self.is_plain(node):
            return self.value_as_it_lies(node, reader)
        moved = Moved(self.view_of(node, reader), node)
        return self._copied(node, moved, f"{moved.view.name}_nchw", range(len(shape_of(node))))

    def value_as_it_lies(self, node: Node, reader: Node) -> str:
        """Name of what a node holds at this point of the program; see `is_image`."""
        self._make(node)
        if node in self._moved:
            return self.value_of(node, reader) if node in self._images else self._plain_copy(node)
        if node not in self._value:
            raise self.refused(f"{op_name(reader)} on a parameter or constant of the model has no kernel yet", reader)
        return self._value[node]

    def view_of(self, node: Node, reader: Node) -> View:
        """A value as a walk through the memory that it lies in, constants too."""
        if node in self._moved:
            return self._moved[node].view
        lengths = [self.graph.width_of(node.name, dim) for dim in range(len(shape_of(node)))]
        varying = [length for length in lengths if length.terms]
        if len(varying) > 1:
            self.fix(TooManyWidths(*varying).groups, explain("moves a value of which several axes can be cut", reader))
            return self.view_of(node, reader)
        if self.is_parameter(node):
            name, kind = self.constant(node), WEIGHT if self.is_learned(node) else CONSTANT
        else:
            name, kind = self.value_as_it_lies(node, reader), PLAIN
        order = image_order(node) if self.is_image(node) else range(len(lengths))
        return View.of(name, lengths, shape_of(node), order, kind)

    def plain_view_of(self, node: Node, reader: Node) -> View:
        """A value as it lies, or is copied now to lie, in PyTorch's order."""
        lengths = [self.graph.width_of(node.name, dim) for dim in range(len(shape_of(node)))]
        order = range(len(lengths))
        return View.of(self.value_in_order(node, reader), lengths, shape_of(node), order, PLAIN)

    def is_made(self, node: Node) -> bool:
        """Whether a kernel before this point of the program makes a value."""
        return node in self._value or node in self._moved

    def is_moved(self, node: Node) -> bool:
        """Whether a value is only moved, and nothing of it was copied yet."""
        return node in self._moved

    def _make(self, node: Node) -> None:
        if (unmade := self._unmade.pop(node, None)) is not None:
            unmade.emit(self, node)

    def unmade(self, node: Node) -> Unmade | None:
        """How a value will be made, if no kernel makes it yet."""
        return self._unmade.get(node)

    def is_image(self, node: Node) -> bool:
        """Whether a value (N, C, ...) lies in memory as (N, ..., C), and not in PyTorch's order."""
        return node in self._images

    def is_plain(self, node: Node) -> bool:
        """Whether a value lies in memory in PyTorch's order of axes."""
        return not self.is_image(node) or not _has_two_orders(node)

    def is_rows(self, node: Node) -> bool:
        """Whether a value is vectors (N, ..., C) that lie one behind the other, as an image's pixels do."""
        return len(shape_of(node)) > 2 and not self.is_parameter(node) and not self.is_image(node)

    def has_fixed_rows(self, node: Node) -> bool:
        """Whether a value (N, ..., C) has as many vectors whatever the widths are."""
        return not any(self.graph.width_of(node.name, dim).terms for dim in range(len(shape_of(node)) - 1))

    def is_parameter(self, node: Node) -> bool:
        """Whether a node is a weight or constant of the model, or computed from these alone."""
        return node in self._constants or (node.op != "call_function" and node.name not in self.inputs)

    def is_learned(self, node: Node) -> bool:
        """Whether a node is a parameter of the model."""
        return node.name in self.graph.program.graph_signature.inputs_to_parameters

    def is_void(self, node: Node) -> bool:
        """Whether a value is made of zeros alone, so that no kernel makes it."""
        return node in self._void

    def is_zero(self, node: Node) -> bool:
        """Whether a value is known to be zero everywhere."""
        return self.is_void(node) and Call(node).name == "zeros_like"

    def is_rectified(self, node: Node, activation: str) -> bool:
        """Whether an activation would change nothing of the value of a node."""
        return is_rectified(self._kernels, self._value.get(node, ""), activation)

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
        return NoKernel(problem + quoted(node) + (f"; {advice}" if advice else ""))

    @property
    def batch(self) -> int:
        """Images a call."""
        return next(shape_of(node)[0] for node in self._nodes if node.name in self.inputs)

    @property
    def fixed_widths(self) -> dict[str, int]:
        """Widths of the groups that keep them."""
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
        **attributes: object,
    ) -> None:
        """Add the kernel that makes the value of ``node`` from images of the size and batch of ``image``.

        With ``rows`` both are vectors (N, ..., C), which are so many pixels; ``turned`` if what is made of them goes by
        as an image (N, C, ...). ``size``, ``batch`` and ``width_in`` are those of ``image`` unless they are given.
        """
        shape, channels = shape_of(image), -1 if rows else 1
        if size is None:
            size = (math.prod(shape[1:-1]), 1) if rows else _size(shape)
        key = KernelKey.make(op, size, batch or shape[0], **attributes)
        made = self.graph.width_of(node.name, 1 if turned else channels)
        widths = width_in or self.graph.width_of(image.name, channels), made
        kernel = Kernel(node.name, key, tuple(inputs), widths, weight, bias, normalization)
        self.add(node, kernel, is_image=turned or not rows)

    def add(self, node: Node, kernel: Kernel, *, is_image: bool) -> None:
        """Add a kernel that makes the value of ``node``; ``is_image`` is how that lies, if there are two ways."""
        self._value[node] = node.name
        self._kernels.append(kernel)
        if is_image and len(shape_of(node)) > 2:
            self._images.add(node)

    def add_inner(self, kernel: Kernel) -> str:
        """Add a kernel that makes no node's value, but something on the way to one; returns its name."""
        self._kernels.append(kernel)
        return kernel.name

    def add_rest(self, node: Node, image: Node, rest: WidthExpr) -> str:
        """Add a kernel that takes the last channels of an image for ``node``; returns the name of what it makes."""
        name, shape = f"{node.name}_rest", shape_of(image)
        key = KernelKey.make("channel_slice", shape[2:], shape[0], side="last")
        width = self.graph.width_of(image.name)
        return self.add_inner(Kernel(name, key, (self.value_of(image, node),), (width, rest)))

    def fix(self, groups: Iterable[str], reason: str) -> None:
        """Treat groups as frozen, as a kernel cannot follow their widths."""
        self._fixed.update(dict.fromkeys(groups, reason))
        self.graph = self.graph.frozen(self._fixed)

    def absorb(self, *nodes: Node) -> None:
        """Operators that a kernel takes along: no rule is asked for them."""
        self._absorbed.update(nodes)

    def move(self, node: Node, view: View) -> None:
        """The value of ``node`` is what a walk through memory finds: nothing to do until something reads it."""
        plain, image = range(len(shape_of(node))), image_order(node)
        if view.kind == PLAIN and view.is_everything(plain):
            self._value[node] = view.name
        elif view.kind == PLAIN and len(shape_of(node)) > 2 and view.is_everything(image):
            self._value[node] = view.name
            self._images.add(node)
        else:
            self._moved[node] = Moved(view, node)
            if len(shape_of(node)) > 2 and view.contiguous_axis == 1:
                self._images.add(node)  # that is how to copy it quickly

    def add_moved(self, node: Node, kernel: Kernel, view: View) -> None:
        """Add a kernel of whose result the value of ``node`` is a walk."""
        self._kernels.append(kernel)
        self.move(node, view)

    def _plain_copy(self, node: Node) -> str:
        moved = self._moved[node]
        return self._copied(node, moved, moved.node.name, range(len(shape_of(node))))

    def _copied(self, node: Node, moved: Moved, name: str, order: Sequence[int]) -> str:
        """Name of what holds a moved value with its axes in some order."""
        if all(kernel.name != name for kernel in self._kernels):
            kernel = strided_copy(self, name, node, [moved.view], order)
            assert kernel is not None
            self._kernels.append(kernel)
        return name

    def wait(self, node: Node, emit: Callable[[], None]) -> None:
        """Add a kernel only when the program reaches ``node``: it reads what is there by then."""
        self._waiting[node] = emit

    def defer(self, node: Node, unmade: Unmade, *, is_image: bool) -> None:
        """Make the value of ``node`` only when something asks for it."""
        self._unmade[node] = unmade
        if is_image and len(shape_of(node)) > 2:
            self._images.add(node)

    def stands_for(self, node: Node, value: str, *, is_image: bool) -> None:
        """The value of ``node`` is one that a kernel has made, or the network takes."""
        self._value[node] = value
        if is_image and len(shape_of(node)) > 2:
            self._images.add(node)

    def same_value(self, node: Node, source: Node) -> None:
        """The value of ``node`` is that of ``source``."""
        self._moved.pop(node, None)
        self._images.discard(node)
        if source in self._moved:
            self._moved[node] = self._moved[source]
            self._images |= {node} if source in self._images else set()
        else:
            self.renamed(node, source, is_image=self.is_image(source))

    def renamed(self, node: Node, source: Node, *, is_image: bool) -> None:
        """The value of ``node`` is what ``source`` holds in memory, which is nothing to do."""
        self._value[node] = self.value_as_it_lies(source, node)
        if is_image and len(shape_of(node)) > 2:
            self._images.add(node)
        else:
            self._images.discard(node)


def _that_matter(program: Graph) -> Graph:
    """A copy of a program, with the same names, without what nothing depends on that it returns."""
    copied, copies = Graph(), dict[Node, Node]()
    copied.output(copied.graph_copy(program, copies))
    for original, copy in copies.items():
        copy.name = original.name  # also where it would be given another, as one of Python's own
    copied.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or writes_in_place(node))
    return copied


def state_names(program: ExportedProgram) -> dict[str, str]:
    """For each input of a program that is no image, the name of its weight or constant in the program's state."""
    signature = program.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


@dataclass(frozen=True)
class Moved:
    """A value that is only moved: the walk that finds it, and the node that it was the value of first."""

    view: View
    node: Node


def _is_image(node: Node) -> bool:
    return len(shape_of(node)) == 4 and bool(node.meta["val"].dtype == torch.float32)


def is_of_shape(node: Node) -> bool:
    """Whether a value is the same for all images: it follows from their shape and type."""
    return Call(node).name in ("new_zeros", "new_ones", "new_full", "ones_like", "full_like")


def _has_two_orders(node: Node) -> bool:
    """Whether (N, C, ...) and (N, ..., C) differ in memory."""
    shape = shape_of(node)
    return len(shape) > 2 and shape[1] > 1 and math.prod(shape[2:]) > 1


def _size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width of (N, C, ...); of one axis it is an image of one row, of a vector nothing."""
    return (math.prod(shape[2:-1]), shape[-1]) if len(shape) > 2 else ()


def _area(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width of (N, C, H, W); what has other axes is an image of one column."""
    return shape[2:] if len(shape) == 4 else (math.prod(shape[2:]), 1)


def _keeps_type(node: Node) -> bool:
    return bool(node.meta["val"].dtype == Call(node).first.meta["val"].dtype)


def _is_identity(node: Node) -> bool:
    """Pooling to the size that the image already has, and slices of everything."""
    call = Call(node)
    is_candidate = call.name in ("adaptive_avg_pool2d", "slice")
    return is_candidate and bool(call.first.meta["val"].shape == node.meta["val"].shape)
