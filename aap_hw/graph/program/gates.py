"""Gated linear units as what they are made of: halves of an axis, a sigmoid of the second, and a product.

Each of these has its own rules and kernels, where one operator would need all of them again.
"""

from __future__ import annotations

import operator

import torch
from torch.export import ExportedProgram

from aap_hw.graph.program.call import add_call, replace_call

_ATEN = torch.ops.aten


def spell_out_gates(program: ExportedProgram) -> None:
    """Replace each gated linear unit in the program's graph, in place."""
    gates = program.graph.find_nodes(op="call_function", target=_ATEN.glu.default)
    if not gates:
        return
    for node in gates:
        source, dim = node.args[0], node.args[1] if len(node.args) > 1 else -1
        halves = add_call(node, node, _ATEN.chunk.default, source, 2, dim)
        value, gate = (add_call(node, node, operator.getitem, halves, place) for place in range(2))
        product = add_call(node, node, _ATEN.mul.Tensor, value, add_call(node, node, _ATEN.sigmoid.default, gate))
        replace_call(node, product)
    program.graph.lint()
    program.graph_module.recompile()
