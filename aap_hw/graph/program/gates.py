"""Gated linear units as what they are made of: halves of an axis, a sigmoid of the second, and a product.

Each of these has its own rules and kernels, where one operator would need all of them again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.fx import Node

_ATEN = torch.ops.aten


def spell_out_gates(program: ExportedProgram) -> None:
    """Replace each gated linear unit in the program's graph, in place."""
    for node in program.graph.find_nodes(op="call_function", target=_ATEN.glu.default):
        source, dim = node.args[0], node.args[1] if len(node.args) > 1 else -1
        halves = _call(node, _ATEN.chunk.default, source, 2, dim)
        value, gate = (_call(node, operator.getitem, halves, place) for place in range(2))
        product = _call(node, _ATEN.mul.Tensor, value, _call(node, _ATEN.sigmoid.default, gate))
        node.replace_all_uses_with(product)
        program.graph.erase_node(node)
        product.name = node.name  # by which the program's outputs and scales of quantised values know it
    program.graph.lint()
    program.graph_module.recompile()


def _call(before: Node, function: Callable[..., Any], *args: Any) -> Node:
    """A call ahead of another one, and in the same place of the model's code."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(function, args)
    values = [each.meta["val"] if isinstance(each, Node) else each for each in args]
    fake = before.meta["val"]
    assert isinstance(fake, FakeTensor)
    with fake.fake_mode:
        node.meta = {**before.meta, "val": function(*values)}
    return node
