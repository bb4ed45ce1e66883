"""Partition: an exported network becomes a list of kernels, each with what is fused into it.

Convolutions and linear layers take their batch normalisation, bias, residual addition and activation with them.
Channel counts stay functions of the group widths, so that one partition serves every width plan.
Nothing is compiled here, and TVM is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from aap_hw.compile.kernel import KernelKey
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph, WidthExpr

# Operators that change nothing at inference.
TRANSPARENT = {"dropout", "feature_dropout", "contiguous", "clone", "detach", "alias", "to", "_to_copy"}
ACTIVATIONS = ("relu", "relu6")


@dataclass(frozen=True)
class Normalization:
    """Parameter names of a batch normalisation that is folded into the weights before it."""

    weight: str | None
    bias: str | None
    mean: str
    variance: str
    epsilon: float


@dataclass(frozen=True)
class Kernel:
    """One kernel of a network: its key, the values it reads, its widths and the parameters folded into it."""

    name: str
    key: KernelKey
    inputs: tuple[str, ...]
    width_in: WidthExpr
    width_out: WidthExpr
    weight: str | None = None
    bias: str | None = None
    normalization: Normalization | None = None

    def at(self, widths: Mapping[str, int]) -> tuple[KernelKey, int, int]:
        """Key, input width and output width under a width plan: an address in the latency table."""
        return self.key, self.width_in.at(widths), self.width_out.at(widths)


@dataclass(frozen=True)
class Network:
    """A network as the compiler sees it: kernels in calling order between one image input and one output.

    ``dense`` gives every channel group its full width.
    """

    kernels: tuple[Kernel, ...]
    input: str
    input_shape: tuple[int, ...]
    output: str
    output_shape: tuple[int, ...]
    dense: Mapping[str, int]


def partition(graph: ChannelGraph) -> Network:
    """Split a traced network into kernels.

    Raises
    ------
    UserError : an operator has no kernel; the sentence names it and its source line.
    """
    return _Partition(graph).run()


class _Partition:
    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        signature = graph.program.graph_signature
        self.parameters = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.nodes = list(graph.program.graph.nodes)
        self.value: dict[Node, str] = {}
        self.absorbed: set[Node] = set()
        self.waiting: dict[Node, Callable[[], None]] = {}  # kernels that end at a node still to come
        self.kernels: list[Kernel] = []

    def run(self) -> Network:
        images = [n for n in self.nodes if n.op == "placeholder" and n.name not in self.parameters]
        outputs = next(n for n in self.nodes if n.op == "output").all_input_nodes
        if len(images) != 1 or len(outputs) != 1:
            raise UserError(
                f"the network has {len(images)} inputs and {len(outputs)} outputs, and only one of each can be "
                "compiled so far; wrap the model in a module that returns one tensor"
            )
        image, output = images[0], outputs[0]
        self.value[image] = image.name
        for node in self.nodes:
            if node.op == "call_function":
                self._visit(node)
        return Network(
            tuple(self.kernels),
            image.name,
            tuple(image.meta["val"].shape),
            self.value[output],
            tuple(output.meta["val"].shape),
            {group.name: group.width for group in self.graph.groups},
        )

    def _visit(self, node: Node) -> None:
        if node in self.waiting:
            self.waiting.pop(node)()
        if node in self.absorbed:
            return
        op = _operator(node)
        source = node.args[0] if node.args else None
        if op in TRANSPARENT or _is_identity(node):
            assert isinstance(source, Node)
            self.value[node] = self.value[source]
            return
        rule = _RULES.get(op)
        if rule is None:
            raise UserError(
                f"the operator {node.target} has no kernel yet{_source_line(node)}; "
                "replace it in the model or leave that part out"
            )
        rule(self, node)
        if isinstance(source, Node) and _writes_in_place(node) and node in self.value:
            self.value[source] = self.value[node]  # whoever reads the operand from here on sees it overwritten

    # ---- rules -----------------------------------------------------------------------------------------------

    def _convolution(self, node: Node) -> None:
        arguments = _arguments(node)
        image, weight = arguments["input"], arguments["weight"]
        channels, groups = image.meta["val"].shape[1], arguments["groups"]
        if groups == 1:
            op = "conv2d"
        elif groups == channels == weight.meta["val"].shape[0]:
            op = "depthwise_conv2d"
        else:
            raise UserError(f"a convolution with {groups} groups has no kernel yet{_source_line(node)}")
        padding = arguments["padding"]
        if isinstance(padding, str):
            raise UserError(f"padding={padding!r} has no kernel yet{_source_line(node)}; give it as numbers")
        is_first = self.value[image] == next(iter(self.value.values()))
        self._weighted(
            node,
            image,
            op,
            kernel=tuple(weight.meta["val"].shape[2:]),
            stride=_two(arguments["stride"]),
            padding=_two(padding),
            dilation=_two(arguments["dilation"]),
            layout="nchw" if is_first else "",
        )

    def _linear(self, node: Node) -> None:
        image = _arguments(node)["input"]
        if image.meta["val"].dim() != 2:
            raise UserError(
                f"a linear layer on a {image.meta['val'].dim()}-D tensor has no kernel yet{_source_line(node)}"
            )
        self._weighted(node, image, "linear")

    def _weighted(self, node: Node, image: Node, op: str, **attributes: object) -> None:
        """A kernel with weights, and the element-wise chain behind it that only it feeds."""
        arguments = _arguments(node)
        steps, normalization, residual, last = ["bias"], None, None, node
        while (follower := self._only_user(last)) is not None and follower not in self.absorbed:
            op_name = _operator(follower)
            if op_name == "batch_norm" and last is node:
                normalization = self._normalization(follower)
            elif op_name == "add" and residual is None and (other := self._other_operand(follower, last)):
                residual = other
                steps.append("add")
            elif (activation := _activation(follower)) is not None:
                steps.append(activation)
            else:
                break
            self.absorbed.add(follower)
            last = follower
            if steps[-1] in ACTIVATIONS:
                break

        def emit() -> None:
            operands = [image] if residual is None else [image, residual]
            self._emit(
                last,
                op,
                image,
                [self.value[o] for o in operands],
                weight=self._parameter(arguments["weight"]),
                bias=self._parameter(arguments.get("bias")),
                normalization=normalization,
                epilogue=tuple(steps),
                **attributes,
            )

        if last is node:
            emit()
        else:
            self.waiting[last] = emit

    def _pool(self, node: Node) -> None:
        arguments = _arguments(node)
        if arguments.get("ceil_mode") or _two(arguments.get("dilation", 1)) != (1, 1):
            raise UserError(f"pooling with ceil_mode or dilation has no kernel yet{_source_line(node)}")
        if arguments.get("count_include_pad") is False or arguments.get("divisor_override"):
            raise UserError(f"average pooling with its own divisor has no kernel yet{_source_line(node)}")
        kernel = _two(arguments["kernel_size"])
        image = arguments["self"]
        self._emit(
            node,
            _operator(node),
            image,
            [self.value[image]],
            kernel=kernel,
            stride=_two(arguments["stride"] or kernel),
            padding=_two(arguments["padding"]),
        )

    def _global_pool(self, node: Node) -> None:
        arguments = _arguments(node)
        image = arguments["self"]
        over_image = arguments.get("output_size") in ([1, 1], 1) or sorted(
            d % 4 for d in arguments.get("dim") or []
        ) == [2, 3]
        if image.meta["val"].dim() != 4 or not over_image:
            raise UserError(f"{node.target} has a kernel only over whole images so far{_source_line(node)}")
        self._emit(node, "global_avg_pool2d", image, [self.value[image]])

    def _elementwise(self, node: Node) -> None:
        activation = _activation(node)
        operands = [a for a in node.args if isinstance(a, Node)]
        shapes = {tuple(a.meta["val"].shape) for a in operands}
        if (activation is None and len(operands) != 2) or len(shapes) != 1:
            raise UserError(f"{node.target} with these operands has no kernel yet{_source_line(node)}")
        inputs = [self.value[a] for a in operands]
        self._emit(node, activation or "add", operands[0], inputs)

    def _flatten(self, node: Node) -> None:
        image = node.args[0]
        assert isinstance(image, Node)
        before, after = image.meta["val"].shape, node.meta["val"].shape
        if len(after) != 2 or before[0] != after[0]:
            raise UserError(f"reshaping {tuple(before)} to {tuple(after)} has no kernel yet{_source_line(node)}")
        if all(extent == 1 for extent in before[2:]):
            self.value[node] = self.value[image]
        else:
            self._emit(node, "flatten", image, [self.value[image]])

    def _slice(self, node: Node) -> None:
        image = node.args[0]
        assert isinstance(image, Node)
        chain = [node]
        while (follower := self._only_user(chain[-1])) is not None and _operator(follower) == "slice":
            chain.append(follower)
        steps = {2: 1, 3: 1}
        for link in chain:
            arguments = _arguments(link)
            shape = arguments["self"].meta["val"].shape
            dim, start, step = arguments["dim"] % len(shape), arguments["start"] or 0, arguments["step"]
            full = arguments["end"] is None or arguments["end"] >= shape[dim]
            if len(shape) != 4 or start != 0 or not full or (dim not in steps and step != 1):
                raise UserError(f"this slice has no kernel yet{_source_line(link)}")
            if dim in steps:
                steps[dim] *= step
        self.absorbed.update(chain)
        self._emit(chain[-1], "subsample", image, [self.value[image]], stride=(steps[2], steps[3]))

    def _pad(self, node: Node) -> None:
        image = node.args[0]
        arguments = _arguments(node)
        amounts = list(arguments["pad"]) + [0] * 8
        is_zero = arguments.get("mode", "constant") == "constant" and not arguments.get("value")
        if amounts[:4] != [0] * 4 or any(amounts[6:]) or not is_zero or min(amounts) < 0:
            raise UserError(f"this padding has no kernel yet{_source_line(node)}; only zero channels can be added")
        assert isinstance(image, Node)
        self._emit(node, "pad_channels", image, [self.value[image]], before=amounts[4], after=amounts[5])

    # ---- helpers ---------------------------------------------------------------------------------------------

    def _emit(
        self,
        node: Node,
        op: str,
        image: Node,
        inputs: list[str],
        *,
        weight: str | None = None,
        bias: str | None = None,
        normalization: Normalization | None = None,
        **attributes: object,
    ) -> None:
        shape = image.meta["val"].shape
        key = KernelKey.make(op, shape[2:], int(shape[0]), **attributes)
        width_in, width_out = self.graph.width_of(image.name), self.graph.width_of(node.name)
        self.value[node] = node.name
        self.kernels.append(Kernel(node.name, key, tuple(inputs), width_in, width_out, weight, bias, normalization))

    def _only_user(self, node: Node) -> Node | None:
        users = list(node.users)
        return users[0] if len(users) == 1 and users[0].op == "call_function" else None

    def _other_operand(self, add: Node, this: Node) -> Node | None:
        """What ``add`` adds to ``this``, if it is another activation of the same shape."""
        others = [a for a in add.args if isinstance(a, Node) and a is not this]
        if len(others) != 1 or _arguments(add)["alpha"] != 1:
            return None
        same = others[0].meta["val"].shape == add.meta["val"].shape == this.meta["val"].shape
        return others[0] if same else None

    def _normalization(self, node: Node) -> Normalization:
        arguments = _arguments(node)
        name = self._parameter
        mean, variance = name(arguments["running_mean"]), name(arguments["running_var"])
        if mean is None or variance is None:
            raise UserError(f"batch normalisation without running statistics has no kernel{_source_line(node)}")
        return Normalization(name(arguments["weight"]), name(arguments["bias"]), mean, variance, arguments["eps"])

    def _parameter(self, node: Node | None) -> str | None:
        return None if node is None else self.parameters[node.name]


_RULES: dict[str, Callable[[_Partition, Node], None]] = {
    "conv2d": _Partition._convolution,
    "linear": _Partition._linear,
    "max_pool2d": _Partition._pool,
    "avg_pool2d": _Partition._pool,
    "adaptive_avg_pool2d": _Partition._global_pool,
    "mean": _Partition._global_pool,
    "relu": _Partition._elementwise,
    "hardtanh": _Partition._elementwise,
    "relu6": _Partition._elementwise,
    "add": _Partition._elementwise,
    "flatten": _Partition._flatten,
    "view": _Partition._flatten,
    "reshape": _Partition._flatten,
    "slice": _Partition._slice,
    "pad": _Partition._pad,
    "constant_pad_nd": _Partition._pad,
}


def _operator(node: Node) -> str:
    """``aten.add_.Tensor`` -> ``add``; in-place forms compute the same value."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[-1].rstrip("_") if schema is not None else str(node.target)


def _arguments(node: Node) -> dict[str, Any]:
    """A node's arguments by name, with the schema's defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | node.kwargs
    return {a.name: given.get(a.name, a.default_value) for a in schema.arguments}


def _activation(node: Node) -> str | None:
    op = _operator(node)
    if op in ACTIVATIONS:
        return op
    if op == "hardtanh":
        arguments = _arguments(node)
        return "relu6" if (arguments["min_val"], arguments["max_val"]) == (0, 6) else None
    return None


def _writes_in_place(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.endswith("_")


def _is_identity(node: Node) -> bool:
    """Pooling to the size that the image already has, and slices of everything."""
    if _operator(node) not in ("adaptive_avg_pool2d", "slice"):
        return False
    source = node.args[0]
    return isinstance(source, Node) and source.meta["val"].shape == node.meta["val"].shape


def _two(value: Any) -> tuple[int, int]:
    pair = list(value) if isinstance(value, (list, tuple)) else [value]
    return (int(pair[0]), int(pair[-1]))


def _source_line(node: Node) -> str:
    trace = [line.strip() for line in str(node.meta.get("stack_trace", "")).splitlines() if line.strip()]
    return f" ({trace[-1]})" if trace else ""
