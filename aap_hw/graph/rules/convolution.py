"""Convolutions and linear layers: the ops that make channels.

Three kinds of convolution: dense (new channels), depthwise (channels pass through, each with its own filters)
and grouped (new channels; all the groups keep the same local positions, so that the number of groups stays).
Transposed convolutions are not covered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.fx import Node

from aap_hw.graph.call import Call, shape_of
from aap_hw.graph.labels import IntArray, Labels
from aap_hw.graph.rules.registry import Result, rule

if TYPE_CHECKING:
    from aap_hw.graph.labelling import Labelling

_COMPUTED = "meets filters that the model computes"


@rule("conv1d", "conv2d", "conv3d")
def convolution(state: Labelling, call: Call) -> Result:
    """Input channels meet the weight's second axis, output channels are its first."""
    inputs, weight, groups = call["input"], call["weight"], int(call["groups"])
    if state.parameter_name(weight) is None:
        return state.not_understood(call, _COMPUTED)
    if groups > 1 and not isinstance(state.owner(weight), nn.modules.conv._ConvNd):
        return state.not_understood(call, "meets grouped filters whose number of groups the code fixes")
    rank = len(shape_of(inputs))
    channel_dim = rank - len(shape_of(weight)) + 1
    incoming = state.channels(inputs, channel_dim, call)
    out_width, in_per_group = shape_of(weight)[:2]
    if groups > 1 and in_per_group == 1:
        made = _atoms(state, weight, 0, "depthwise")
        state.tie(incoming.repeat(out_width // groups), made, call)
    else:
        made = _atoms(state, weight, 0, "out")
        read = _atoms(state, weight, 1, "in")
        state.tie(incoming.reshape(groups, in_per_group), read, call)
        by_group = made.reshape(groups, -1)
        state.tie(by_group, by_group[:1], call)
    return _made(state, call, made, rank, channel_dim)


@rule("linear")
def linear(state: Labelling, call: Call) -> Result:
    """Features run along the last axis of input and output."""
    inputs, weight = call["input"], call["weight"]
    if state.parameter_name(weight) is None:
        return state.not_understood(call, _COMPUTED)
    if len(shape_of(weight)) != 2:
        return state.not_understood(call)
    rank = len(shape_of(inputs))
    state.tie(state.channels(inputs, rank - 1, call), _atoms(state, weight, 1, "in"), call)
    return _made(state, call, _atoms(state, weight, 0, "out"), rank, rank - 1)


def _atoms(state: Labelling, weight: Node, dim: int, role: str) -> IntArray:
    atoms = state.parameter_axis(weight, dim, role)
    assert atoms is not None
    return atoms


def _made(state: Labelling, call: Call, made: IntArray, rank: int, dim: int) -> Labels:
    state.tie_parameter(call["bias"], made, "bias", call)
    state.produced(call.node, made)
    return Labels.along(rank, dim, made)
