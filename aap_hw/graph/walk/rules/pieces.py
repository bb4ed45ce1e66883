"""Joining tensors and taking them apart: concatenation, stacks, chunks, splits, slices.

Sizes and places of pieces are mostly numbers that the model's code passes. They count channels, so they must follow
when channels are cut: each is noted as a literal, which `literals` looks for among the attributes of the module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aap_hw.graph.program.call import OF_SHAPE, Call, shape_of
from aap_hw.graph.walk.labels import IntArray, Labels
from aap_hw.graph.walk.rules.pointwise import layers_first, merge
from aap_hw.graph.walk.rules.registry import Result, rule

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling

TAKEN_APART = "is taken apart at positions that the model's code fixes"


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
        pieces = layers_first(state, pieces)
        flat = [(*shape[:dim], 1, *shape[dim + 1 :]) for shape in map(shape_of, pieces)]
        return merge(state, call, [state.of(piece) for piece in pieces], flat)
    if any(item.dims - {dim} for item in labels):
        return state.not_understood(call)
    ids = [np.broadcast_to(item.ids.ravel(), shape[dim : dim + 1]) for item, shape in zip(labels, shapes, strict=True)]
    return Labels.along(rank, dim, np.concatenate(ids))


@rule("chunk", "tensor_split")
def equal_pieces(state: Labelling, call: Call) -> Result:
    """A given number of pieces: they stay as long beside each other if each loses the same positions.

    Of those that are longer than the shortest, what is beyond its length stays.
    """
    count = call.get("chunks", call.get("sections"))
    dim = call["dim"] % len(shape_of(call.first))
    sizes = [shape[dim] for shape in call.out_shapes]
    is_fit = count == len(sizes)
    parts = _pieces(state, call, dim, fit=is_fit)
    if is_fit and isinstance(parts, tuple) and len(set(sizes)) > 1:
        alike = [part.ids.ravel() for part in parts if dim in part.dims]
        for ids in alike:
            state.tie(ids[: min(sizes)], alike[0][: min(sizes)], call)
            state.freeze(ids[min(sizes) :], TAKEN_APART, call)
    return parts


@rule("split", "unsafe_split")
def pieces_of_one_size(state: Labelling, call: Call) -> Result:
    """Pieces of a given size: as many as before, if they stay equally long and the size follows."""
    dim = call["dim"] % len(shape_of(call.first))
    sizes = {shape[dim] for shape in call.out_shapes}
    return _pieces(state, call, dim, fit=len(sizes) == 1, literal=True)


@rule("split_with_sizes", "unsafe_split_with_sizes")
def pieces_of_given_sizes(state: Labelling, call: Call) -> Result:
    """Pieces of given sizes, which must follow what is cut from each."""
    return _pieces(state, call, call["dim"] % len(shape_of(call.first)), fit=True, literal=True)


def _pieces(state: Labelling, call: Call, dim: int, *, fit: bool, literal: bool = False) -> Result:
    """Labels of pieces; unless their sizes `fit`, they cannot follow. With `literal`, the code passes the sizes."""
    labels = state.of(call.first)
    shapes = call.out_shapes
    if dim not in labels.dims:
        return (labels,) * len(shapes)
    if len({shape[dim] for shape in shapes}) * len(shapes) == 1 and not literal:
        return (labels,)
    if labels.dims != {dim} or not fit:
        state.freeze(labels, TAKEN_APART, call)
        return tuple(Labels.none(len(shape)) for shape in shapes)
    ends = np.cumsum([shape[dim] for shape in shapes])[:-1]
    parts = [Labels(ids, labels.dims) for ids in np.split(labels.ids, ends, axis=dim)]
    if literal:
        state.literal(call, [(part.ids.size, part.ids.ravel()) for part in parts])
    first_of_size: dict[int, Labels] = {}
    for part in parts:  # equal numbers in the code may be one number
        first = first_of_size.setdefault(part.ids.size, part)
        if first is not part:
            state.tie(first.ids, part.ids, call)
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
    size, step = shape_of(source)[dim], call["step"]
    taken = range(size)[slice(call["start"], call["end"], step)]
    if taken == range(size):
        return labels
    if labels.dims != {dim} or step != 1 or not taken:
        state.freeze(labels, TAKEN_APART, call)
        return Labels.none(labels.rank)
    ids = labels.ids.ravel()
    state.literal(call, bounds(call, ids))
    return Labels.along(labels.rank, dim, ids[taken.start : taken.stop])


def bounds(call: Call, ids: IntArray) -> list[tuple[int, IntArray]]:
    """The numbers that a slice gets, and what each counts: the positions before it, or behind it if it is negative."""
    counts = []
    for bound in (call["start"], call["end"]):
        if bound and -ids.size <= bound < ids.size:
            counts.append((abs(bound), ids[:bound] if bound > 0 else ids[bound:]))
    return counts


@rule("stack")
def stack(state: Labelling, call: Call) -> Result:
    """Equal tensors along a new axis: their channels are cut together."""
    pieces = call["tensors"]
    labels = merge(state, call, [state.of(piece) for piece in pieces], [shape_of(piece) for piece in pieces])
    new = call["dim"] % (labels.rank + 1)
    return Labels(np.expand_dims(labels.ids, new), frozenset(dim + (dim >= new) for dim in labels.dims))


@rule("select")
def one_position(state: Labelling, call: Call) -> Result:
    """One position of one axis, which vanishes."""
    labels = state.of(call.first)
    dim = call["dim"] % labels.rank
    if dim in labels.dims:
        is_read = any(Call(user).name not in OF_SHAPE for user in call.node.users)
        if is_read or call["index"] not in (0, -1):  # code may only want the shape of what is left
            state.freeze(labels, TAKEN_APART, call)
        return Labels.none(labels.rank - 1)
    return _dropped(labels, dim)


@rule("unbind")
def all_positions(state: Labelling, call: Call) -> Result:
    """Every position of one axis as a tensor of its own."""
    labels = state.of(call.first)
    dim = call["dim"] % labels.rank
    count = len(call.out_shapes)
    if dim in labels.dims:
        state.freeze(labels, TAKEN_APART, call)
        return (Labels.none(labels.rank - 1),) * count
    return (_dropped(labels, dim),) * count


def _dropped(labels: Labels, dim: int) -> Labels:
    ids = labels.ids.squeeze(axis=dim)
    return Labels(ids, frozenset(other - (other > dim) for other in labels.dims))
