"""Normalisation: batch and instance norm treat every channel alone; layer and group norm mix channels.

A cut would change the statistics that are taken over the remaining channels, and the cut network must compute what the
network with those channels silenced computes. So layer norm freezes the channels that it mixes, and group norm lets
only all channels that share statistics go together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from aap_hw.graph.call import Call, shape_of
from aap_hw.graph.rules.registry import Result, rule

if TYPE_CHECKING:
    from aap_hw.graph.labelling import Labelling


@rule("batch_norm", "instance_norm")
def per_channel(state: Labelling, call: Call) -> Result:
    """Weight, bias and running statistics follow the channels, which run along the second axis."""
    channels = state.channels(call["input"], 1, call)
    for argument in ("weight", "bias", "running_mean", "running_var"):
        state.tie_parameter(call[argument], channels, "norm", call)
    return state.of(call["input"])


@rule("layer_norm", "rms_norm")
def over_last_axes(state: Labelling, call: Call) -> Result:
    """Freezes channels that run along a normalised axis, lets others pass."""
    inputs = call["input"]
    rank = len(shape_of(inputs))
    normalised = range(rank - len(call["normalized_shape"]), rank)
    labels = state.of(inputs)
    if labels.dims.intersection(normalised):
        state.freeze(labels, "is normalised together with other channels", call)
    return labels


@rule("group_norm")
def over_channel_groups(state: Labelling, call: Call) -> Result:
    """Channels that share their statistics are cut together: with all of them, their statistics go too.

    How many groups there are is the layer's to say, so that `surgery` can make them fewer.
    """
    inputs, groups = call["input"], int(call["num_groups"])
    weight = None if call["weight"] is None else state.parameter_name(call["weight"])
    layer = None if weight is None else state.owner(weight)
    if groups == 1 or not isinstance(layer, nn.GroupNorm) or state.of(inputs).dims - {1}:
        state.freeze(state.of(inputs), "is normalised together with other channels", call)
        return state.of(inputs)
    channels = state.channels(inputs, 1, call)
    for argument in ("weight", "bias"):
        state.tie_parameter(call[argument], channels, "norm", call)
    by_group = channels.reshape(groups, -1)
    state.tie(by_group, by_group[:, :1], call)
    return state.of(inputs)
