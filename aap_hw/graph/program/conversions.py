"""Conversions of weights that change nothing: ``self.weight.to(x.dtype)`` is the weight where both are float32.

Whisper's layers and others that may run in half precision read their weights so. Left as they are: conversions of what
the network computes, and of weights that are returned.
"""

from __future__ import annotations

from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.graph.program.call import Call, is_tensor

_CONVERSIONS = frozenset({"to", "type_as"})
_CHECK = "_assert_tensor_metadata"  # which export puts before a conversion


def leave_out_conversions(program: ExportedProgram) -> None:
    """Let operators read the weights themselves, in the program's graph, in place."""
    signature, graph = program.graph_signature, program.graph
    kept = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    weights = {node for node in graph.nodes if node.op == "placeholder" and node.name in kept}
    is_changed = False
    for node in list(graph.nodes):
        if node.op != "call_function" or not node.args or node.args[0] not in weights or not _changes_nothing(node):
            continue
        source = Call(node).first
        for check in [each for each in source.users if each.op == "call_function" and Call(each).name == _CHECK]:
            graph.erase_node(check)
        node.replace_all_uses_with(source)
        graph.erase_node(node)
        is_changed = True
    if is_changed:
        graph.lint()
        program.graph_module.recompile()


def _changes_nothing(node: Node) -> bool:
    """Whether a call gives the very tensor that it gets."""
    call = Call(node)
    if call.name not in _CONVERSIONS or not is_tensor(node) or any(user.op == "output" for user in node.users):
        return False
    before, after = call.first.meta["val"], node.meta["val"]
    same = before.dtype == after.dtype and before.device == after.device and before.stride() == after.stride()
    return same and not call.get("copy") and call.get("memory_format") is None
