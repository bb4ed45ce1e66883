"""Attention as the layers that read a channel see it: how much of what they compute varies with it.

The published score is the mean activation of a channel. What is the same everywhere in all images says nothing, however
large: the reader's batch normalisation or bias takes it up as soon as training goes on. And a channel that its readers
have small weights for is hardly missed. So here a channel counts by how much its activation varies, times the weights
that read it. Which nodes are observed is decided in `aap_hw.attention.observer`; how much a group matters beside others
is told by `aap_hw.attention.sensitivity`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Node

from aap_hw.graph import ChannelGraph
from aap_hw.graph.groups.groups import Axis
from aap_hw.graph.program.call import Call

Array = NDArray[np.float64]
READERS = frozenset({"conv1d", "conv2d", "conv3d", "linear"})


def read_attention(
    model: nn.Module,
    graph: ChannelGraph,
    variances: Mapping[str, Array],
    products: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Score of every channel of every group that may be cut: ``V_c * sum over readers of |W[:, c]|^2``.

    That is the variance that a channel adds to what its readers compute, if channels vary independently. W are a
    reader's weights with the batch normalisation behind it folded in, so that readers compare. A group without readers
    (nothing but depthwise or elementwise operations) is scored by ``V_c``.

    Parameters
    ----------
    variances
        ``V_c`` of every channel by group, shape ``(width,)``; see ``AttentionObserver.variances``.
    products
        What products with other activations read of channels, such as those of queries and keys, in the same unit; see
        ``AttentionObserver.products``.
    """
    state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    scales = batch_norm_scales(graph, state)
    found = {}
    for group in graph.groups:
        if group.frozen is None:
            readers = [axis for axis in group.axes if axis.role == "in"]
            squares = [_squares(state[axis.parameter], axis, scales.get(axis.parameter)) for axis in readers]
            by_products = (products or {}).get(group.name)
            if squares or by_products is None:
                found[group.name] = variances[group.name] * (np.sum(squares, axis=0) if squares else 1.0)
            if by_products is not None:
                found[group.name] = found.get(group.name, 0.0) + by_products
    return found


def _squares(weight: Tensor, axis: Axis, scale: Tensor | None) -> Array:
    """Sum of the squared weights that read each channel, shape (width,)."""
    squared = weight.detach().double().square()
    if scale is not None:
        squared = squared * scale.square().reshape(-1, *[1] * (squared.dim() - 1))
    by_input = squared.movedim(axis.dim, 0).flatten(1).sum(1).cpu().numpy()
    squares: Array = by_input[axis.index].sum(axis=1)
    return squares


def batch_norm_scales(graph: ChannelGraph, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What batch normalisation multiplies each output of a layer by, by the layer's weights."""
    signature = graph.program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}

    def tensor(node: object) -> Tensor | None:
        return state.get(names.get(node.name, "")) if isinstance(node, Node) else None

    found = {}
    for node in graph.program.graph.nodes:
        call = Call(node)
        if node.op != "call_function" or call.name != "batch_norm" or not isinstance(call["input"], Node):
            continue
        layer, variance, weight = call["input"], tensor(call["running_var"]), tensor(call["weight"])
        if len(layer.users) == 1 and Call(layer).name in READERS and variance is not None:
            read = Call(layer)["weight"]
            scale = torch.rsqrt(variance.detach().double() + call["eps"])
            found[names.get(read.name, "")] = scale if weight is None else scale * weight.detach().double()
    return found
