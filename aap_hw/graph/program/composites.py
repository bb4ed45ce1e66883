"""Operators as what they are made of: gated linear units, cosine similarity, and what lacks an axis.

Each part has its own rules and kernels, where one operator would need all of them again. A gated linear unit is a half
of an axis times the sigmoid of the other half. A cosine is the sum of products of what is divided by its norm: a linear
layer where all is compared with the rows of a parameter. A linear layer whose weight is a vector is a product with it.
Maps (N, H, W) are pooled as images of one channel. Left as they are: cosines along an axis that only one of the tensors
has.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from functools import partial
from itertools import permutations
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.graph.program.call import Call, add_call, replace_call, shape_of

_ATEN = torch.ops.aten


def spell_out_composites(program: ExportedProgram) -> None:
    """Replace each such operator in the program's graph, in place."""
    changed, parameters = False, program.graph_signature.inputs_to_parameters
    for target, spelt_out in _SPELLINGS.items():
        for node in program.graph.find_nodes(op="call_function", target=target):
            read = node.all_input_nodes
            if (value := spelt_out(node, parameters)) is not None:
                replace_call(node, value)
                changed = True
            for each in read:  # that nothing reads any more
                if each.op == "call_function" and not each.users:
                    program.graph.erase_node(each)
    if changed:
        program.graph.lint()
        program.graph_module.recompile()


def _gated_linear_unit(node: Node, _: Collection[str]) -> Node:
    call, make = Call(node), partial(add_call, node, node)
    halves = make(_ATEN.chunk.default, call["self"], 2, call["dim"])
    value, gate = (make(operator.getitem, halves, place) for place in range(2))
    return make(_ATEN.mul.Tensor, value, make(_ATEN.sigmoid.default, gate))


def _cosine_similarity(node: Node, parameters: Collection[str]) -> Node | None:
    call, make, rank = Call(node), partial(add_call, node, node), len(shape_of(node)) + 1
    tensors, axis = (call["x1"], call["x2"]), call["dim"] % rank - rank
    lengths = {shape_of(each)[axis] if len(shape_of(each)) >= -axis else 1 for each in tensors}
    if len(lengths) > 1:
        return None

    def unit(value: Node) -> Node:
        norm = make(_ATEN.linalg_vector_norm.default, value, 2, [axis], True)
        return make(_ATEN.div.Tensor, value, make(_ATEN.clamp_min.default, norm, call["eps"]))

    for value, rows in permutations(tensors):
        matrix = Call(rows).first if rows.op == "call_function" and Call(rows).name == "unsqueeze" else rows
        is_layer = matrix.name in parameters and shape_of(matrix) == shape_of(rows)[-2:] and axis == -1
        if is_layer and shape_of(value)[-2:-1] == (1,) and len(shape_of(value)) >= len(shape_of(rows)):
            return make(_ATEN.linear.default, make(_ATEN.squeeze.dim, unit(value), -2), unit(matrix))
    return make(_ATEN.sum.dim_IntList, make(_ATEN.mul.Tensor, *map(unit, tensors)), [axis])


def _linear_of_vector(node: Node, _: Collection[str]) -> Node | None:
    call = Call(node)
    if len(shape_of(call["weight"])) != 1:
        return None
    product = add_call(node, node, _ATEN.matmul.default, call["input"], call["weight"])
    return product if call["bias"] is None else add_call(node, node, _ATEN.add.Tensor, product, call["bias"])


def _pooled_maps(node: Node, _: Collection[str]) -> Node | None:
    call = Call(node)
    if len(shape_of(call["self"])) != 3:
        return None
    pool: Any = node.target
    image = add_call(node, node, _ATEN.unsqueeze.default, call["self"], 1)
    pooled = add_call(node, node, pool, image, *node.args[1:], **node.kwargs)
    return add_call(node, node, _ATEN.squeeze.dim, pooled, 1)


_SPELLINGS = {
    _ATEN.glu.default: _gated_linear_unit,
    _ATEN.cosine_similarity.default: _cosine_similarity,
    _ATEN.linear.default: _linear_of_vector,
    _ATEN.avg_pool2d.default: _pooled_maps,
    _ATEN.max_pool2d.default: _pooled_maps,
}
