"""Naming a node of the graph so that its reader finds it: the op, the node, the line of the model's code.

Only what `torch.export` recorded is used; a node without a stack trace is named by op and node alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath

from torch.fx import Node

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def op_name(node: Node) -> str:
    """The op of a node as PyTorch prints it, for example ``"aten.conv2d.default"``."""
    target = node.target
    if isinstance(target, str):
        return target
    return str(target) if hasattr(target, "_schema") else str(getattr(target, "__name__", target))


def source_line(node: Node) -> str | None:
    """``"resnet.py:96"``: the innermost line that is not PyTorch's own, or None if it was not recorded."""
    for path, line in own_frames(node):
        return f"{PurePath(path).name}:{line}"
    return None


def own_frames(node: Node) -> Iterator[tuple[str, int]]:
    """File and line of the calls that led to a node, innermost first, without those in PyTorch."""
    for path, line in reversed(_FRAME.findall(node.meta.get("stack_trace") or "")):
        if "torch" not in PurePath(path).parts:
            yield path, int(line)


def explain(sentence: str, node: Node) -> str:
    """`sentence`, followed by where in the network it is about."""
    line = source_line(node)
    return f"{sentence} ({op_name(node)}, node '{node.name}'{f', {line}' if line else ''})"
