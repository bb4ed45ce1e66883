"""Convolutions and linear layers: the ops that make channels.

Three kinds of convolution, plain or transposed: dense (new channels), depthwise (channels pass through, each with
its own filters) and grouped (new channels; all the groups keep the same local positions, so that the number of
groups stays). Filters that the model computes from a parameter, as weight standardisation does, can lose whole
filters but no inputs: what is computed of a filter depends on all of its inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.walk.absorbing import Rows
from aap_hw.graph.walk.labels import IntArray, Labels
from aap_hw.graph.walk.rules.pointwise import pointwise
from aap_hw.graph.walk.rules.registry import Result, rule

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling

_COMPUTED = "meets filters that the model computes"


@rule("conv1d", "conv2d", "conv3d")
def convolution(state: Labelling, call: Call) -> Result:
    """Input channels meet the weight's second axis, output channels are its first."""
    inputs, weight, groups = call["input"], call["weight"], int(call["groups"])
    filters = state.filters(weight)
    if filters is None and (groups == 1 or state.parameter_name(weight) is None):
        return state.not_understood(call, _COMPUTED)
    if filters is None:
        return _grouped_by_code(state, call)
    if groups > 1 and not isinstance(state.owner(filters.parameter), nn.modules.conv._ConvNd):
        return _grouped_by_code(state, call)
    rank = len(shape_of(inputs))
    channel_dim = rank - len(shape_of(weight)) + 1
    out_width, in_per_group = shape_of(weight)[:2]
    if (labels := state.of(inputs)).dims and min(labels.dims) > channel_dim and out_width == in_per_group == 1:
        return _along_channels(state, call, labels, filters)
    if channel_dim not in labels.dims and state.is_made(labels) and _is_of_single_places(call, channel_dim):
        return _mixing_places(state, call, labels, filters)
    incoming = state.channels(inputs, channel_dim, call)
    if groups > 1 and in_per_group == 1:
        made = state.made(filters, "depthwise")
        state.tie(incoming.repeat(out_width // groups), made, call)
    else:
        made = state.made(filters, "out")
        _read(state, call, incoming.reshape(groups, in_per_group), 1)
        by_group = made.reshape(groups, -1)
        state.tie(by_group, by_group[:1], call)
    return _made(state, call, made, rank, channel_dim)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(state: Labelling, call: Call) -> Result:
    """Input channels are the weight's first axis; its second are the output channels of one group."""
    inputs, weight, groups = call["input"], call["weight"], int(call["groups"])
    name = state.weight_name(weight)
    if name is None:
        return state.not_understood(call, _COMPUTED)
    if groups > 1 and not isinstance(state.owner(name), nn.modules.conv._ConvTransposeNd):
        return state.not_understood(call, "meets grouped filters whose number of groups the code fixes")
    rank = len(shape_of(inputs))
    channel_dim = rank - len(shape_of(weight)) + 1
    incoming = state.channels(inputs, channel_dim, call)
    in_width, out_per_group = shape_of(weight)[:2]
    if groups == in_width > 1:
        passing = state.parameter_axis(name, 0, "depthwise")
        state.tie(incoming, passing, call)
        made = passing.repeat(out_per_group)
    else:
        read = state.parameter_axis(name, 0, "in").reshape(groups, -1)
        state.tie(incoming.reshape(groups, -1), read, call)
        state.tie(read, read[:1], call)
        made = np.tile(state.parameter_axis(name, 1, "out"), groups)
    return _made(state, call, made, rank, channel_dim)


@rule("deform_conv2d")
def deformable_convolution(state: Labelling, call: Call) -> Result:
    """A dense convolution whose taps are moved; of what says where to nothing can go."""
    name = state.weight_name(call["weight"])
    if name is None or call["groups"] != 1 or call["offset_groups"] != 1:
        return state.not_understood(call)
    for argument in ("offset", "mask"):
        state.freeze(state.of(call[argument]), "says where an image is read", call)
    _read(state, call, state.channels(call["input"], 1, call), 1)
    return _made(state, call, state.parameter_axis(name, 0, "out"), 4, 1)


@rule("_weight_norm")
def weight_norm(state: Labelling, call: Call) -> Result:
    """Each filter is brought to a length of its own: as to labels, it is multiplied with a number."""
    return pointwise(state, call) if call["dim"] == 0 else state.not_understood(call)


@rule("linear")
def linear(state: Labelling, call: Call) -> Result:
    """Features run along the last axis of input and output; channels that run along another axis pass."""
    inputs, weight = call["input"], call["weight"]
    filters = state.filters(weight)
    if filters is None or len(shape_of(weight)) != 2:
        return state.not_understood(call, _COMPUTED)
    rank, labels, made = len(shape_of(inputs)), state.of(inputs), state.made(filters, "out")
    if rank - 1 not in labels.dims and state.is_made(labels):
        return _mixing_places(state, call, labels, filters)
    _read(state, call, state.channels(inputs, rank - 1, call), 1)
    if (matrix := state.matrix(weight)) is not None:  # which may be turned over
        state.parameter_axis(matrix[0], matrix[2], "in")
    return _made(state, call, made, rank, rank - 1)


@rule("embedding")
def embedding(state: Labelling, call: Call) -> Result:
    """Rows of a table, whose columns are the channels."""
    name, rank = state.weight_name(call["weight"]), len(call.out_shape)
    if name is None:
        return state.not_understood(call)
    if state.parameter_name(call["indices"]) is None:
        state.freeze(state.of(call["indices"]), "says which rows are taken", call)
    state.freeze(state.parameter_axis(name, 0, "fixed"), "is a row of a table that is read by its number", call)
    made = state.parameter_axis(name, 1, "out")
    state.produced(call.node, made)
    return Labels.along(rank, rank - 1, made)


def _mixing_places(state: Labelling, call: Call, labels: Labels, filters: Rows) -> Result:
    """Places are mixed, such as tokens, of each channel alone: channels pass, and nothing of the weight can go."""
    made = state.made(filters, "out")
    for axis in (made, state.parameter_axis(filters.parameter, 1 - filters.dim, "in")):
        state.freeze(axis, "is made along another axis than that of the channels", call)
    state.tie_parameter(call["bias"], made, "bias", call)
    return labels


def _is_of_single_places(call: Call, channel_dim: int) -> bool:
    """Whether a convolution of rows has windows of one place each, so that it is a linear layer."""
    is_same = call.out_shape[channel_dim + 1 :] == shape_of(call["input"])[channel_dim + 1 :]
    is_single = set(call["stride"]) == {1} and set(shape_of(call["weight"])[2:]) == {1}
    return call.name == "conv1d" and is_same and is_single and int(call["groups"]) == 1


def _along_channels(state: Labelling, call: Call, labels: Labels, filters: Rows) -> Result:
    """A window of one filter that slides along channels, of which each place makes one."""
    made = state.made(filters, "out")
    state.tie_parameter(call["bias"], made, "bias", call)
    state.produced(call.node, made)
    state.freeze(made, "slides along other channels", call)
    if len(labels.dims) > 1 or any(call.out_shape[dim] != shape_of(call["input"])[dim] for dim in labels.dims):
        return state.not_understood(call, "is mixed with neighbouring channels")
    state.renormalise(labels, call, "is mixed with neighbouring channels")
    return labels


def _read(state: Labelling, call: Call, incoming: IntArray, dim: int) -> None:
    """The channels `incoming` meet axis `dim` of the weight; of a computed weight that is not followed none can go."""
    name, inputs = state.weight_name(call["weight"]), state.across.get(call["weight"])
    if name is not None:
        state.tie(incoming, state.parameter_axis(name, dim, "in"), call)
    elif isinstance(inputs, Labels) and inputs.dims == {dim}:
        state.tie(incoming, inputs.ids.ravel(), call)
    else:
        state.freeze(incoming, _COMPUTED, call)


def _made(state: Labelling, call: Call, made: IntArray, rank: int, dim: int) -> Labels:
    state.tie_parameter(call["bias"], made, "bias", call)
    state.produced(call.node, made)
    return Labels.along(rank, dim, made)


def _grouped_by_code(state: Labelling, call: Call) -> Result:
    """Depthwise filters that no layer holds: the code passes the number of groups, which must follow."""
    inputs, weight, groups = call["input"], call["weight"], int(call["groups"])
    rank = len(shape_of(inputs))
    channel_dim = rank - len(shape_of(weight)) + 1
    labels = state.of(weight)
    is_depthwise = groups == shape_of(weight)[0] == shape_of(inputs)[channel_dim]
    if not is_depthwise or call["bias"] is not None or labels.dims - {0}:
        return state.not_understood(call, "meets grouped filters whose number of groups the code fixes")
    incoming = state.channels(inputs, channel_dim, call)
    if labels.dims:
        state.tie(incoming, labels.ids.ravel(), call)
    state.literal(call, [(groups, incoming)])
    return Labels.along(rank, channel_dim, incoming)
