"""Ops that deal channels out anew: channel shuffle, pixel shuffle and its inverse, unfolded patches."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from aap_hw.graph.program.call import Call
from aap_hw.graph.walk.labels import Labels
from aap_hw.graph.walk.rules.registry import Result, rule

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(state: Labelling, call: Call) -> Result:
    """Channel j of group g becomes channel j * groups + g; all groups lose the same positions."""
    rank = len(call.out_shape)
    ids = state.channels(call.first, 1, call).reshape(int(call["groups"]), -1)
    state.tie(ids, ids[:1], call)
    return Labels.along(rank, 1, ids.T.ravel())


@rule("pixel_shuffle")
def pixel_shuffle(state: Labelling, call: Call) -> Result:
    """Factor squared neighbouring channels become the pixels of one."""
    rank, factor = len(call.out_shape), int(call["upscale_factor"])
    ids = state.channels(call.first, rank - 3, call).reshape(-1, factor**2)
    state.tie(ids, ids[:, :1], call)
    return Labels.along(rank, rank - 3, ids[:, 0])


@rule("pixel_unshuffle")
def pixel_unshuffle(state: Labelling, call: Call) -> Result:
    """The pixels of one channel become factor squared neighbouring channels."""
    rank, factor = len(call.out_shape), int(call["downscale_factor"])
    return Labels.along(rank, rank - 3, state.channels(call.first, rank - 3, call).repeat(factor**2))


@rule("im2col")
def patches(state: Labelling, call: Call) -> Result:
    """Each channel's pixels of a patch become neighbouring channels: (N, C, H, W) to (N, C * pixels, patches)."""
    if len(call.out_shape) != 3:
        return state.not_understood(call)
    return Labels.along(3, 1, state.channels(call.first, 1, call).repeat(math.prod(call["kernel_size"])))


@rule("col2im")
def from_patches(state: Labelling, call: Call) -> Result:
    """The inverse: all the pixels of a channel's patch go together."""
    if len(call.out_shape) != 4:
        return state.not_understood(call)
    ids = state.channels(call.first, 1, call).reshape(-1, math.prod(call["kernel_size"]))
    state.tie(ids, ids[:, :1], call)
    return Labels.along(4, 1, ids[:, 0])
