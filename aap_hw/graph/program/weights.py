"""Weights that operators read as layers do, or that they multiply by as matrices.

Parameters alone are not meant: whether what is read so depends on an input is left to those who ask.
"""

from __future__ import annotations

from torch.fx import Node

from aap_hw.graph.program.call import Call

OPERANDS = {"addmm": ("mat1", "mat2"), "matmul": ("self", "other"), "mm": ("self", "mat2")}
"""What the left and the right one of two matrices are called."""


def weight_of(node: Node) -> Node | None:
    """The weight that an operator reads as a layer does, or the right one of two matrices that it multiplies."""
    call = Call(node)
    _, right = OPERANDS.get(call.name, ("", "weight"))
    found = call.get(right)
    return found if isinstance(found, Node) else None


def is_product_with(node: Node, weight: Node) -> bool:
    """Whether an operator multiplies what it reads by a matrix, ``x @ weight``, whose second axis its channels are."""
    return node.op == "call_function" and Call(node).name in OPERANDS and weight_of(node) is weight
