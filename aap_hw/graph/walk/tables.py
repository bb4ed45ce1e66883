"""Which axis of a table of parameters, or of a new tensor, holds channels, if it is moved before it meets any.

Position codes of shape (places, channels) are sliced by the number of tokens or get an axis for the images before they
are added: ``x + self.pos[: x.shape[1]]``, ``x + self.pos.unsqueeze(0)``; those of rows and columns are added to each
other or lie side by side. The slice alone does not tell the axes apart. So each axis is followed, by the rules that
channels follow, to where the table meets a value with channels, in a product, too, or a layer reads it, as learnt
queries are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch.fx import Node

from aap_hw.graph.program.call import JOINS, SAME_NUMBERS, Call, is_static, is_tensor, shape_of
from aap_hw.graph.walk.absorbing import MOVES
from aap_hw.graph.walk.labels import Labels
from aap_hw.graph.walk.rules import RULES, Result
from aap_hw.graph.walk.rules.filled import FILLED
from aap_hw.graph.walk.rules.pointwise import pointwise

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling

_JOINS = JOINS | {"stack"}
_SAME = SAME_NUMBERS | {"dropout", "full_like", "ones_like", "zeros_like"}
_RESIZED = frozenset({"upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d"})
_PASSES = MOVES | _JOINS | _RESIZED | _SAME | {"adjoint", "expand", "numpy_T", "repeat"}
# Of two matrices, and what the second of them is called.
_MATRIX_PRODUCTS = {"bmm": "mat2", "matmul": "other", "mm": "mat2"}
_PRODUCTS = _MATRIX_PRODUCTS.keys() | {"einsum"}
_MEETINGS = _JOINS | {"copy"}
# What reads channels of an input, and along which axis of it.
_READERS = {
    **dict.fromkeys(("layer_norm", "linear", "rms_norm"), ("input", -1)),
    **{f"conv{axes}d": ("input", -1 - axes) for axes in (1, 2, 3)},
    **dict.fromkeys(("gru", "lstm", "rnn_relu", "rnn_tanh"), ("hx", -1)),
    **dict.fromkeys(("gru_cell", "lstm_cell", "rnn_relu_cell", "rnn_tanh_cell"), ("hx", -1)),
}


def tables_of(nodes: Iterable[Node], parameters: Iterable[str]) -> set[Node]:
    """What a program makes of parameters alone, by moving them and by calculating with single elements.

    Rows may be taken by numbers that the code makes, as those of relative positions are.

    Parameters
    ----------
    parameters
        Names of the nodes that stand for parameters.
    """
    names, found, made = frozenset(parameters), set[Node](), set[Node]()
    for node in nodes:
        read = node.all_input_nodes
        if node.op != "call_function":
            continue
        if made.issuperset(read):
            made.add(node)
            continue
        passes = Call(node).name in _PASSES or Call(node).pointwise
        if Call(node).name == "index":
            passes, read = made.issuperset(read[1:]), read[:1]
        if passes and all(each in found or each.name in names for each in read):
            found.add(node)
    return found


def fills_of(nodes: Iterable[Node]) -> set[Node]:
    """New tensors of one number, and what a program makes of these alone in the same ways."""
    found = set[Node]()
    for node in nodes:
        read = node.all_input_nodes
        if node.op == "call_function" and is_static(node):
            passes = Call(node).name in _PASSES or Call(node).pointwise
            if Call(node).name in FILLED or (read and passes and found.issuperset(read)):
                found.add(node)
    return found


def tables_late(nodes: Iterable[Node], tables: Collection[Node]) -> Iterator[Node]:
    """The nodes of a program in its order, but ``tables`` right before what else reads them.

    What they meet is known by then.
    """
    waiting: set[Node] = set()

    def needed(node: Node) -> list[Node]:
        found, readers = set[Node](), [node]
        for reader in readers:
            new = waiting.intersection(reader.all_input_nodes)
            waiting.difference_update(new)
            found |= new
            readers += new
        return sorted(found)

    for node in nodes:
        if node in tables:
            waiting.add(node)
        else:
            yield from needed(node)
            yield node
    yield from sorted(waiting)  # which nothing reads


def axes_met(state: Labelling, start: Node, tables: Collection[Node]) -> set[int]:
    """The axes of a parameter or new tensor along which what is made of it meets channels, by what is labelled so far.

    A linear layer reads the last axis of a table, such as learned queries.
    """
    shape = shape_of(start)
    return {dim for dim, size in enumerate(shape) if size > 1 and _meets(state, start, dim, tables)}


def _meets(state: Labelling, start: Node, dim: int, tables: Collection[Node]) -> bool:
    shape = shape_of(start)
    labels: dict[Node, Result] = {start: Labels.along(len(shape), dim, np.arange(shape[dim], dtype=np.int64))}
    ahead, waiting = state.apart(labels), [start]
    for node in waiting:
        for user in node.users:
            call = Call(user)
            if user in tables and is_static(user):
                labels.update((each, Labels.none(len(shape_of(each)))) for each in call.tensors if each not in labels)
                if user not in labels:
                    labels[user] = RULES.get(call.name, pointwise)(ahead, call)
                    waiting.append(user)
            elif is_tensor(node) and ahead.of(node).dims & _read_along(state, call, node):
                return True
            elif call.name in _PRODUCTS:
                labels.update(
                    (each, state.labels[each]) for each in {*call.tensors} & state.labels.keys() - labels.keys()
                )
                if labels.keys() >= {*call.tensors}:
                    RULES[call.name](ahead, call)
                if user in ahead.products:
                    return True
            elif is_tensor(node) and (call.pointwise or call.name in _MEETINGS):
                axes = {axis - len(shape_of(node)) for axis in ahead.of(node).dims}
                others = [state.labels.get(each) for each in call.tensors if each is not node]
                if any(axis - each.rank in axes for each in others if isinstance(each, Labels) for axis in each.dims):
                    return True
                if call.name in _JOINS and user not in labels and is_static(user):  # a layer may read what is joined
                    unknown = [each for each in call.tensors if each not in labels]
                    labels.update((each, Labels.none(len(shape_of(each)))) for each in unknown)
                    labels[user] = RULES[call.name](ahead, call)
                    waiting.append(user)
    return False


def _read_along(state: Labelling, call: Call, node: Node) -> set[int]:
    """The axis along which a layer, or a matrix of parameters, reads channels of a node; empty if none does."""
    rank = len(shape_of(node))
    if call.name in _READERS:
        name, axis = _READERS[call.name]
        given = call[name] if isinstance(call[name], (list, tuple)) else [call[name]]
        return {axis % rank} if any(each is node for each in given) else set()
    if call.name in _MATRIX_PRODUCTS:
        left, right = call["self"], call[_MATRIX_PRODUCTS[call.name]]
        if node is left and state.matrix(right) is not None:
            return {rank - 1}
        if node is right and state.matrix(left) is not None:
            return {rank - 2}
    return set()
