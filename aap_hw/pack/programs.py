"""A network as a list of calls of PyTorch's operators, for a machine that has PyTorch and not this package.

Plain values only, as ``aap_hw.pack.beside`` reads them: names of operators, shapes of weights, numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from aap_hw.graph.program.exporting import export
from aap_hw.graph.program.inputs import Tensors

_PLAIN = (int, float, bool, type(None))


def program_of(module: nn.Module, inputs: Tensors, type_: str) -> dict[str, Any] | None:
    """The program of a network in eval mode, or None if it calls what has no such form."""
    program = export(module, inputs)
    of_user = set(program.graph_signature.user_inputs)
    nodes: list[dict[str, Any]] = []
    outputs: list[str] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            shape = {} if node.name in of_user else {"shape": list(node.meta["val"].shape)}
            if node.users or node.name in of_user:
                nodes.append({"name": node.name, **shape})
        elif node.op == "output":
            outputs = [each.name for each in node.args[0]]
        elif not isinstance(node.target, torch._ops.OpOverload) or node.kwargs:
            return None
        else:
            arguments = _plain(node.args)
            if arguments is None:
                return None
            nodes.append({"name": node.name, "call": str(node.target), "arguments": arguments})
    return {"type": type_, "nodes": nodes, "outputs": outputs}


def _plain(arguments: Any) -> list[Any] | None:
    found: list[Any] = []
    for each in arguments:
        if isinstance(each, torch.fx.Node):
            found.append(each.name)
        elif isinstance(each, (list, tuple)):
            inner = _plain(each)
            if inner is None:
                return None
            found.append(inner)
        elif isinstance(each, _PLAIN):
            found.append(each)
        else:
            return None
    return found
