"""A quantised program, taken apart: the float program without its roundings, and the scales of its values.

Programs are those of torchao's PT2E flow, whichever quantizer made them. A value goes through a ``quantize_per_tensor``
and then a ``dequantize_per_tensor`` operator. So does a weight, or it is stored as int8 and only dequantised; it may
have a scale for each channel.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from aap_hw.compile.front.quantisation import LARGEST_WEIGHT, Quantisation
from aap_hw.compile.keys.precision import Scale
from aap_hw.errors import UserError
from aap_hw.graph.program.call import Call
from aap_hw.graph.program.weights import is_product_with
from aap_hw.quantize.quantizer import name_of

# What is subtracted from the numbers of a type, to store them as uint8, and the numbers that must be in use.
_AS_UINT8 = {torch.uint8: (0, (0, 255)), torch.int8: (-128, (-128, 127))}
# What a value is copied by, as PyTorch names the results; these must stay as they are when it is exported again.
_COPY = "leaky_relu"
LARGEST_SCALE = 2.0**40
"""Of a value or weight; the smallest is as far below 1."""
# The smallest number of weights that are symmetric about 0, or of those that use all numbers there are.
_LOWEST_WEIGHTS = (-LARGEST_WEIGHT, -LARGEST_WEIGHT - 1)


def read_quantised(module: GraphModule) -> tuple[GraphModule, Quantisation]:
    """The float network of a quantised one, and the scales of its values and weights.

    Parameters
    ----------
    module
        What ``convert_pt2e`` made, as it is or exported and loaded again. It stays as it is.

    Raises
    ------
    UserError
        If a value is stored in a way that no kernel knows.
    """
    reading = _Reading(GraphModule(module, copy.deepcopy(module.graph)))
    nodes = reading.floating.graph.nodes
    for node in list(nodes):
        if operator_of(node).startswith("dequantize"):
            reading.take_out(node)
    reading.floating.graph.eliminate_dead_code()
    if left := next((node for node in nodes if operator_of(node)), None):
        raise UserError(f"the quantised network has {left.name}, which no int8 kernel knows")
    # Made anew, so that what only roundings held is gone.
    floating = GraphModule(reading.floating, reading.floating.graph)
    return floating, Quantisation(reading.values, reading.weights, reading.lowest, reading.axes)


def operator_of(node: Node) -> str:
    """The name of an operator that rounds or comes back from rounding; empty for others."""
    schema = getattr(node.target, "_schema", None)
    namespace, _, name = schema.name.partition("::") if schema is not None else ("", "", "")
    return name if namespace in ("quantized_decomposed", "torchao") else ""


class _Reading:
    """A program of which some roundings were taken out, and their scales."""

    def __init__(self, floating: GraphModule) -> None:
        self.floating = floating
        self.values: dict[str, Scale] = {}
        self.weights: dict[str, np.ndarray] = {}
        self.lowest: dict[str, int] = {}
        self.axes: dict[str, int] = {}
        self._copies: dict[Node, Node] = {}

    def take_out(self, back: Node) -> None:
        """Let the readers of a rounded value read the value itself."""
        if operator_of(back) not in ("dequantize_per_tensor", "dequantize_per_channel"):
            raise UserError(f"the quantised network has {back.name}, which no int8 kernel knows")
        stored = Call(back).first
        is_rounded = operator_of(stored).startswith("quantize_per_")
        value = Call(stored).first if is_rounded else stored
        if is_rounded and self._rounding(stored) != self._rounding(back):
            raise UserError(f"the quantised network reads {stored.name} with other scales than it was made with")
        if not is_constant(value):
            self._take_value(back, value)
        elif Call(back)["dtype"] == torch.int8:
            self._take_weight(back, value, is_rounded)
        else:
            self._hold(back, self._tensor(back))

    def _take_value(self, back: Node, value: Node) -> None:
        scale, zero_point, _, lowest, highest, dtype = self._rounding(back)
        shift, numbers = _AS_UINT8.get(dtype, (0, ()))
        if (lowest, highest) != numbers or operator_of(back) != "dequantize_per_tensor":
            raise UserError(f"the value {value.name} is not quantised to all numbers of 8 bits with one scale")
        found = Scale(scale[0], zero_point[0] - shift)
        _require_scales(value.name, scale)
        if not 0 <= found.zero_point <= 255:
            raise UserError(f"the value {value.name} has a zero point that is no number of 8 bits: {zero_point[0]}")
        is_read = any(not operator_of(user).startswith("quantize") for user in value.users)
        if value in self._copies or (name_of(value) not in self.values and is_read):
            value = self._copied(back, value)
        name = name_of(value)
        if self.values.setdefault(name, found) != found:
            raise UserError(f"the value {name} is quantised in two ways, and a kernel makes only one")
        back.replace_all_uses_with(value)

    def _copied(self, back: Node, value: Node) -> Node:
        """A copy of a value that others read as it is: only the copy is stored in bytes.

        It is one by an operator that leaves all numbers as they are, and that no compiler leaves out.
        """
        nodes = self.floating.graph.nodes
        if value not in self._copies:
            if any(node.name.startswith(_COPY) and node not in self._copies.values() for node in nodes):
                raise UserError(
                    f"the value {name_of(value)} is read both as it is and quantised, which no int8 kernel makes in a "
                    f"network that has {_COPY}, too"
                )
            with self.floating.graph.inserting_before(back):
                copy_of = torch.ops.aten.leaky_relu.default
                copied = self.floating.graph.create_node("call_function", copy_of, (value, 1.0), name=_COPY)
            copied.meta.update(value.meta)
            self._copies[value] = copied
        return self._copies[value]

    def _take_weight(self, back: Node, value: Node, is_rounded: bool) -> None:
        scales, zero_points, axis, lowest, highest, _ = self._rounding(back)
        numbers = self._tensor(Call(back).first)
        made_along = _axis_made(back) if numbers.dim() > 1 else 0  # a vector has one axis
        is_by_channel = len(scales) == 1 or axis == made_along
        if made_along and not is_by_channel:
            self._hold(back, self._tensor(back))  # as it is: float32 kernels read it
            return
        if any(zero_points) or not is_by_channel or highest != LARGEST_WEIGHT or lowest not in _LOWEST_WEIGHTS:
            raise UserError(
                f"the weights {name_of(value)} are not quantised symmetrically to -127 to 127 by output channel"
            )
        _require_scales(name_of(value), scales)
        name = name_of(value)
        # What else reads them reads them as they are, which a copy keeps apart.
        if is_rounded and (name in self.weights or all(map(operator_of, value.users))):
            back.replace_all_uses_with(value)
        else:
            name = self._hold(back, self._tensor(back))
        found = np.array(scales, np.float32) * np.ones(numbers.shape[made_along], np.float32)
        if not np.array_equal(self.weights.setdefault(name, found), found):
            raise UserError(f"the weights {name} are quantised in two ways, and a kernel has one")
        if lowest != -LARGEST_WEIGHT:
            self.lowest[name] = lowest
        if made_along:
            self.axes[name] = made_along

    def _hold(self, back: Node, tensor: Tensor) -> str:
        """Put a tensor of constants in place of an operator that makes it; returns its name."""
        name = f"{name_of(Call(back).first).replace('.', '_').lstrip('_')}_{back.name}"
        self.floating.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        with self.floating.graph.inserting_before(back):
            held = self.floating.graph.get_attr(name)
        held.meta["val"] = tensor
        back.replace_all_uses_with(held)
        return name

    def _rounding(self, node: Node) -> tuple[Any, ...]:
        """Scales, zero points, axis, smallest and largest number, and type of an operator."""
        call = Call(node)
        scales, zero_points = (self._numbers(call.get(f"{name}s", call.get(name))) for name in ("scale", "zero_point"))
        return scales, zero_points, call.get("axis", 0), call["quant_min"], call["quant_max"], call["dtype"]

    def _numbers(self, value: Any) -> tuple[Any, ...]:
        if isinstance(value, Node):
            return tuple(self._tensor(value).reshape(-1).tolist())
        return (value,)

    def _tensor(self, node: Node) -> Tensor:
        return value_of(node, self.floating)


def _axis_made(weight: Node) -> int:
    """The axis of a weight's output channels, which some operators have behind that of their inputs."""
    users = [user for user in weight.users if user.op == "call_function"]
    return int(bool(users) and all(_reads_first(user, weight) for user in users))


def _reads_first(user: Node, weight: Node) -> bool:
    """Whether an operator is a dense transposed convolution, or multiplies by a matrix."""
    # A depthwise one makes each channel of one of its inputs, and has the two on the first axis.
    is_transposed = Call(user).name.startswith("conv_transpose") and Call(user)["groups"] == 1
    return is_transposed or is_product_with(user, weight)


def _require_scales(name: str, scales: Iterable[float]) -> None:
    """Refuse scales that make no number of what is stored, or whose products and quotients float32 does not hold."""
    if not all(1 / LARGEST_SCALE <= scale <= LARGEST_SCALE for scale in scales):
        raise UserError(
            f"{name} is quantised with a scale that is no number from {1 / LARGEST_SCALE:.1g} to {LARGEST_SCALE:.1g}; "
            "quantise it by values that the network computes"
        )


def value_of(node: Node, module: GraphModule) -> Tensor:
    """The value of a node of a program that depends on constants alone."""
    if node.op == "get_attr":
        path, _, leaf = str(node.target).rpartition(".")
        held = getattr(module.get_submodule(path), leaf)
        assert isinstance(held, Tensor)
        return held.detach()
    target: Any = node.target
    arguments: Any = map_arg(node.args, lambda each: value_of(each, module))
    named: Any = map_arg(node.kwargs, lambda each: value_of(each, module))
    with torch.no_grad():
        made: Tensor = target(*arguments, **named)
    return made


def is_constant(node: Node) -> bool:
    """Whether the value of a node depends on weights and numbers alone."""
    if node.op == "get_attr":
        return True
    return node.op == "call_function" and bool(node.all_input_nodes) and all(map(is_constant, node.all_input_nodes))
