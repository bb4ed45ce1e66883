"""Pooling, resampling and padding: ops on the last axes that leave the channels alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aap_hw.graph.program.call import Call, added_by_padding, shape_of
from aap_hw.graph.walk.labels import Labels
from aap_hw.graph.walk.rules.pointwise import merge
from aap_hw.graph.walk.rules.registry import Result, rule

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling

EXTRA = "meets extra channels, in a number that the model's code fixes"


@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def pool_to_size(state: Labelling, call: Call) -> Result:
    """Channels may run along an axis that stays as long, too: ``nn.AdaptiveAvgPool2d((None, 1))`` of a turned image.

    The code may also pass the number of channels in place of None.
    """
    labels = state.of(call.first)
    along = [dim for dim in labels.dims if dim >= labels.rank - int(call.name[-2])]
    if along and (len(labels.dims) > 1 or call.out_shape[along[0]] != shape_of(call.first)[along[0]]):
        return state.not_understood(call)
    for dim in along:
        state.length(call, dim, call.out_shape[dim], labels.ids.ravel())
    return labels


@rule(
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_pool3d",
    "max_pool3d_with_indices",
    "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa",
    "upsample_bicubic2d",
    "upsample_bilinear2d",
    "upsample_linear1d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "upsample_trilinear3d",
)
def pool_or_resample(state: Labelling, call: Call) -> Result:
    """The last 1, 2 or 3 axes, as the op's name says, are worked on; channels run before them."""
    labels = state.of(call.first)
    worked_on = next(count for count in (1, 2, 3) if f"{count}d" in call.name)
    first = labels.rank - worked_on
    if any(dim >= first and not _is_one_place(call, dim - first, worked_on) for dim in labels.dims):
        return state.not_understood(call)
    return (labels,) * len(call.out_shapes) if len(call.out_shapes) > 1 else labels


@rule("max_unpool2d", "max_unpool3d")
def unpool(state: Labelling, call: Call) -> Result:
    """Each value goes back to where the maximum was, in its own channel: numbers of places belong to the channels."""
    values, places = state.of(call["self"]), state.of(call["indices"])
    axis = values.rank - int(call.name[-2]) - 1
    if (values.dims | places.dims) - {axis}:
        return state.not_understood(call)
    return merge(state, call, [values, places], [shape_of(call["self"]), shape_of(call["indices"])])


def _is_one_place(call: Call, axis: int, axes: int) -> bool:
    """Whether a pooling's windows are of one place each along an axis, so that each value stays where it is."""
    kernel = call.get("kernel_size")
    if kernel is None:
        return False
    named = {"kernel_size": 1, "stride": 1, "padding": 0}
    along = {name: list(call[name]) or list(kernel) for name in named}
    return all(
        (given * axes)[axis] == named[name] if len(given) == 1 else given[axis] == named[name]
        for name, given in along.items()
    )


@rule("pad", "constant_pad_nd")
def pad(state: Labelling, call: Call) -> Result:
    """Padding a channel axis adds channels that no filter makes, before and behind those that are there.

    They meet others that layers make, as in the shortcuts of small ResNets, and can go with these if the code's number
    follows. Those of two equally wide sides, mostly halves of one number, go two by two; of two unequal sides none can.
    """
    labels = state.of(call.first)
    amounts = added_by_padding(call)
    padded = [dim for dim in sorted(labels.dims) if any(amounts[dim])]
    if not padded:
        return labels
    (dim, *others), is_constant = padded, call.name == "constant_pad_nd" or call["mode"] == "constant"
    if others or labels.dims != {dim} or min(amounts[dim]) < 0 or not is_constant:
        state.freeze(labels, "is padded with extra channels", call)
        return labels.none(labels.rank)
    before, behind = (state.ties.new_atoms(amount) for amount in amounts[dim])
    if before.size == behind.size:
        state.tie(before, behind, call)
    elif before.size and behind.size:
        state.freeze(np.concatenate([before, behind]), EXTRA, call)
    state.literal(call, [(ids.size, ids) for ids in (before, behind) if ids.size])
    return Labels.along(labels.rank, dim, np.concatenate([before, labels.ids.ravel(), behind]))


@rule("grid_sampler")
def sampled(state: Labelling, call: Call) -> Result:
    """Each channel is sampled at the same places; of what says where nothing can go."""
    labels = state.of(call["input"])
    if labels.dims - {1}:
        return state.not_understood(call)
    state.freeze(state.of(call["grid"]), "says where an image is sampled", call)
    return labels
