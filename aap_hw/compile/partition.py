"""Partition: an exported network becomes a list of kernels, each with what is fused into it.

Convolutions and linear layers take their batch normalisation, bias, residual addition and activation with them.
Channel counts stay functions of the group widths, so that one partition serves every width plan.
Nothing is compiled here, and TVM is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from aap_hw.compile.kernel import KernelKey
from aap_hw.compile.memory import Memory, is_same_view, writes_in_place
from aap_hw.compile.network import Kernel, Network, Normalization, with_layout_changes
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.call import Call
from aap_hw.graph.source import source_line

# Operators that change nothing at inference.
TRANSPARENT = {"dropout", "feature_dropout", "contiguous", "clone", "detach", "alias", "to", "_to_copy"}
ACTIVATIONS = ("relu", "relu6")


def partition(graph: ChannelGraph) -> Network:
    """Split a traced network into kernels.

    Raises
    ------
    UserError : an operator has no kernel; the sentence names it and its source line.
    """
    return with_layout_changes(_Partition(graph).run())


class _Partition:
    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        signature = graph.program.graph_signature
        self.parameters: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.nodes = list(graph.program.graph.nodes)
        self.memory = Memory(self.nodes)
        self.image = ""
        self.value: dict[Node, str] = {}
        self.absorbed: set[Node] = set()
        self.waiting: dict[Node, Callable[[], None]] = {}  # kernels that wait for the residual of an addition
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
        pixels = image.meta["val"]
        if pixels.dim() not in (2, 4) or pixels.dtype != torch.float32:
            raise UserError(
                f"the network's input is {pixels.dim()}-D {pixels.dtype}, and only float32 images (N, C, H, W) and "
                "vectors (N, C) can be compiled so far; convert the model with .float() or reshape its input"
            )
        self.image = self.value[image] = image.name
        for node in self.nodes:
            if node.op == "call_function":
                self._visit(node)
                if writes_in_place(node) and node in self.value:
                    self._overwrite(node)
        if not self.kernels:
            raise UserError("the network computes nothing that takes time: there is no kernel in it")
        return Network(
            tuple(self.kernels),
            image.name,
            tuple(image.meta["val"].shape),
            self._value(output, output),
            tuple(output.meta["val"].shape),
            {group.name: group.width for group in self.graph.groups},
        )

    def _visit(self, node: Node) -> None:
        if node in self.waiting:
            self.waiting.pop(node)()
        if node in self.absorbed or _is_assertion(node):
            return
        op = Call(node).name
        if (op in TRANSPARENT and _keeps_type(node)) or _is_identity(node):
            self.value[node] = self._value(Call(node).first, node)
            return
        rule = _RULES.get(op)
        if rule is None:
            raise UserError(
                f"the operator {node.target} has no kernel yet{_source_line(node)}; "
                "replace it in the model or leave that part out"
            )
        rule(self, node)

    def _overwrite(self, node: Node) -> None:
        """Whoever reads the memory that an in-place operator wrote to sees its result from here on."""
        for other in self.memory.stale_after(node):
            if not is_same_view(other, node):
                raise UserError(
                    f"{node.target} writes into a tensor of which another view is read later"
                    f"{_source_line(node)}; use the form that does not work in place"
                )
            self.value[other] = self.value[node]

    # ---- rules -----------------------------------------------------------------------------------------------

    def _convolution(self, node: Node) -> None:
        arguments = Call(node)
        image, weight = arguments["input"], arguments["weight"]
        if image.meta["val"].dim() != 4:
            raise UserError(f"a convolution of one image without a batch axis has no kernel{_source_line(node)}")
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
        self._weighted(
            node,
            image,
            op,
            kernel=tuple(weight.meta["val"].shape[2:]),
            stride=_two(arguments["stride"]),
            padding=_two(padding),
            dilation=_two(arguments["dilation"]),
            layout="nchw" if self._value(image, node) == self.image else "",
        )

    def _linear(self, node: Node) -> None:
        image = Call(node)["input"]
        if image.meta["val"].dim() != 2:
            raise UserError(
                f"a linear layer on a {image.meta['val'].dim()}-D tensor has no kernel yet{_source_line(node)}"
            )
        self._weighted(node, image, "linear")

    def _weighted(self, node: Node, image: Node, op: str, **attributes: object) -> None:
        """A kernel with weights, and the element-wise chain behind it that only it feeds."""
        arguments = Call(node)
        steps, normalization, last = ["bias"], None, node
        addition: tuple[Node, Node] | None = None  # the operator and what it adds
        while (follower := self._only_user(last)) is not None and follower not in self.absorbed:
            op_name = Call(follower).name
            if op_name == "batch_norm" and last is node:
                normalization = self._normalization(follower)
            elif op_name == "add" and addition is None and (other := self._residual(follower, last)):
                addition = follower, other
                steps.append("add")
            elif (activation := _activation(follower)) is not None:
                steps.append(activation)
            else:
                break
            self.absorbed.add(follower)
            last = follower
            if steps[-1] in ACTIVATIONS:
                break
        inputs = [self._value(image, node)]

        def emit() -> None:
            if addition is not None:
                inputs.append(self._value(addition[1], addition[0]))
            self._emit(
                last,
                op,
                image,
                inputs,
                weight=self._parameter(arguments["weight"], node),
                bias=self._parameter(arguments["bias"], node),
                normalization=normalization,
                epilogue=tuple(steps),
                **attributes,
            )

        # What is read is what is there now, and for a residual what is there when it is added.
        if addition is None:
            emit()
        else:
            self.waiting[addition[0]] = emit

    def _pool(self, node: Node) -> None:
        arguments = Call(node)
        if arguments.get("ceil_mode") or _two(arguments.get("dilation", 1)) != (1, 1):
            raise UserError(f"pooling with ceil_mode or dilation has no kernel yet{_source_line(node)}")
        padding = _two(arguments["padding"])
        if (arguments.get("count_include_pad") is False and any(padding)) or arguments.get("divisor_override"):
            raise UserError(f"average pooling with its own divisor has no kernel yet{_source_line(node)}")
        kernel = _two(arguments["kernel_size"])
        image = arguments["self"]
        if image.meta["val"].dim() != 4:
            raise UserError(f"pooling of one image without a batch axis has no kernel{_source_line(node)}")
        inputs, stride = [self._value(image, node)], _two(arguments["stride"] or kernel)
        self._emit(node, arguments.name, image, inputs, kernel=kernel, stride=stride, padding=padding)

    def _global_pool(self, node: Node) -> None:
        arguments = Call(node)
        image = arguments["self"]
        over_image = arguments.get("output_size") in ([1, 1], 1) or sorted(
            d % 4 for d in arguments.get("dim") or []
        ) == [2, 3]
        if image.meta["val"].dim() != 4 or not over_image:
            raise UserError(f"{node.target} has a kernel only over whole images so far{_source_line(node)}")
        self._emit(node, "global_avg_pool2d", image, [self._value(image, node)])

    def _elementwise(self, node: Node) -> None:
        activation = _activation(node)
        operands = [a for a in node.args if isinstance(a, Node)]
        shapes = {tuple(a.meta["val"].shape) for a in operands}
        is_sum = Call(node).name == "add" and len(operands) == 2 and Call(node)["alpha"] == 1
        if (activation is None and not is_sum) or len(shapes) != 1:
            raise UserError(f"{node.target} with these operands has no kernel yet{_source_line(node)}")
        inputs = [self._value(a, node) for a in operands]
        self._emit(node, activation or "add", operands[0], inputs)

    def _flatten(self, node: Node) -> None:
        image = node.args[0]
        assert isinstance(image, Node)
        before, after = image.meta["val"].shape, node.meta["val"].shape
        if len(after) != 2 or before[0] != after[0]:
            raise UserError(f"reshaping {tuple(before)} to {tuple(after)} has no kernel yet{_source_line(node)}")
        if all(extent == 1 for extent in before[2:]):
            self.value[node] = self._value(image, node)
        else:
            self._emit(node, "flatten", image, [self._value(image, node)])

    def _slice(self, node: Node) -> None:
        image = node.args[0]
        assert isinstance(image, Node)
        chain = [node]
        while (follower := self._only_user(chain[-1])) is not None and Call(follower).name == "slice":
            chain.append(follower)
        steps = {2: 1, 3: 1}
        for link in chain:
            arguments = Call(link)
            shape = arguments["self"].meta["val"].shape
            dim, start, step = arguments["dim"] % len(shape), arguments["start"] or 0, arguments["step"]
            full = arguments["end"] is None or arguments["end"] >= shape[dim]
            if len(shape) != 4 or start != 0 or not full or (dim not in steps and step != 1):
                raise UserError(f"this slice has no kernel yet{_source_line(link)}")
            if dim in steps:
                steps[dim] *= step
        self.absorbed.update(chain)
        self._emit(chain[-1], "subsample", image, [self._value(image, node)], stride=(steps[2], steps[3]))

    def _pad(self, node: Node) -> None:
        image = node.args[0]
        arguments = Call(node)
        amounts = list(arguments["pad"]) + [0] * 8
        is_zero = arguments.get("mode", "constant") == "constant" and not arguments.get("value")
        if amounts[:4] != [0] * 4 or any(amounts[6:]) or not is_zero or min(amounts) < 0:
            raise UserError(f"this padding has no kernel yet{_source_line(node)}; only zero channels can be added")
        assert isinstance(image, Node)
        self._emit(node, "pad_channels", image, [self._value(image, node)], before=amounts[4], after=amounts[5])

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

    def _residual(self, add: Node, this: Node) -> Node | None:
        """What ``add`` adds to ``this``, if it can be fused: another activation of the same shape."""
        others = [a for a in add.args if isinstance(a, Node) and a is not this]
        if len(others) != 1 or Call(add)["alpha"] != 1 or self._is_parameter(others[0]):
            return None
        if writes_in_place(add) and Call(add).first is not this and self.memory.stale_after(add):
            return None
        same = others[0].meta["val"].shape == add.meta["val"].shape == this.meta["val"].shape
        return others[0] if same else None

    def _normalization(self, node: Node) -> Normalization:
        arguments = Call(node)
        mean = self._parameter(arguments["running_mean"], node)
        variance = self._parameter(arguments["running_var"], node)
        if mean is None or variance is None or arguments["training"]:
            raise UserError(f"batch normalisation without running statistics has no kernel{_source_line(node)}")
        scale, shift = self._parameter(arguments["weight"], node), self._parameter(arguments["bias"], node)
        return Normalization(scale, shift, mean, variance, arguments["eps"])

    def _value(self, node: Node, reader: Node) -> str:
        """Name of what a node holds at this point of the program."""
        if node not in self.value:
            raise UserError(
                f"{reader.target} on a parameter or constant of the model has no kernel yet{_source_line(reader)}"
            )
        return self.value[node]

    def _is_parameter(self, node: Node) -> bool:
        return node.op != "call_function" and node.name != self.image

    def _parameter(self, node: Node | None, reader: Node) -> str | None:
        if node is None:
            return None
        if node.name not in self.parameters:
            raise UserError(
                f"{reader.target} with weights that are computed on the way has no kernel yet{_source_line(reader)}"
            )
        return self.parameters[node.name]


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


def _activation(node: Node) -> str | None:
    call = Call(node)
    if call.name in ACTIVATIONS:
        return call.name
    is_relu6 = call.name == "hardtanh" and (call["min_val"], call["max_val"]) == (0, 6)
    return "relu6" if is_relu6 else None


def _is_assertion(node: Node) -> bool:
    return Call(node).name.startswith("_assert") and not node.users


def _keeps_type(node: Node) -> bool:
    return bool(node.meta["val"].dtype == Call(node).first.meta["val"].dtype)


def _is_identity(node: Node) -> bool:
    """Pooling to the size that the image already has, and slices of everything."""
    call = Call(node)
    is_candidate = call.name in ("adaptive_avg_pool2d", "slice")
    return is_candidate and bool(call.first.meta["val"].shape == node.meta["val"].shape)


def _two(value: Any) -> tuple[int, int]:
    pair = list(value) if isinstance(value, (list, tuple)) else [value]
    return (int(pair[0]), int(pair[-1]))


def _source_line(node: Node) -> str:
    line = source_line(node)
    return f" ({line})" if line else ""
