"""Ops that move elements between neighbouring axes: flatten, view, reshape, unflatten, expand.

The axes of input and output fall into *segments*, runs of neighbouring axes with equally many elements;
labels move only within a segment. Where channels are spread over several axes (a channel shuffle), every row
must lose the same columns: from then on only the columns are a channel axis. Which of the axes that is depends
on the numbers that the model's code passes, and an exported program shows only their values: such nodes are
noted as doubtful, and `trial` tries them out. Where whole heads of attention are to be cut, it is their axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.fx import Node

from aap_hw.graph.program.call import Call, is_tensor, shape_of
from aap_hw.graph.program.source import path_of
from aap_hw.graph.walk.labels import Labels
from aap_hw.graph.walk.rules.gather import channels_of_gathered
from aap_hw.graph.walk.rules.registry import Result, rule

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling


_RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten"})
_VIEWS = torch.ops.aten.view.default, torch.ops.aten.reshape.default
# Ops beside element-wise ones after which each axis is what it was.
_KEEP_AXES = frozenset({"contiguous", "clone", "dropout", "pad", "upsample_nearest2d", "upsample_bilinear2d"})
# What gives each position of an axis away, or the largest alone.
_APART = frozenset({"unbind", "select", "amax", "amin", "max", "min"})


@dataclass(frozen=True)
class Segment:
    """Axes of the input and the axes of the output that hold the same elements in the same order."""

    before: range
    after: range


@rule("flatten")
def flatten(state: Labelling, call: Call) -> Result:
    """Axes from `start_dim` to `end_dim` become one, in whatever length they have."""
    rank = len(shape_of(call.first))
    if rank == 0 or isinstance(call["start_dim"], str):
        return state.not_understood(call)
    start, end = call["start_dim"] % rank, call["end_dim"] % rank
    segments = [Segment(range(dim, dim + 1), range(dim, dim + 1)) for dim in range(start)]
    segments.append(Segment(range(start, end + 1), range(start, start + 1)))
    for dim in range(end + 1, rank):
        segments.append(Segment(range(dim, dim + 1), range(dim - end + start, dim - end + start + 1)))
    return _move(state, call, segments, literals=None)


@rule("unflatten")
def unflatten(state: Labelling, call: Call) -> Result:
    """One axis becomes several."""
    rank = len(shape_of(call.first))
    split, sizes = call["dim"] % rank, call["sizes"]
    more = len(sizes) - 1
    segments = [Segment(range(dim, dim + 1), range(dim, dim + 1)) for dim in range(split)]
    segments.append(Segment(range(split, split + 1), range(split, split + more + 1)))
    for dim in range(split + 1, rank):
        segments.append(Segment(range(dim, dim + 1), range(dim + more, dim + more + 1)))
    literals = [-1] * split + list(sizes) + [-1] * (rank - 1 - split)
    return _move(state, call, segments, literals)


@rule("view", "reshape", "_unsafe_view", "view_as", "reshape_as")
def view(state: Labelling, call: Call) -> Result:
    """Any new shape."""
    if call.get("dtype") is not None:
        return state.not_understood(call)
    literals = _passed(call)
    before, after = shape_of(call.first), call.out_shape
    return _move(state, call, _segments(before, after), list(literals if literals is not None else after))


@rule("expand", "broadcast_to")
def expand(state: Labelling, call: Call) -> Result:
    """Axes of length 1 repeated; a length of -1 leaves an axis as it is."""
    if (gathered := channels_of_gathered(state, call)) is not None:
        return gathered
    before, after = shape_of(call.first), call.out_shape
    labels = state.of(call.first).with_rank(len(after))
    padded = (1,) * (len(after) - len(before)) + before
    for dim in sorted(labels.dims):
        if padded[dim] != after[dim]:  # one channel for all positions: it is alone in its group and stays
            labels = labels.without(dim)
        elif call["size"][dim] != -1:
            state.doubt(call)
    return labels


def _segments(before: Sequence[int], after: Sequence[int]) -> list[Segment]:
    """Cut both shapes into the shortest runs of axes with equally many elements."""
    segments: list[Segment] = []
    i = j = 0
    while i < len(before) and j < len(after):
        first_i, first_j = i, j
        left, right = before[i], after[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        segments.append(Segment(range(first_i, i), range(first_j, j)))
    if segments and (i < len(before) or j < len(after)):  # what is left has length 1
        last = segments[-1]
        segments[-1] = Segment(range(last.before.start, len(before)), range(last.after.start, len(after)))
    return segments


def _move(state: Labelling, call: Call, segments: list[Segment], literals: list[int] | None) -> Result:
    """Labels after elements moved within `segments`; `literals` are the lengths as the code passes them."""
    labels = state.of(call.first)
    if not labels.dims:
        return Labels.none(len(call.out_shape))
    if not segments:
        return state.not_understood(call)
    before, after = shape_of(call.first), call.out_shape
    expanded = list(labels.ids.shape)
    shape = [1] * len(after)
    for segment in segments:
        if labels.dims.intersection(segment.before):
            for dim in segment.before:
                expanded[dim] = before[dim]
            for dim in segment.after:
                shape[dim] = after[dim]
    if prod(expanded) != prod(shape):
        return state.not_understood(call)
    ids = np.broadcast_to(labels.ids, expanded).reshape(shape)
    dims: set[int] = set()
    passed: list[int] = []
    heads = state.heads_axis(call)
    for segment in segments:
        channel_dims = labels.dims.intersection(segment.before)
        if not channel_dims:
            continue
        if len(segment.after) == 1:
            varying = [segment.after.start]
        else:
            varying = [dim for dim in segment.after if (ids != ids.take([0], axis=dim)).any()]
            if not varying and heads not in segment.after:
                state.freeze(labels, "is a single channel whose axis is reshaped", call)
                return Labels.none(len(after))
        if len(varying) > 1:
            state.splits[call.node] = tuple(varying)
        adaptive = _adaptive(call.node, segment, varying, literals, heads)
        if literals is not None and literals[adaptive] != -1:
            passed.append(adaptive)
        for dim in varying:
            if dim != adaptive:
                state.tie(ids, ids.take([0], axis=dim), call)
        dims.add(adaptive)
        for dim in segment.after:
            if dim != adaptive:
                ids = ids.take([0], axis=dim)
        if adaptive == heads and len(segment.after) > 1:
            state.whole_heads[call.node] = ids.ravel()
    for dim in passed:
        if len(dims) == 1:
            state.length(call, dim, after[dim], ids.ravel())
        else:
            state.doubt(call)
    return Labels(ids, frozenset(dims))


def _adaptive(
    node: Node, segment: Segment, varying: Sequence[int], literals: Sequence[int] | None, heads: int | None
) -> int:
    """Which axis of a segment gets shorter in a cut network.

    That whose length the code leaves to PyTorch, unless it is 1 or the code counts on it elsewhere; otherwise, as a
    trial tells whether the number that is passed follows, that of channels.
    """
    if heads is not None and heads in segment.after and len(segment.after) > 1:
        return heads  # of one head, too, which does not vary
    free = next((dim for dim in segment.after if literals is not None and literals[dim] == -1), None)
    if free is not None and free in varying and not _is_passed_elsewhere(node, segment, free):
        return free
    left = [dim for dim in varying if not _is_taken_apart(node, dim)] or varying
    return next((dim for dim in varying if dim == _channel_axis(node)), left[-1])


def _is_taken_apart(node: Node, axis: int) -> bool:
    """Whether the positions along an axis become values of their own, or only the largest of them stays.

    So ``rearrange(x, "b n (d two) -> two b n d", two=2)`` is read, and ``x.view(n, -1, 2).amax(-1)``.
    """
    waiting, seen = [(node, axis)], {node}
    for value, dim in waiting:
        for user in value.users:
            call, rank = Call(user), len(shape_of(value))
            if call.name in _APART:
                dims = [call["dim"]] if isinstance(call.get("dim"), int) else call.get("dim") or []
                if dim in {each % rank for each in dims}:
                    return True
            elif user not in seen and is_tensor(user) and (moved := _moved(call, value, dim)) is not None:
                seen.add(user)
                waiting.append((user, moved))
    return False


def _moved(call: Call, value: Node, axis: int) -> int | None:
    """Where an axis of a value is in what an operator makes of it; None if the operator does more than move axes."""
    rank = len(shape_of(value))
    if call.name == "permute":
        return [dim % rank for dim in call["dims"]].index(axis)
    if call.name == "transpose":
        pair = [call["dim0"] % rank, call["dim1"] % rank]
        return pair[1 - pair.index(axis)] if axis in pair else axis
    if call.name in _RESHAPES and call.first is value:
        segments = _segments(shape_of(value), call.out_shape)
        alone = (each.after for each in segments if each.before == range(axis, axis + 1) and len(each.after) == 1)
        return next((each.start for each in alone), None)
    keeps = call.pointwise or call.name in _KEEP_AXES
    return axis if keeps and call.out_shape == shape_of(value) else None


def _is_passed_elsewhere(node: Node, segment: Segment, free: int) -> bool:
    """Whether a view of the same module makes the same axes of one, and passes the length that this one leaves out.

    So attention does whose keys are as many heads as ``self.num_heads``, while its queries are as many as fit.
    """
    after = slice(segment.after.start, segment.after.stop)
    for other in (each for target in _VIEWS for each in node.graph.find_nodes(op="call_function", target=target)):
        shape, lengths = shape_of(other), _passed(Call(other))
        is_like = len(shape) == len(shape_of(node)) and shape[after] == shape_of(node)[after]
        if is_like and lengths and lengths[free] != -1 and path_of(other) == path_of(node):
            return any(each.after == segment.after for each in _segments(shape_of(Call(other).first), shape))
    return False


def _passed(view: Call) -> Sequence[int] | None:
    """The lengths that the code passes to a view."""
    lengths: Sequence[int] | None = view.get("size", view.get("shape"))
    return lengths


def _channel_axis(node: Node) -> int | None:
    """The axis that the next convolution or batch norm takes for channels, if nothing moves axes before it."""
    rank = len(shape_of(node))
    seen, waiting = {node}, [node]
    for each in waiting:
        for user in each.users:
            if user.op != "call_function" or not is_tensor(user) or len(shape_of(user)) != rank:
                continue
            call = Call(user)
            if call.name.startswith("conv") and call.get("weight") is not None and call["input"] is each:
                return rank - len(shape_of(call["weight"])) + 1
            if call.name in ("batch_norm", "instance_norm"):
                return 1
            if (call.pointwise or call.name in _KEEP_AXES) and user not in seen:
                seen.add(user)
                waiting.append(user)
    return None
