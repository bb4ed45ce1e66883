"""Naming a node of the graph so that its reader finds it: the call as the model's code writes it, and the line.

Only what `torch.export` recorded is used; a node without a stack trace is named by its operator alone.
"""

from __future__ import annotations

import linecache
import operator
import re
from collections.abc import Iterator
from pathlib import PurePath

import torch
import torch.nn.functional
from torch.fx import Node

from aap_hw.foreign import is_own_file, shortened

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_LAYERS = "torch.nn.modules."
# Operators that Python has a sign for, and what has no name in the code at all.
_SIGNS = {
    "add": "+", "sub": "-", "rsub": "-", "mul": "*", "div": "/", "floor_divide": "//", "remainder": "%", "pow": "**",
    "matmul": "@", "neg": "-", "bitwise_not": "~", "__and__": "&", "__or__": "|", "__xor__": "^",
    "gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!=",
}  # fmt: skip
_INDEXING = "indexing x[...]"
# What a user calls to get an operator of another name, for programs that do not tell.
_CALLED_BY = {
    "slice": _INDEXING, "select": _INDEXING, "index": _INDEXING, "getitem": _INDEXING, "_to_copy": "x.to",
    "lstm": "nn.LSTM", "gru": "nn.GRU", "rnn_tanh": "nn.RNN", "rnn_relu": "nn.RNN",
    "im2col": "F.unfold", "col2im": "F.fold", "grid_sampler": "F.grid_sample", "affine_grid_generator": "F.affine_grid",
}  # fmt: skip


def op_name(node: Node) -> str:
    """What a node calls, as the model's code writes it: ``"nn.LSTM 'encoder.rnn'"``, ``"F.interpolate"``, ``"x.flip"``.

    Examples
    --------
    ``x[:, -1]`` is ``"indexing x[...]"``, and ``x + y`` is ``"'+'"``.
    """
    if layer := layer_of(node):
        return layer
    name, code = _operator(node), code_line(node) or ""
    kind, _, function = str(node.meta.get("torch_fn", ("", ""))[1]).partition(".")
    if function in ("__getitem__", "__setitem__"):
        return _INDEXING
    if name in _SIGNS and f".{name}(" not in (code or f".{name}("):
        return f"'{_SIGNS[name]}'"
    for prefix in ("torch.nn.functional.", "nn.functional.", "torch.", "F.", "."):
        if function and f"{prefix}{function}(" in code:
            return f"x.{function}" if prefix == "." else f"{prefix}{function}"
    match kind:
        case "method_descriptor" | "method":
            return f"x.{function}"
        case "function" | "builtin_function_or_method" if function:
            return _qualified(function)
    return _of_schema(node, name)


def source_line(node: Node) -> str | None:
    """``"resnet.py:96"``: the innermost line that is not PyTorch's own, or None if it was not recorded."""
    for path, line in own_frames(node):
        return f"{PurePath(path).name}:{line}"
    return None


def code_line(node: Node) -> str | None:
    """The code in that line, or None if it cannot be read."""
    for path, line in own_frames(node):
        return linecache.getline(path, line).strip() or None
    return None


def own_frames(node: Node) -> Iterator[tuple[str, int]]:
    """File and line of the calls that led to a node, innermost first, without those in PyTorch."""
    for path, line in reversed(_FRAME.findall(node.meta.get("stack_trace") or "")):
        if is_own_file(path):
            yield path, int(line)


def explain(sentence: str, node: Node) -> str:
    """`sentence`, followed by where in the network it is about."""
    line = source_line(node)
    return f"{sentence} ({op_name(node)}{f', {line}' if line else ''})"


def quoted(node: Node) -> str:
    """``" (net.py:14: return self.head(x))"``, or ``""`` if the line was not recorded."""
    line, code = source_line(node), code_line(node)
    return f" ({line}{f': {shortened(code)}' if code else ''})" if line else ""


def _stack(node: Node) -> list[tuple[str, object]]:
    return list((node.meta.get("nn_module_stack") or {}).values())


def path_of(node: Node) -> str:
    """Of the innermost module in whose code a node is."""
    return next((path for path, _ in reversed(_stack(node))), "")


def module_of(node: Node) -> str:
    """Path of the innermost module that is not one of PyTorch's."""
    return next((path for path, kind in reversed(_stack(node)) if "torch.nn.modules." not in str(kind)), "")


def is_inside(node: Node, other: Node) -> bool:
    """Whether a node is in the code of the module whose code another is in, or of one that it calls.

    A layer of PyTorch's that is made of others, as attention is, is a module of its own.
    """
    module = path_of(other) if layer_of(other).startswith("nn.MultiheadAttention") else module_of(other)
    return not module or f"{path_of(node)}.".startswith(f"{module}.")


def layer_of(node: Node) -> str:
    """The layer of PyTorch's that a node belongs to, with its place in the model."""
    path, kind = next(reversed(dict(node.meta.get("nn_module_stack") or {}).values()), ("", ""))
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    if not kind.startswith(_LAYERS) or kind.startswith(f"{_LAYERS}container."):
        return ""
    return f"nn.{kind.rpartition('.')[2]}" + (f" '{path}'" if path else "")


def _operator(node: Node) -> str:
    """Name of a node's operator without namespace, overload and the underscore of in-place variants."""
    if node.target is operator.getitem:
        return "getitem"
    schema = getattr(node.target, "_schema", None)
    name = schema.name.partition("::")[2] if schema is not None else str(getattr(node.target, "__name__", node.target))
    return name if name.startswith("__") else name.removesuffix("_")


def _qualified(function: str) -> str:
    """A function of PyTorch's with the module that it is mostly called from."""
    for prefix, module in (("F.", torch.nn.functional), ("torch.", torch)):
        if hasattr(module, function):
            return f"{prefix}{function}"
    for family in ("linalg", "fft", "special"):
        if function.startswith(f"{family}_"):
            return f"torch.{family}.{function.removeprefix(f'{family}_')}"
    return function


def _of_schema(node: Node, name: str) -> str:
    schema = getattr(node.target, "_schema", None)
    namespace = "aten" if schema is None else schema.name.partition("::")[0]
    if namespace != "aten":
        return f"torchvision.ops.{name}" if namespace == "torchvision" else f"torch.ops.{namespace}.{name}"
    if name.startswith(("upsample_", "_upsample_")):
        return "F.interpolate"
    return _CALLED_BY.get(name) or _qualified(name)
