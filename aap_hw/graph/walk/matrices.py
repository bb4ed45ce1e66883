"""Matrices of parameters that a product reads turned over or in another type: ``x @ self.embedding.weight.T``.

Such a product is a linear layer, of which both axes of the matrix hold channels. Only matrices that nothing reads but
layers and products with what depends on an input are followed: any other use is for the rules that follow one axis.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.graph.program.call import SAME_NUMBERS, Call, shape_of
from aap_hw.graph.program.weights import OPERANDS
from aap_hw.graph.walk.computed import is_assertion

_TURNS = frozenset({"adjoint", "mH", "mT", "numpy_T", "permute", "swapaxes", "swapdims", "t", "transpose"})
_SAME = SAME_NUMBERS | {"contiguous"}
_LAYERS = frozenset({"embedding", "linear"})


@dataclass(frozen=True)
class Matrix:
    """What a product reads as a matrix.

    Parameters
    ----------
    source
        The node of the parameter.
    rows, columns
        Which axes of the parameter they are.
    """

    source: Node
    rows: int = 0
    columns: int = 1


def matrices_of(program: ExportedProgram, parameters: Mapping[str, str]) -> dict[Node, Matrix]:
    """What is made of matrices of parameters by turning them over, and read by products alone.

    Parameters
    ----------
    parameters
        Names of the parameters that placeholders stand for.
    """
    known: dict[Node, Matrix] = {}
    varies: set[Node] = set()
    for node in program.graph.nodes:
        if node.name in program.graph_signature.user_inputs or not varies.isdisjoint(node.all_input_nodes):
            varies.add(node)
        elif node.name in parameters and len(shape_of(node)) == 2:
            known[node] = Matrix(node)
        elif node.op == "call_function" and len(node.all_input_nodes) == 1 and node.all_input_nodes[0] in known:
            matrix = known[node.all_input_nodes[0]]
            if Call(node).name in _SAME:
                known[node] = matrix
            elif Call(node).name in _TURNS:
                known[node] = Matrix(matrix.source, matrix.columns, matrix.rows) if _is_turned(node) else matrix
    read_alone: set[Node] = set()
    for node in reversed(known):
        if all(user in read_alone or _reads(user, node, varies) for user in node.users):
            read_alone.add(node)
    doubtful = {parameters[node.name] for node in known if node.name in parameters and node not in read_alone}
    return {
        node: matrix
        for node, matrix in known.items()
        if node is not matrix.source and parameters[matrix.source.name] not in doubtful
    }


def _is_turned(node: Node) -> bool:
    """Whether a matrix that is 2 long and 3 wide comes out the other way."""
    turned: torch.Tensor = node.target(torch.empty(2, 3), *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return turned.shape == (3, 2)


def _reads(user: Node, matrix: Node, varies: Collection[Node]) -> bool:
    """Whether an operator is a layer of a matrix, multiplies it with what depends on an input, or checks its type."""
    if user.op != "call_function" or is_assertion(user):
        return user.op == "call_function"
    call = Call(user)
    own = call.names_of(matrix)
    if call.name == "linear" or (matrix.op == "placeholder" and call.name in _LAYERS):
        return own == ["weight"]
    others = [call[name] for name in OPERANDS.get(call.name, ()) if name not in own]
    return len(own) == len(others) == 1 and others[0] in varies and len(shape_of(others[0])) > 1
