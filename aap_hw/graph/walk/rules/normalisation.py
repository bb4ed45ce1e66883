"""Normalisation: batch and instance norm treat every channel alone; layer and group norm mix channels.

A cut changes the statistics of channels that are mixed: what a cut network computes is the whole network in which the
norm is taken over the channels that stay. Their group is called renormalised. Where a group norm has several groups,
all channels that share their statistics go together, and no other's change.

Norms that the model's code writes out are in `statistics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import nn
from torch.fx import Node

from aap_hw.graph.program.call import Call
from aap_hw.graph.program.source import path_of
from aap_hw.graph.walk.labels import NO_ATOM
from aap_hw.graph.walk.rules.registry import Result, rule

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling


@rule("batch_norm", "instance_norm")
def per_channel(state: Labelling, call: Call) -> Result:
    """Weight, bias and running statistics follow the channels, which run along the second axis.

    What runs along another axis is normalised over if the statistics are those of the batch: code standardises weights
    with it.
    """
    labels = state.of(call["input"])
    if call.get("training") and labels.dims and 1 not in labels.dims and len(labels.dims) == 1:
        state.renormalise(labels, call)
        return labels
    channels = state.channels(call["input"], 1, call)
    for argument in ("weight", "bias", "running_mean", "running_var"):
        state.tie_parameter(call[argument], channels, "norm", call)
    return state.of(call["input"])


@rule("layer_norm", "rms_norm")
def over_last_axes(state: Labelling, call: Call) -> Result:
    """Weight and bias follow channels that run along a normalised axis; others pass."""
    inputs, sizes = call["input"], list(call["normalized_shape"])
    labels = state.of(inputs)
    first = labels.rank - len(sizes)
    normalised = {dim for dim in labels.dims if dim >= first}
    if not normalised:
        return labels
    if labels.dims != normalised or len(normalised) > 1:
        state.freeze(labels, "is normalised together with channels that run along another axis", call)
        return labels
    (dim,), channels = normalised, labels.ids.ravel()
    for argument in ("weight", "bias"):
        if call.get(argument) is not None:
            state.tie_parameter(call[argument], channels, "norm", call, dim - first)
    weight = state.parameter_name(call["weight"])
    if weight is None or not isinstance(state.owner(weight), (nn.LayerNorm, nn.RMSNorm)):
        # Of PyTorch's layers `surgery` knows the shape by the weight.
        fixed = [(size, np.full(size, NO_ATOM)) for size in sizes]
        fixed[dim - first] = (sizes[dim - first], channels)
        state.literal(call, fixed)
    state.renormalise(labels, call)
    return labels


@rule("group_norm")
def over_channel_groups(state: Labelling, call: Call) -> Result:
    """One group is a norm over all channels; of several, channels that share their statistics are cut together.

    How many groups there are is the layer's to say, so that a cut can make them fewer: of a layer with a weight
    `surgery` does, of one without `trial.literals`.
    """
    inputs, groups = call["input"], int(call["num_groups"])
    weight = None if call["weight"] is None else state.parameter_name(call["weight"])
    if call["weight"] is None and call["bias"] is None:
        layer = _bare_layer(state, call)
    else:
        layer = None if weight is None else state.owner(weight)
    if (groups > 1 and not isinstance(layer, nn.GroupNorm)) or state.of(inputs).dims - {1}:
        state.freeze(state.of(inputs), "is normalised together with other channels", call)
        return state.of(inputs)
    channels = state.channels(inputs, 1, call)
    for argument in ("weight", "bias"):
        state.tie_parameter(call[argument], channels, "norm", call)
    if groups == 1:
        state.renormalise(state.of(inputs), call)
        return state.of(inputs)
    by_group = channels.reshape(groups, -1)
    state.tie(by_group, by_group[:, :1], call)
    return state.of(inputs)


def _bare_layer(state: Labelling, call: Call) -> nn.Module | None:
    """The layer without weights that is called here, and only here: another call would have groups of its own."""
    layer = _module_at(state, call.node)
    if layer is None or type(layer).forward is not nn.GroupNorm.forward or layer.state_dict():
        return None
    calls = (node for node in call.node.graph.nodes if node.op == "call_function" and Call(node).name == call.name)
    alike = [node for node in calls if _module_at(state, node) in (layer, None)]
    return layer if alike == [call.node] else None


def _module_at(state: Labelling, node: Node) -> nn.Module | None:
    """The innermost module in whose code a node is; None if it is not known."""
    return state.module(path_of(node))
