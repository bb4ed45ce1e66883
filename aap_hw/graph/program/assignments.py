"""Assignments to a part of a tensor, such as ``x[:, :4] = y``, as a new tensor that is joined of the parts.

Whoever reads the tensor later reads the new one, so that all that is left are slices and concatenations, which have
rules and kernels. Covers parts that are ranges and single positions, of any axes, which are overwritten or changed
element by element.

Not covered, so that the assignment stays as it is: parts with steps, lists and masks of positions; tensors that the
network is given; and tensors of which another view, such as ``x.flatten(1)``, is made before and read afterwards.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.fx import Node

from aap_hw.graph.program.call import (
    Call,
    add_call,
    calculate,
    is_same_view,
    is_static,
    is_tensor,
    shape_of,
    storage_of,
)

_ATEN = torch.ops.aten
_TO_END = torch.iinfo(torch.int64).max
# What writes other values, whatever was there.
_OVERWRITE = frozenset({"copy", "fill", "zero"})
# What copies a tensor unless it lies in memory as it should.
_COPY_IF_NEEDED = frozenset({"contiguous", "reshape", "reshape_as", "flatten", "ravel", "to"})


def spell_out_assignments(program: ExportedProgram) -> None:
    """Replace each such assignment in the program's graph, in place."""
    graph = program.graph
    writing = [node for node in graph.nodes if node.op == "call_function" and _writes(node)]
    if not writing:
        return
    moved: set[Node] = set()
    for node in writing:
        if _is_onto_itself(node):  # as in x[:, :4] += y, which changes the part and then assigns it
            node.replace_all_uses_with(Call(node).first)
            graph.erase_node(node)
        else:
            moved.update(_spell_out(node))
    for node in graph.nodes:
        if node in moved:
            calculate(node)
    returned: Any = graph.output_node().args[0]
    for spec, value in zip(program.graph_signature.output_specs, returned, strict=True):
        if isinstance(spec.arg, TensorArgument):
            spec.arg.name = value.name
    graph.lint()
    program.graph_module.recompile()


def _spell_out(node: Node) -> list[Node]:
    """Replace one assignment, if it is of those covered; returns the nodes that are in other memory then.

    Their fake values stay where they were until all assignments are replaced: calculating those of all later slices
    after each assignment takes seconds for a hundred of these.
    """
    part = Call(node).first
    views = _views(part)
    function = _without_writing(node)
    if function is None or not views or not all(map(_is_range, views)):
        return []
    whole = Call(views[-1]).first
    place = _storages(whole)
    memory = [each for each in node.graph.nodes if _storages(each) & place]
    read = {each: [user for user in each.users if user > node] for each in memory if each < node}
    read[part] += node.users  # it returns what it writes into
    read = {each: users for each, users in read.items() if users}
    later = [each for each in memory if each > node]
    if not read or not all(_whole(each) is whole for each in read) or not _is_own(memory[0], whole):
        return []
    if not all(map(_can_move, later)):
        return []
    present = set(node.graph.nodes)
    changed = result = _changed(node, function)
    for view in views:
        result = _joined(node, view, result)
    moved: list[Node] = []
    if _form(changed)[0] == _form(part)[0] and _form(result) == _form(whole):  # which later views may rely on
        # Whoever reads what was written needs no slice of the whole, unless something is written there once more.
        # A copy lies as the part does, which depends on the batch, and names of nodes may not: scales go by them.
        is_enough = Call(node).name != "copy" and changed.meta["val"].is_contiguous()
        is_enough = is_enough and not _is_written_after(node, memory)
        result.meta["val"] = whole.meta["val"]
        node.replace_all_uses_with(part)
        for each, users in read.items():
            new = changed if each is part and is_enough else _viewed(node, result, _views(each))
            for user in users:
                user.replace_input_with(each, new)
        node.graph.erase_node(node)
        moved = [*later, *(each for each in part.graph.nodes if each not in present and _storages(each) & place)]
    for each in reversed(part.graph.nodes):
        if each not in present and not each.users:
            each.graph.erase_node(each)
    return moved


def _writes(node: Node) -> bool:
    """Whether a call overwrites its first argument."""
    call = Call(node)
    return bool(call.name and call.written) and call.written == [call.first] and is_tensor(node) and is_static(node)


def _can_move(view: Node) -> bool:
    """Whether what a call returns can be calculated for other memory; not if it is of a graph of its own."""
    is_known = hasattr(view.target, "_schema") or view.target is operator.getitem
    return is_known and torch.Tag.inplace_view not in getattr(view.target, "tags", ())  # which changes what it reads


def _is_written_after(node: Node, memory: list[Node]) -> bool:
    """Whether something is written into memory behind a node, or into a copy that may become a view of it."""
    calls = [each for each in node.graph.nodes if each.op == "call_function" and each > node]
    copies = [user for each in memory for user in each.users if Call(user).name in _COPY_IF_NEEDED]
    places = set[int]().union(*map(_storages, [*memory, *copies]))
    return any(_storages(each) & places for call in calls for each in Call(call).written)


def _is_onto_itself(node: Node) -> bool:
    call = Call(node)
    if call.name != "copy" or not _storages(call.first) & _storages(call["src"]):
        return False
    return is_same_view(call.first, call["src"])


def _without_writing(node: Node) -> Any:
    """The operator that makes what a call writes, if each element depends on those at its position alone."""
    if Call(node).name not in _OVERWRITE and not Call(node).pointwise:
        return None
    target: Any = node.target
    packet = getattr(_ATEN, Call(node).name, None)
    overloads = [getattr(packet, name) for name in packet.overloads()] if packet is not None else []
    return next((each for each in overloads if each is not target and _takes(each) == _takes(target)), None)


def _takes(function: Any) -> list[tuple[str, str]]:
    """Arguments of an operator: those of ``pow.Scalar`` are not those of ``pow_.Scalar``."""
    return [(each.name, str(each.type)) for each in function._schema.arguments]


def _changed(node: Node, function: Any) -> Node:
    """What a call writes, as a value of its own."""
    call = Call(node)
    if call.name == "zero":
        return add_call(node, node, _ATEN.zeros_like.default, call.first)
    if call.name == "fill" and not isinstance(call["value"], Node):
        return add_call(node, node, _ATEN.full_like.default, call.first, call["value"])
    if call.name == "fill":
        return add_call(node, node, _ATEN.expand_as.default, call["value"], call.first)
    if call.name != "copy":
        return add_call(node, node, function, *node.args, **node.kwargs)
    source = call["src"]
    if shape_of(source) != shape_of(node):
        source = add_call(node, node, _ATEN.expand_as.default, source, call.first)
    return add_call(node, node, function, call.first, source)


def _joined(before: Node, view: Node, part: Node) -> Node:
    """What a range or position was taken of, with a value in place of it."""
    call, taken = Call(view), _taken(view)
    source = call.first
    dim = call["dim"] % len(shape_of(source))
    size = shape_of(source)[dim]
    if len(taken) == size and call.name == "slice":
        return part
    # The same numbers as in the model's code, which may be counts of channels that are looked for in it.
    first, end = (call["start"], call["end"]) if call.name == "slice" else (taken.start, taken.stop)
    pieces = [part if call.name == "slice" else add_call(before, view, _ATEN.unsqueeze.default, part, dim)]
    if taken.start > 0:
        pieces.insert(0, add_call(before, view, _ATEN.slice.Tensor, source, dim, 0, first))
    if taken.stop < size:
        pieces.append(add_call(before, view, _ATEN.slice.Tensor, source, dim, end, _TO_END))
    return add_call(before, view, _ATEN.cat.default, pieces, dim)


def _viewed(before: Node, value: Node, views: list[Node]) -> Node:
    """The ranges and positions of another value."""
    for view in reversed(views):
        assert callable(view.target)
        value = add_call(before, view, view.target, value, *view.args[1:])
    return value


def _views(node: Node) -> list[Node]:
    """The calls that take a node's ranges and positions of some tensor, the last one first."""
    found = []
    while node.op == "call_function" and Call(node).name in ("slice", "select") and not node.kwargs:
        found.append(node)
        node = Call(node).first
    return found


def _whole(node: Node) -> Node:
    views = _views(node)
    return Call(views[-1]).first if views else node


def _is_range(view: Node) -> bool:
    """Whether what a view takes lies side by side, at a place that the code says."""
    call = Call(view)
    if not is_static(view) or not is_static(call.first) or call.get("step", 1) != 1:
        return False
    return all(each is None or type(each) is int for each in map(call.get, ("index", "start", "end")))


def _taken(view: Node) -> range:
    call = Call(view)
    size = shape_of(call.first)[call["dim"]]
    if call.name == "select":
        index = call["index"] % size
        return range(index, index + 1)
    return range(size)[slice(call["start"], call["end"])]


def _is_own(first: Node, whole: Node) -> bool:
    """Whether a tensor is in memory that the network made, and no two elements of it share a place there."""
    return first.op == "call_function" and torch._debug_has_internal_overlap(whole.meta["val"]) == 0


def _form(node: Node) -> tuple[object, object]:
    """Shape and type of a tensor, and how its elements lie in memory."""
    value = node.meta["val"]
    strides = [stride for stride, size in zip(value.stride(), value.shape, strict=True) if size > 1]
    return (value.shape, value.dtype), strides


def _storages(node: Node) -> set[int]:
    """The memory that a value lives in, or each of several."""
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return {storage_of(each) for each in values if isinstance(each, torch.Tensor)}
