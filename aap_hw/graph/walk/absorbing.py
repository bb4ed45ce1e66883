"""Which layer can take up a factor of what attention reads: that which makes it, if values are only moved in between.

Used for queries, or else keys, that must be multiplied by a number; see `scaling`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.fx import Node

from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.walk.labels import IntArray

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling

MOVES = frozenset(
    {
        "chunk", "clone", "contiguous", "flatten", "flip", "getitem", "mH", "mT", "movedim", "permute", "reshape",
        "roll", "select", "slice", "split", "split_with_sizes", "squeeze", "swapaxes", "swapdims", "t", "tensor_split",
        "transpose", "unbind", "unflatten", "unsafe_split", "unsafe_split_with_sizes", "unsqueeze", "view",
        "_unsafe_view",
    }
)  # fmt: skip
# What a factor passes as it is: a multiple stays one.
_HOMOGENEOUS = frozenset({"alias", "detach", "dropout", "mul", "div", "neg"})
# Which axis of the result a layer's filters or factors run along, counted from the last if it is negative.
_MAKERS = {
    "linear": -1, "addmm": -1, "conv1d": 1, "conv2d": 1, "conv3d": 1, "batch_norm": 1, "layer_norm": -1, "rms_norm": -1,
}  # fmt: skip
# What its weight and bias are called where they are called otherwise.
_NAMES = {"addmm": ("mat2", "self")}


@dataclass(frozen=True)
class Rows:
    """Places along one axis of a parameter, such as those of filters."""

    parameter: str
    places: IntArray
    dim: int = 0


def absorbing(state: Labelling, attention: Node, operand: str) -> tuple[Rows, ...] | None:
    """The parameters whose rows make an operand of attention and nothing else, if a layer does that can be scaled."""
    node = _operands(attention)[operand]
    while (source := moved(node)) is not None:
        node = source
    call = Call(node)
    if node.op != "call_function" or call.name not in _MAKERS:
        return None
    weight, bias = (call.get(name) for name in _NAMES.get(call.name, ("weight", "bias")))
    parameters = [each for each in (weight, bias) if isinstance(each, Node)]
    is_norm = call.name.endswith("_norm")
    if not isinstance(weight, Node) or (is_norm and any(len(shape_of(each)) != 1 for each in parameters)):
        return None
    if call.name == "addmm" and shape_of(bias) != shape_of(weight)[1:]:
        return None
    if not all(state.is_read_once(each) for each in parameters):
        return None
    reached = _reached(node, _MAKERS[call.name], attention)
    rows = reached.pop(operand, None)
    if rows is None or any(np.isin(rows, other).any() for other in reached.values()):
        return None
    if call.name == "addmm":
        return Rows(str(state.parameter_name(weight)), rows, 1), Rows(str(state.parameter_name(bias)), rows)
    filters = [state.filters(each) for each in parameters]
    found = tuple(replace(each, places=each.places[rows]) for each in filters if each is not None)
    return found if len(found) == len(filters) else None


def _operands(product: Node) -> dict[str, Node]:
    """What a product reads, by the names of its arguments; the factors of an einsum by their places."""
    call = Call(product)
    if call.name == "einsum":
        return {str(place): each for place, each in enumerate(call["tensors"])}
    return {name: each for each in product.all_input_nodes for name in call.names_of(each)}


def moved(node: Node) -> Node | None:
    """What a node moves, if it does nothing else."""
    call = Call(node)
    is_product = call.name in ("mul", "div")
    sources = [each for each in node.all_input_nodes if not is_product or not is_number(each)]
    if node.op != "call_function" or len(sources) != 1:
        return None
    if is_product and not _is_multiple(call, sources[0]):
        return None
    return sources[0] if call.name in MOVES or call.name in _HOMOGENEOUS else None


def _is_multiple(call: Call, source: Node) -> bool:
    """Whether a product or quotient is some times a value: a rounded quotient is not."""
    args = call.node.args
    return args[0] is source and args[1] is not source and call.get("rounding_mode") is None


def is_number(node: Node) -> bool:
    """Whether a node is a number that the code passes as a tensor, and that nothing else reads."""
    return Call(node).name == "full" and not shape_of(node) and len(node.users) == 1


def _reached(maker: Node, axis: int, attention: Node) -> dict[str, IntArray]:
    """Which filters of a layer reach each operand of attention, and what else they reach, by moves alone."""
    shape = shape_of(maker)
    places = torch.arange(shape[axis]).reshape([-1 if dim == axis % len(shape) else 1 for dim in range(len(shape))])
    values: dict[Node, Any] = {maker: places.expand(shape).contiguous()}
    reached: dict[str, IntArray] = {}
    waiting = [maker]
    for node in waiting:
        for user in node.users:
            if user in values:
                continue
            if moved(user) is node:
                values[user] = _replayed(user, node, values[node])
                waiting.append(user)
                continue
            found = values[node] if isinstance(values[node], (tuple, list)) else [values[node]]
            ids = np.unique(torch.cat([each.ravel() for each in found]).numpy())
            names = [user.name]
            if user is attention:
                names = [name for name, each in _operands(user).items() if each is node]
            for name in names:
                reached[name] = np.union1d(reached.get(name, np.empty(0, dtype=np.int64)), ids)
    return reached


def _replayed(user: Node, source: Node, value: Any) -> Any:
    if Call(user).name in _HOMOGENEOUS:
        return value
    arguments, keywords = torch.fx.node.map_arg((user.args, user.kwargs), lambda _: value)
    return user.target(*arguments, **keywords)  # type: ignore[operator]
