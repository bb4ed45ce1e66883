"""Batch norms taken into the convolutions before them, for networks that are run often as they are.

A batch norm that was trained multiplies each channel by a factor and adds a number to it. The convolution can do both,
and two passes over its result are saved, and four when gradients are taken. What the compiler does with the same norms
is in ``aap_hw.compile.library.folding``.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, fx

from aap_hw.graph.program.call import Call

_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}


def fold_norms(network: fx.GraphModule, kept: Collection[str]) -> None:
    """Take batch norms into the convolutions before them, in place; every other value is as it was but for rounding.

    Parameters
    ----------
    network
        A program's own module in evaluation mode, which is to be interpreted: its code is not generated anew.
    kept
        Names of nodes whose values are needed: no norm is taken into these.
    """
    for node in list(network.graph.nodes):
        if node.op == "call_function" and Call(node).name == "batch_norm" and not Call(node)["training"]:
            layer = Call(node)["input"]
            is_needed = layer.name in kept or len(layer.users) > 1
            if layer.op == "call_function" and Call(layer).name in _CONVOLUTIONS and not is_needed:
                _fold(network, layer, node)


def _fold(network: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> None:
    """Let the norm's node be the convolution that does both, unless something that the two read is computed."""
    convolution, normalisation = Call(layer), Call(norm)
    read = [convolution[name] for name in ("weight", "bias")]
    read += [normalisation[name] for name in ("weight", "bias", "running_mean", "running_var")]
    if any(each is not None and each.op != "get_attr" for each in read):
        return
    weight, bias, factor, shift, mean, variance = (None if each is None else _tensor(network, each) for each in read)
    if weight is None or mean is None or variance is None or weight.dtype != norm.meta["val"].dtype:
        return
    scale = torch.rsqrt(variance.double() + normalisation["eps"]) * (1.0 if factor is None else factor)
    moved = (0.0 if shift is None else shift) + ((0.0 if bias is None else bias) - mean) * scale
    scaled = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    arguments = {name: convolution[name] for name in ("input", "stride", "padding", "dilation", "groups")}
    with network.graph.inserting_before(norm):
        for name, each in (("weight", scaled), ("bias", moved)):
            network.register_buffer(f"{norm.name}_{name}", each.to(weight.dtype))
            arguments[name] = network.graph.get_attr(f"{norm.name}_{name}")
    norm.target, norm.args, norm.kwargs = layer.target, (), arguments
    for unread in (layer, *(each for each in dict.fromkeys(read) if each is not None)):
        if not unread.users:
            network.graph.erase_node(unread)


def _tensor(network: fx.GraphModule, node: fx.Node) -> Tensor:
    """The weight or statistic that a node stands for."""
    owner, _, name = str(node.target).rpartition(".")
    found: Tensor = getattr(network.get_submodule(owner), name)
    return found.detach()
