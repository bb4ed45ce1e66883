"""Temperatures of attention before its products: ``(q @ k.mT) * t`` is ``(q * t) @ k.mT``.

Where each head has a temperature of its own, as in cross-covariance attention, what follows the product is then what
follows any attention, which is one kernel and makes no matrix of channels by channels. Only products that softmax
reads, of one image, and temperatures that are the same for a whole matrix.
"""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.graph.program.call import Call, add_call, is_tensor, replace_call, shape_of

_PRODUCTS = frozenset({"bmm", "matmul"})
# What a mask or a bias needs to be added.
_BETWEEN = frozenset({"add", "add_", "reshape", "view"})
_ATEN = torch.ops.aten


def move_temperatures(program: ExportedProgram) -> None:
    """Multiply what a product reads first instead of the product, in the program's graph, in place."""
    changed = False
    for node in program.graph.find_nodes(op="call_function", target=_ATEN.mul.Tensor):
        for product, factor in permutations(node.all_input_nodes, 2):
            if _is_scaled_alone(node, product, factor):
                left, right = product.args
                multiply: Any = product.target
                scaled = add_call(node, product, _ATEN.mul.Tensor, left, factor)
                replace_call(node, add_call(node, product, multiply, scaled, right))
                program.graph.erase_node(product)
                changed = True
                break
    if changed:
        program.graph.lint()
        program.graph_module.recompile()


def _is_scaled_alone(node: Node, product: Node, factor: Node) -> bool:
    """Whether a node is a product of matrices times one number a matrix, goes to a softmax, and may be moved."""
    if not is_tensor(factor) or len(node.args) != 2:
        return False
    if product.op != "call_function" or Call(product).name not in _PRODUCTS or [*product.users] != [node]:
        return False
    left, shape, of_factor = product.args[0], shape_of(product), shape_of(factor)
    if not isinstance(left, Node) or len(shape) < 3 or shape_of(left)[:-2] != shape[:-2] or shape_of(node) != shape:
        return False
    if of_factor[-2:] != (1, 1) or math.prod(shape[:-3]) != 1:
        return False
    return _reaches_softmax(node) and not _is_written_between(product, node)


def _reaches_softmax(node: Node) -> bool:
    """Whether softmax reads a value, maybe once other tensors have been added to it."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        name = Call(node).name if node.op == "call_function" else ""
        if name not in _BETWEEN:
            return name == "softmax"
    return False


def _is_written_between(product: Node, node: Node) -> bool:
    """Whether anything is overwritten before a node that comes behind a product."""
    each = product.next
    while each is not node:
        if each.op == "call_function" and Call(each).written:
            return True
        each = each.next
    return False
