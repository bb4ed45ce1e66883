"""Element-wise arithmetic with broadcasting, and ops that hand a tensor on as it is.

Covers activations, residual additions, squeeze-and-excitation products and per-channel factors, in place or
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch.fx import Node

from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.expansions import EXPANDED
from aap_hw.graph.program.source import layer_of
from aap_hw.graph.walk.labels import Labels
from aap_hw.graph.walk.rules.registry import Result, rule

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling

_ARITHMETIC = frozenset({"add", "sub", "rsub", "mul", "div", "pow", "floor_divide", "remainder"})

_FIXED = "is combined with channels that cannot be cut"
_COMPUTED = (
    "meets values that the code computes for this many channels; in a buffer made by __init__, they could be cut"
)

# New tensors of one number.
SCALARS = frozenset({"full", "new_full", "scalar_tensor"})
_FILLS = frozenset({"fill", "full_like"})


def passes_number(call: Call) -> bool:
    """Whether the model's own code, not a layer of PyTorch's, passes an element-wise op or a fill a number."""
    given = (*call.node.args, *call.node.kwargs.values())
    takes_numbers = call.pointwise or call.name in _FILLS
    return takes_numbers and any(type(each) in (int, float) for each in given) and not layer_of(call.node)


@rule("copy", "expand_as")
def pointwise(state: Labelling, call: Call) -> Result:
    """Element by element: channels that meet in one position are cut together."""
    tensors = layers_first(state, call.tensors)
    shapes = [shape_of(node) for node in tensors]
    if not shapes or np.broadcast_shapes(*shapes) != call.out_shape:
        return state.not_understood(call)
    beside = [state.of(node) for node in tensors if state.parameter_name(node) is None]
    labels = [state.of(node, beside) for node in tensors]
    if call.name in _ARITHMETIC and len(shapes) == 1 and (labels[0].dims or state.products):
        # The other operand is a number, which may be a count of channels: behind Q Kᵀ, of those that were summed over.
        state.doubt(call)
    made = merge(state, call, labels, shapes)
    for dim in made.dims:
        if dim - made.rank in call.node.meta.get(EXPANDED, ()):
            state.length(call, dim, call.out_shape[dim], made.ids.ravel())
    return made


def layers_first(state: Labelling, tensors: Sequence[Node]) -> Sequence[Node]:
    """Parameters and new tensors last: a result is labelled as what a layer made, by which those behind know it."""
    if len(tensors) < 2:
        return tensors
    return sorted(tensors, key=lambda node: state.parameter_name(node) is not None or state.is_made_by_code(node))


def merge(state: Labelling, call: Call, labels: Sequence[Labels], shapes: Sequence[tuple[int, ...]]) -> Labels:
    """Labels of what tensors with `labels` and `shapes` give when they meet position by position."""
    rank = max(len(shape) for shape in shapes)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    longest = [max(sizes) for sizes in zip(*padded, strict=True)]
    wide: list[Labels] = []
    for item, shape in zip(labels, padded, strict=True):
        item = item.with_rank(rank)
        for dim in item.dims:
            if shape[dim] < longest[dim]:  # one channel for all positions: it is alone in its group and stays
                item = item.without(dim)
        wide.append(item)
    labelled, free = [item for item in wide if item.dims], []
    for item in labelled:
        if any(shape[dim] > 1 for other, shape in zip(wide, padded, strict=True) for dim in item.dims - other.dims):
            state.freeze(item, _COMPUTED if _is_computed(state, call) else _FIXED, call)
        else:
            free.append(item)
    if not labelled:
        return Labels.none(rank)
    if free:
        # One value for each column of an image is there for all its channels, and has no say in theirs.
        labelled = [item for item in labelled if any(item.dims & each.dims for each in free)]
    first = max(free or labelled[:1], key=lambda item: item.ids.size)
    # Where all channels meet all others, those of the longest axis stay.
    is_outer = bool(free) and all(item.dims == first.dims or not item.dims & first.dims for item in labelled)
    for item in labelled:
        if item is not first and item.dims == first.dims:
            state.tie(first.ids, item.ids, call)
        elif item is not first:
            for side in (item,) if is_outer else (first, item):
                state.freeze(side, "is combined with channels that run along another axis", call)
    return first if is_outer or all(item.dims == first.dims for item in labelled) else Labels.none(rank)


def _is_computed(state: Labelling, call: Call) -> bool:
    """Whether an operator reads several values that the code computes of nothing, as sines of positions."""
    return any(max(shape_of(node), default=1) > 1 and state.is_made_by_code(node) for node in call.tensors)


@rule(
    "alias",
    "alpha_dropout",
    "clone",
    "contiguous",
    "detach",
    "dropout",
    "feature_dropout",
    "fill",
    "full_like",
    "lift_fresh_copy",
    "ones_like",
    "to",
    "_to_copy",
    "type_as",
    "zero",
    "zeros_like",
)
def same(state: Labelling, call: Call) -> Result:
    """The result has the shape and the channels of the first argument."""
    return state.of(call.first)


@rule("new_empty", "new_tensor")
def new(state: Labelling, call: Call) -> Result:
    """Of the first argument only the type counts; the shape is made of numbers."""
    state.doubt(call)
    return Labels.none(len(call.out_shape))


@rule("_assert_tensor_metadata")
def assertion(state: Labelling, call: Call) -> Result:
    """A check that export inserts; one that spells out a shape would fail after a cut."""
    spelled_out = call.get("size") is not None or call.get("stride") is not None
    return state.not_understood(call) if spelled_out else None


@rule("prelu")
def prelu(state: Labelling, call: Call) -> Result:
    """One slope per channel, along the second axis, or one for all."""
    inputs, weight = call["self"], call["weight"]
    if shape_of(weight) != (1,):
        state.tie_parameter(weight, state.channels(inputs, 1, call), "scale", call)
    return state.of(inputs)
