"""Pieces of joined parameters as the parameters themselves: ``torch.cat([q, k, v]).chunk(3)`` is q, k and v.

`torch.nn.functional.multi_head_attention_forward` takes apart the biases that code with layers of its own joins for it.
"""

from __future__ import annotations

from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.graph.program.call import JOINS, Call, shape_of

_APART = frozenset({"chunk", "split", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_split_with_sizes"})


def leave_out_joins(program: ExportedProgram) -> None:
    """Let whatever reads such pieces read the parameters, in the program's graph, in place."""
    parameters = program.graph_signature.inputs_to_parameters
    found = [
        node
        for node in program.graph.nodes
        if node.op == "call_function" and Call(node).name in _APART and _is_of_parameters(Call(node), parameters)
    ]
    for node in found:
        for piece in list(node.users):
            piece.replace_all_uses_with(Call(Call(node).first)["tensors"][piece.args[1]])
            program.graph.erase_node(piece)
        join = Call(node).first
        program.graph.erase_node(node)
        if not join.users:
            program.graph.erase_node(join)
    if found:
        program.graph.lint()
        program.graph_module.recompile()


def _is_of_parameters(apart: Call, parameters: dict[str, str]) -> bool:
    """Whether an operator takes parameters apart just as they were joined."""
    source = apart.first
    if source.op != "call_function" or Call(source).name not in JOINS:
        return False
    join: list[Node] = list(Call(source)["tensors"])
    values = apart.node.meta["val"]
    return (
        all(each.name in parameters for each in join)
        and Call(source).get("dim", 0) == apart["dim"]
        and [shape_of(each) for each in join] == [tuple(each.shape) for each in values]
        and {each.meta["val"].dtype for each in join} == {values[0].dtype}
    )
