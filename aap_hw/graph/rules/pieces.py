"""Joining tensors and taking them apart: concatenation, chunks, slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aap_hw.graph.call import Call, shape_of
from aap_hw.graph.labels import Labels
from aap_hw.graph.rules.pointwise import merge
from aap_hw.graph.rules.registry import Result, rule

if TYPE_CHECKING:
    from aap_hw.graph.labelling import Labelling

_LITERAL = "is taken apart at positions that the model's code fixes"


@rule("cat", "concat", "concatenate")
def concatenate(state: Labelling, call: Call) -> Result:
    """Channels side by side keep their own fate; across any other axis they must agree."""
    pieces = call["tensors"]
    shapes = [shape_of(piece) for piece in pieces]
    rank = len(call.out_shape)
    if not isinstance(call.get("dim"), int) or any(len(shape) != rank for shape in shapes):
        return state.not_understood(call)
    dim = call["dim"] % rank
    labels = [state.of(piece) for piece in pieces]
    if not any(dim in item.dims for item in labels):
        flat = [(*shape[:dim], 1, *shape[dim + 1 :]) for shape in shapes]
        return merge(state, call, labels, flat)
    if any(item.dims - {dim} for item in labels):
        return state.not_understood(call)
    ids = [np.broadcast_to(item.ids.ravel(), shape[dim : dim + 1]) for item, shape in zip(labels, shapes, strict=True)]
    return Labels.along(rank, dim, np.concatenate(ids))


@rule("chunk", "tensor_split")
def equal_pieces(state: Labelling, call: Call) -> Result:
    """A given number of pieces: they stay equally long if each loses the same positions."""
    count = call.get("chunks", call.get("sections"))
    dim = call["dim"] % len(shape_of(call.first))
    sizes = {shape[dim] for shape in call.out_shapes}
    return _pieces(state, call, dim, equal=isinstance(count, int) and len(sizes) == 1)


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes")
def pieces_of_given_sizes(state: Labelling, call: Call) -> Result:
    """Sizes that the model's code fixes: channels along that axis cannot be cut."""
    return _pieces(state, call, call["dim"] % len(shape_of(call.first)), equal=False)


def _pieces(state: Labelling, call: Call, dim: int, *, equal: bool) -> Result:
    labels = state.of(call.first)
    shapes = call.out_shapes
    if dim not in labels.dims:
        return (labels,) * len(shapes)
    if len({shape[dim] for shape in shapes}) * len(shapes) == 1:
        return (labels,)
    if not equal or labels.dims != {dim}:
        state.freeze(labels, _LITERAL, call)
        return tuple(Labels.none(len(shape)) for shape in shapes)
    ends = np.cumsum([shape[dim] for shape in shapes])[:-1]
    parts = [Labels(ids, labels.dims) for ids in np.split(labels.ids, ends, axis=dim)]
    for part in parts[1:]:
        state.tie(parts[0].ids, part.ids, call)
    return tuple(parts)


@rule("getitem")
def one_of_several(state: Labelling, call: Call) -> Result:
    """One result of an op that yields several."""
    several = state.labels.get(call["self"])
    if isinstance(several, tuple) and isinstance(call["index"], int):
        return several[call["index"]]
    return state.not_understood(call)


@rule("slice")
def part_of_axis(state: Labelling, call: Call) -> Result:
    """A range of positions of one axis, given as numbers."""
    source = call.first
    labels = state.of(source)
    dim = call["dim"] % labels.rank
    if dim not in labels.dims:
        return labels
    everything = slice(call["start"], call["end"], call["step"])
    if range(shape_of(source)[dim])[everything] == range(shape_of(source)[dim]):
        return labels
    state.freeze(labels, _LITERAL, call)
    return Labels.none(labels.rank)


@rule("select")
def one_position(state: Labelling, call: Call) -> Result:
    """One position of one axis, which vanishes."""
    labels = state.of(call.first)
    dim = call["dim"] % labels.rank
    if dim in labels.dims:
        state.freeze(labels, _LITERAL, call)
        return Labels.none(labels.rank - 1)
    return _dropped(labels, dim)


@rule("unbind")
def all_positions(state: Labelling, call: Call) -> Result:
    """Every position of one axis as a tensor of its own."""
    labels = state.of(call.first)
    dim = call["dim"] % labels.rank
    count = len(call.out_shapes)
    if dim in labels.dims:
        state.freeze(labels, _LITERAL, call)
        return (Labels.none(labels.rank - 1),) * count
    return (_dropped(labels, dim),) * count


def _dropped(labels: Labels, dim: int) -> Labels:
    ids = labels.ids.squeeze(axis=dim)
    return Labels(ids, frozenset(other - (other > dim) for other in labels.dims))
