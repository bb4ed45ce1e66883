"""Expansions that nothing needs: ``x * gate.expand(n, c, h, w)`` is ``x * gate``, as element-wise operators broadcast.

Without them the channels of x may be fewer than the code says, if its numbers follow, and nothing is copied. What
`torch.broadcast_tensors` makes of several tensors is an expansion of each.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.graph.program.call import Call, add_call, calculate, is_static, is_tensor, replace_call, shape_of

# Notes of a call along which axes what it reads was expanded to numbers of the code's, counted from the last.
EXPANDED = "expanded"
_EXPANSIONS = frozenset({"broadcast_to", "expand", "expand_as"})
_COPIES = frozenset({"repeat", "tile"})


def leave_out_expansions(program: ExportedProgram) -> None:
    """Let element-wise operators read what is expanded for them alone, in the program's graph, in place."""
    together = program.graph.find_nodes(op="call_function", target=torch.ops.aten.broadcast_tensors.default)
    for node in together:
        _spell_out(node)
    nodes = [node for node in program.graph.nodes if node.op == "call_function" and _is_expansion(node)]
    for node in nodes:
        for user in list(node.users):
            if user.op == "call_function" and Call(user).pointwise and _may_read_source(user, node):
                _read_source(user, node)
        if not node.users:
            program.graph.erase_node(node)
    if nodes or together:
        program.graph.lint()
        program.graph_module.recompile()


def _spell_out(together: Node) -> None:
    """Expand each of several tensors by itself: to the shape of one of them, if that is the one of all."""
    tensors, aten = Call(together)["tensors"], torch.ops.aten
    for node in list(together.users):
        tensor, shape = tensors[node.args[1]], shape_of(node)
        longest = next((each for each in tensors if shape_of(each) == shape), None)
        if longest is None:
            replace_call(node, add_call(node, node, aten.expand.default, tensor, [*shape]))
        else:
            replace_call(node, add_call(node, node, aten.expand_as.default, tensor, longest))
    together.graph.erase_node(together)


def _is_expansion(node: Node) -> bool:
    """Whether a call repeats axes of length 1 and nothing else."""
    call = Call(node)
    if call.name not in _EXPANSIONS | _COPIES or not is_static(node) or not is_static(call.first):
        return False
    before, after = _shapes(node)
    if call.name in _COPIES and any(one != other and one != 1 for one, other in zip(before, after, strict=True)):
        return False
    return 1 in before


def _shapes(node: Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes before and behind an expansion, of equally many axes."""
    before, after = shape_of(Call(node).first), shape_of(node)
    return (*[1] * (len(after) - len(before)), *before), after


def _may_read_source(user: Node, expansion: Node) -> bool:
    """Whether what an operator reads of an expansion is in its source still: a copy keeps what was there before."""
    if expansion in Call(user).written:
        return False
    if Call(expansion).name in _EXPANSIONS:
        return True
    node = expansion
    while node is not user:
        node = node.next
        if node.op == "call_function" and Call(node).written:
            return False
    return True


def _read_source(user: Node, expansion: Node) -> None:
    """Let an operator read what was expanded, if it computes the same of it."""
    value, args, kwargs = user.meta["val"], user.args, user.kwargs
    user.replace_input_with(expansion, Call(expansion).first)
    try:
        calculate(user)
        is_same = is_tensor(user) and _form(user) == _form_of(value)
    except Exception:  # whatever PyTorch raises where shapes do not fit
        is_same = False
    user.meta["val"] = value
    if not is_same:
        user.args, user.kwargs = args, kwargs
    else:
        user.meta[EXPANDED] = _numbered(expansion) | user.meta.get(EXPANDED, frozenset())


def _numbered(expansion: Node) -> frozenset[int]:
    """The axes whose length the code passes, counted from the last."""
    call, (before, after) = Call(expansion), _shapes(expansion)
    if call.name == "expand_as":
        return frozenset()
    given = after if call.name in _COPIES else call["size"]
    kept = before if call.name in _COPIES else [-1] * len(after)
    return frozenset(axis for axis in range(-len(after), 0) if given[axis] != kept[axis])


def _form(node: Node) -> tuple[object, ...]:
    return _form_of(node.meta["val"])


def _form_of(value: object) -> tuple[object, ...]:
    """What tells whether values of the same numbers can stand for each other."""
    return getattr(value, "dtype", None), getattr(value, "shape", None), value.stride()  # type: ignore[attr-defined]
