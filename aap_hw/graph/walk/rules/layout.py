"""Axes that trade places, appear or vanish without any element moving between axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.walk.labels import Labels
from aap_hw.graph.walk.rules.gather import channels_of_gathered
from aap_hw.graph.walk.rules.registry import Result, rule

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling


def _reorder(labels: Labels, order: Sequence[int]) -> Labels:
    return Labels(labels.ids.transpose(order), frozenset(new for new, old in enumerate(order) if old in labels.dims))


@rule("permute")
def permute(state: Labelling, call: Call) -> Result:
    """Axes in a new order."""
    labels = state.of(call.first)
    return _reorder(labels, [dim % labels.rank for dim in call["dims"]])


@rule("transpose", "swapaxes", "swapdims")
def transpose(state: Labelling, call: Call) -> Result:
    """Two axes trade places; their argument names depend on the op."""
    labels = state.of(call.first)
    names = ("dim0", "dim1") if call.get("dim0") is not None else ("axis0", "axis1")
    if call.get(names[0]) is None:
        return state.not_understood(call)
    left, right = (call[name] % labels.rank for name in names)
    order = list(range(labels.rank))
    order[left], order[right] = right, left
    return _reorder(labels, order)


@rule("movedim", "moveaxis")
def move(state: Labelling, call: Call) -> Result:
    """Some axes go to new places, the others keep their order."""
    labels = state.of(call.first)
    source, destination = (
        [dim % labels.rank for dim in ([dims] if isinstance(dims, int) else dims)]
        for dims in (call["source"], call["destination"])
    )
    order = [dim for dim in range(labels.rank) if dim not in source]
    for place, dim in sorted(zip(destination, source, strict=True)):
        order.insert(place, dim)
    return _reorder(labels, order)


@rule("t", "numpy_T")
def matrix_transpose(state: Labelling, call: Call) -> Result:
    """A matrix turned over; a vector stays."""
    labels = state.of(call.first)
    return _reorder(labels, range(labels.rank)[::-1])


@rule("mT", "mH", "adjoint")
def transpose_of_matrices(state: Labelling, call: Call) -> Result:
    """The last two axes trade places."""
    labels = state.of(call.first)
    return _reorder(labels, [*range(labels.rank - 2), labels.rank - 1, labels.rank - 2])


@rule("unsqueeze")
def unsqueeze(state: Labelling, call: Call) -> Result:
    """A new axis of length 1."""
    labels = state.of(call.first)
    new = call["dim"] % (labels.rank + 1)
    return Labels(np.expand_dims(labels.ids, new), frozenset(dim + (dim >= new) for dim in labels.dims))


@rule("squeeze")
def squeeze(state: Labelling, call: Call) -> Result:
    """Axes of length 1 vanish: all of them, or those that are named.

    A channel axis would vanish, too, if it were cut to length 1: so one channel stays, and each group keeps another.
    """
    labels = state.of(call.first)
    shape = shape_of(call.first)
    named = call.get("dim")
    if named is None:
        candidates = set(range(labels.rank))
    else:
        candidates = {dim % labels.rank for dim in ([named] if isinstance(named, int) else named)}
    if candidates & labels.dims:
        state.freeze(labels.ids.ravel()[:1], "would lose its channel axis if only one channel were kept", call)
    gone = {dim for dim in candidates if shape[dim] == 1}
    stays = [dim for dim in range(labels.rank) if dim not in gone]
    ids = labels.ids.reshape([labels.ids.shape[dim] for dim in stays])
    dims = frozenset(new for new, old in enumerate(stays) if old in labels.dims)
    return Labels(ids, dims) if dims else Labels.none(len(stays))


@rule("roll", "flip")
def around(state: Labelling, call: Call) -> Result:
    """Positions of some axes change places; along a channel axis that is not followed."""
    labels = state.of(call.first)
    moved = {dim % labels.rank for dim in call["dims"]} or set(range(labels.rank))
    return state.not_understood(call) if moved & labels.dims else labels


@rule("repeat", "tile")
def repeat(state: Labelling, call: Call) -> Result:
    """Whole copies side by side: each channel occurs as often as there are copies."""
    counts = list(call["repeats"] if call.get("repeats") is not None else call["dims"])
    if (gathered := channels_of_gathered(state, call)) is not None:
        return gathered
    labels = state.of(call.first)
    labels = labels.with_rank(max(labels.rank, len(counts)))
    counts = [1] * (labels.rank - len(counts)) + counts
    copies = [count if dim in labels.dims else 1 for dim, count in enumerate(counts)]
    return Labels(np.tile(labels.ids, copies), labels.dims)


@rule("repeat_interleave")
def repeat_each(state: Labelling, call: Call) -> Result:
    """Each position of an axis so many times in a row, as heads that share keys have these."""
    labels, count, dim = state.of(call.first), call.get("repeats"), call.get("dim")
    if not isinstance(count, int) or dim is None:
        return state.not_understood(call)
    return labels.repeated(dim % labels.rank, count)


@rule("index_select")
def selected(state: Labelling, call: Call) -> Result:
    """Some positions of one axis; of a channel axis that is not followed."""
    labels = state.of(call.first)
    if call["dim"] % labels.rank in labels.dims or state.of(call["index"]).dims:
        return state.not_understood(call)
    return labels
