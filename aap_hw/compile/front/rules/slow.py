"""Operators that we have no schedule for: each becomes a kernel on the slow path, whose key holds the call itself.

A key has two widths. If a call depends on more, or on a width in a nonlinear way, the groups in question are fixed.
Then the operator may have a schedule after all; else its kernel has one size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from aap_hw.compile.families.slow import CONSTANT, IMAGE, LIBRARIES, PLAIN, WEIGHT
from aap_hw.compile.front.lengths import TooManyWidths, combination, length_text
from aap_hw.compile.front.network import Kernel
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import WidthExpr
from aap_hw.graph.program.call import Call, added_by_padding, is_tensor, shape_of
from aap_hw.graph.program.source import op_name, quoted

if TYPE_CHECKING:
    from aap_hw.compile.front.making import Partition

RESHAPES = {"view", "reshape", "_unsafe_view", "unflatten", "flatten", "view_as", "reshape_as"}
EXPANSIONS = {"expand", "expand_as", "broadcast_to"}
SPLITS = {"chunk", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "tensor_split"}
CONVERSIONS = {"to", "_to_copy", "type_as"}
# Arguments that only say where a tensor is stored and by which library it is made.
IGNORED = {"device", "layout", "pin_memory", "memory_format", "non_blocking", "copy", "cudnn_enabled", "cudnn_enable"}
# Types whose values float32 can hold between kernels, whole numbers up to 2^24.
TYPES = {torch.float32, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def slow_kernel(partition: Partition, node: Node) -> None:
    """Add the kernel of one operator, or of one of its results.

    Raises
    ------
    TooManyWidths : it depends on more widths than a key has; nothing was added.
    UserError : it computes in another precision, or has arguments that cannot be written as text.
    """
    _Writer(partition, node).add()


class _Writer:
    """The text of one call, and the kernel that it makes."""

    def __init__(self, partition: Partition, node: Node) -> None:
        self._partition, self._node, self._operands = partition, node, list[Node]()
        self._source, self._piece = node, None
        if Call(node).name == "getitem":
            self._source, self._piece = Call(node)["self"], Call(node)["index"]
        sources = [n for n in self._source.all_input_nodes if not partition.is_parameter(n)]
        lies_as_image = partition.placement.is_image
        is_image = len(shape_of(node)) > 2 and all(lies_as_image(n) for n in sources if len(shape_of(n)) > 2)
        self._lies_as = IMAGE if is_image and any(map(lies_as_image, sources)) else PLAIN
        varying = [length for length in self._lengths(node) if length.terms]
        if len(varying) > 1:
            raise TooManyWidths(*varying)
        self._made = varying[0] if varying else WidthExpr(1)
        read = [length for n in self._source.all_input_nodes if is_tensor(n) for length in self._lengths(n)]
        self._read = next((w for w in read if w.terms and combination(w, [self._made]) is None), self._made)

    def add(self) -> None:
        """Add the kernel to the partition."""
        partition, node, shape = self._partition, self._node, shape_of(self._node)
        read = partition.placement.value_as_it_lies
        op, arguments = self._call()
        has_piece = self._piece is not None and op.split(".")[1] == Call(self._source).name
        output = self._tensor(node, self._lies_as)
        text = f"({','.join(arguments)}){f'[{self._piece}]' if has_piece else ''}->{output}"
        kernel = Kernel(
            node.name,
            KernelKey.make(op, (), shape[0] if shape else 1, call=text),
            tuple(read(n, node) for n in self._operands if not partition.is_parameter(n)),
            (self._read, self._made),
            constants=tuple(partition.constant(n) for n in self._operands if partition.is_parameter(n)),
            learned=tuple(partition.constant(n) for n in self._operands if partition.is_learned(n)),
            source=op_name(self._source) + quoted(self._source),
        )
        partition.add(node, kernel, is_image=self._lies_as == IMAGE)

    def _call(self) -> tuple[str, list[str]]:
        """The operator and its arguments, with letters for lengths that depend on the widths."""
        call, node = Call(self._source), self._node
        made = "[" + ",".join(map(self._text, self._lengths(node))) + "]"
        if call.name in RESHAPES and call.get("dtype") is None:
            return "aten.reshape.default", [self._argument(call.first), made]
        if call.name in EXPANSIONS:
            return "aten.expand.default", [self._argument(call.first), made]
        if call.name in CONVERSIONS:
            return "aten.clone.default", [self._argument(call.first)]
        if call.name in ("max", "min") and self._piece == 0 and call.get("dim") is not None:
            return f"aten.a{call.name}.default", [self._argument(call.first), f"[{call['dim']}]", str(call["keepdim"])]
        if call.name in SPLITS:
            dim = call["dim"] % len(shape_of(node))
            start = sum(value.shape[dim] for value in self._source.meta["val"][: self._piece])
            return "aten.narrow.default", self._place(call.first, dim, start)
        if call.name == "slice" and call["step"] == 1:
            dim = call["dim"] % len(shape_of(node))
            size = shape_of(call.first)[dim]
            return "aten.narrow.default", self._place(call.first, dim, range(size)[slice(call["start"], None)].start)
        schema: Any = getattr(self._source.target, "_schema", None)
        library, _, name = getattr(schema, "name", "").partition("::")
        if library not in LIBRARIES:
            problem, advice = f"{op_name(self._source)} has no kernel here", "leave that part out of the model"
            raise self._partition.refused(problem, self._source, advice)
        arguments = []
        for argument in schema.arguments:
            value = call[argument.name]
            if argument.name == "dtype" and value == node.meta["val"].dtype and not self._truncates(value):
                value = argument.default_value  # which the result is converted to
            if argument.name in IGNORED and argument.has_default_value():
                continue
            if argument.name == "size" and isinstance(value, list | tuple):
                text = made
            elif argument.name == "groups" and value == shape_of(call["input"])[1]:
                text = self._text(self._lengths(call["input"])[1])
            elif argument.name == "normalized_shape":
                text = f"[{','.join(map(self._text, self._lengths(call['input'])[-len(value) :]))}]"
            elif argument.name == "pad":
                text = f"[{','.join(self._padding(call))}]"
            elif argument.name == "num_groups":
                text = self._text(self._lengths(call["input"])[1], divisor=shape_of(call["input"])[1] // value)
            elif not argument.kwarg_only:
                text = self._argument(value)
            elif value == argument.default_value:
                continue
            else:
                text = f"{argument.name}={self._argument(value)}"
            arguments.append(text)
        return f"{library}.{call.name or name}.{schema.overload_name or 'default'}", arguments

    def _truncates(self, dtype: torch.dtype) -> bool:
        """Whether the operator makes whole numbers of what it reads before it computes."""
        read = [each.meta["val"].dtype for each in self._source.all_input_nodes if is_tensor(each)]
        return not dtype.is_floating_point and any(each.is_floating_point for each in read)

    def _place(self, image: Node, dim: int, start: int) -> list[str]:
        """Arguments of a piece of an image along an axis."""
        before = self._partition.graph.width_of(image.name, dim, slice(start))
        return [
            self._argument(image),
            str(dim),
            self._text(before),
            self._text(self._lengths(self._node)[dim]),
        ]

    def _padding(self, call: Call) -> Iterator[str]:
        """How much is padded before and behind each axis, the last one first; channels that are added may be cut."""
        shape, sides = shape_of(self._source), added_by_padding(call)
        for dim in range(len(shape) - 1, len(shape) - 1 - len(call["pad"]) // 2, -1):
            before, behind = sides[dim]
            for amount, part in ((before, slice(before)), (behind, slice(shape[dim] - behind, None))):
                added = (
                    WidthExpr(amount) if amount <= 0 else self._partition.graph.width_of(self._source.name, dim, part)
                )
                yield self._text(added)

    def _argument(self, value: Any) -> str:
        match value:
            case Node():
                self._operands.append(value)
                return self._tensor(value, self._kind(value))
            case list() | tuple():
                return f"[{','.join(map(self._argument, value))}]"
            case None | bool() | int():
                return repr(value)
            case float() if value == value:
                return repr(value).replace("inf", "1e999")
            case str():
                return repr(value).replace(" ", r"\x20")
        problem = f"{op_name(self._source)} with these operands has no kernel yet"
        raise self._partition.refused(problem, self._source)

    def _tensor(self, node: Node, kind: str) -> str:
        dtype = node.meta["val"].dtype
        name = str(dtype).removeprefix("torch.")
        if dtype not in TYPES:
            problem = f"{op_name(self._source)} computes in {name}, and only float32 can be compiled so far"
            raise self._partition.refused(problem, self._source)
        suffix = "" if dtype == torch.float32 else f".{name}"
        return f"{kind}{suffix}[{','.join(map(self._text, self._lengths(node))) or '()'}]"

    def _kind(self, node: Node) -> str:
        if self._partition.is_parameter(node):
            return WEIGHT if self._partition.is_learned(node) else CONSTANT
        return IMAGE if self._partition.placement.is_image(node) else PLAIN

    def _lengths(self, node: Node) -> list[WidthExpr]:
        return self._partition.lengths_of(node)

    def _text(self, length: WidthExpr, divisor: int = 1) -> str:
        return length_text(length, self._read, self._made, divisor)
