"""Taking positions by their numbers, as relative position biases are taken from a table for each pair of tokens.

Channels along the other axes pass: those of a table (positions, heads) are one value for each head.

`torch.gather` wants a number for each channel, so that the best queries of a detector are
``x.gather(1, best[..., None].repeat(1, 1, c))``. Such copies of a number are as many as the channels, and go with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.fx import Node

from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.walk.labels import Labels
from aap_hw.graph.walk.rules.registry import Result, rule

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling


@rule("index")
def by_numbers(state: Labelling, call: Call) -> Result:
    """Positions along some axes, whose numbers have axes of their own; the axes that are not asked for stay."""
    source, numbers = call.first, list(call["indices"])
    rank = len(shape_of(source))
    asked = [dim for dim, each in enumerate(numbers) if each is not None]
    labels = _labels(state, call, asked)
    are_numbers = all(isinstance(numbers[dim], Node) and not _is_mask(numbers[dim]) for dim in asked)
    if not asked or labels.dims.intersection(asked) or not are_numbers:
        return state.not_understood(call)
    for dim in asked:
        state.freeze(state.of(numbers[dim]), "says which positions are taken", call)
    ids = labels.ids.squeeze(axis=tuple(asked))
    first = asked[0] if asked == list(range(asked[0], asked[-1] + 1)) else 0
    new = len(call.out_shape) - (rank - len(asked))
    stays = [dim for dim in range(rank) if dim not in asked]
    after = {dim: place + (new if place >= first else 0) for place, dim in enumerate(stays)}
    ids = np.expand_dims(ids, tuple(range(first, first + new)))
    return Labels(ids, frozenset(after[dim] for dim in labels.dims))


@rule("gather")
def by_repeated_numbers(state: Labelling, call: Call) -> Result:
    """Positions along one axis, whose numbers are the same for all channels along another."""
    labels, dim = state.of(call.first), call["dim"] % len(call.out_shape)
    numbers = state.of(call["index"])
    if not labels.dims or numbers.dims != labels.dims or dim in labels.dims or numbers.ids.shape != labels.ids.shape:
        return state.not_understood(call)  # numbers for fewer channels take the first ones
    state.tie(labels.ids, numbers.ids, call)
    return labels


def channels_of_gathered(state: Labelling, repeated: Call) -> Labels | None:
    """Labels of numbers that are repeated for each channel of what is gathered by them; None of anything else."""
    shape, before = repeated.out_shape, shape_of(repeated.first)
    users = [Call(user) for user in repeated.node.users]
    if len(users) != 1 or users[0].name != "gather" or users[0]["index"] is not repeated.node:
        return None
    labels = state.labels.get(users[0].first)
    if not isinstance(labels, Labels) or len(labels.dims) != 1 or len(before) != len(shape):
        return None
    (axis,) = labels.dims
    if axis == users[0]["dim"] % len(shape) or before[axis] != 1 or labels.ids.size != shape[axis]:
        return None
    state.length(repeated, axis, shape[axis], labels.ids.ravel())
    return Labels.along(len(shape), axis, labels.ids.ravel())


def _is_mask(node: Node) -> bool:
    return bool(node.meta["val"].dtype == torch.bool)


def _labels(state: Labelling, call: Call, asked: list[int]) -> Labels:
    """Labels of what positions are taken from: of a parameter, along the only axis that is not asked for.

    Its rows keep their numbers, even if they are filters of a layer as well.
    """
    source = call.first
    shape, name = shape_of(source), state.weight_name(source)
    long = [dim for dim, size in enumerate(shape) if size > 1 and dim not in asked]
    if name is None or state.parameter_name(source) is None or name in state.computed or len(long) != 1:
        return state.of(source)
    for dim in asked:
        state.freeze(state.parameter_axis(name, dim, "fixed"), "is a row of a table that is read by its number", call)
    return Labels.along(len(shape), long[0], state.parameter_axis(name, long[0], "scale"))
