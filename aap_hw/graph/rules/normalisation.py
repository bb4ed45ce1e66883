"""Normalisation: batch and instance norm treat every channel alone; layer and group norm mix channels.

A cut would change the statistics that layer and group norm take over the remaining channels, so they freeze
the channels they mix: the cut network must compute what the network with those channels silenced computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    """Freezes the channels."""
    labels = state.of(call["input"])
    state.freeze(labels, "is normalised together with other channels", call)
    return labels
