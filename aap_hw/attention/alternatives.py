"""Other scores of channels than attention, for comparison: weight magnitude, batch-norm scale, first-order Taylor.

Each gives what ``attention_scores`` gives: for every group that may be cut, one number a channel, finite and not
negative. They are read off the parameters that a group's channels own, see ``aap_hw.graph.groups.groups.Axis``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.groups.groups import Axis, ChannelGroup
from aap_hw.graph.program.inputs import Batch, tensors_of
from aap_hw.graph.program.outputs import class_scores

Scores = dict[str, NDArray[np.float64]]
LabelledBatches = Iterable[tuple[Batch, Tensor]]

MAKERS = ("out", "depthwise")


def weight_l1(model: nn.Module, graph: ChannelGraph, batches: LabelledBatches = ()) -> Scores:
    """Sum of a filter's absolute weights; of all layers that make the channel, the mean (Li et al., 2017)."""
    state = dict(model.named_parameters())
    return {
        group.name: _mean([_by_channel(state[axis.parameter].detach().abs(), axis) for axis in _axes(group, MAKERS)])
        for group in _cuttable(graph)
    }


def batch_norm_scale(model: nn.Module, graph: ChannelGraph, batches: LabelledBatches = ()) -> Scores:
    """Absolute scale of the channel's batch normalisation, the mean of several (Liu et al., 2017).

    A group without one is scored by ``weight_l1``: its channels are only compared with each other.
    """
    state = dict(model.named_parameters())
    by_weight = weight_l1(model, graph)
    found = {}
    for group in _cuttable(graph):
        scales = [axis for axis in _axes(group, ("norm",)) if axis.parameter.rpartition(".")[2] == "weight"]
        found[group.name] = (
            _mean([_by_channel(state[axis.parameter].detach().abs(), axis) for axis in scales])
            if scales
            else by_weight[group.name]
        )
    return found


def taylor(model: nn.Module, graph: ChannelGraph, batches: LabelledBatches) -> Scores:
    """First-order estimate of the squared change of the loss if a channel went (Molchanov et al., 2019, equation 8).

    (sum over a filter's weights of weight * gradient)^2, added up over the batches and the layers that make the
    channel. The model is evaluated, not trained, and keeps no gradient.

    Raises
    ------
    UserError : there are no images.
    """
    state = dict(model.named_parameters())
    needed = {axis.parameter for group in _cuttable(graph) for axis in _axes(group, MAKERS)}
    weights = {name: state[name] for name in sorted(needed)}
    sums = {group.name: np.zeros(group.width) for group in _cuttable(graph)}
    was_training, required = model.training, {name: p.requires_grad for name, p in weights.items()}
    seen = 0
    try:
        model.eval()
        for parameter in weights.values():
            parameter.requires_grad_(True)
        for batch, labels in batches:
            seen += len(labels)
            loss = F.cross_entropy(class_scores(graph.call(model, tensors_of(batch))), labels)
            gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
            for group in _cuttable(graph):
                for axis in _axes(group, MAKERS):
                    product = weights[axis.parameter].detach() * gradients[axis.parameter]
                    sums[group.name] += _by_channel(product, axis) ** 2
    finally:
        model.train(was_training)
        for name, parameter in weights.items():
            parameter.requires_grad_(required[name])
    if not seen:
        raise UserError("there are no calibration images to read gradients from; pass at least one")
    return sums


ALTERNATIVES: dict[str, Callable[[nn.Module, ChannelGraph, LabelledBatches], Scores]] = {
    "weight-l1": weight_l1,
    "bn-scale": batch_norm_scale,
    "taylor": taylor,
}


def _cuttable(graph: ChannelGraph) -> list[ChannelGroup]:
    return [group for group in graph.groups if group.frozen is None]


def _axes(group: ChannelGroup, roles: tuple[str, ...]) -> list[Axis]:
    return [axis for axis in group.axes if axis.role in roles]


def _by_channel(values: Tensor, axis: Axis) -> NDArray[np.float64]:
    """Sum over everything of a parameter's values that belongs to each channel, shape (width,)."""
    along = values.double().movedim(axis.dim, 0).flatten(1).sum(1) if values.dim() > 1 else values.double()
    of_positions: NDArray[np.float64] = along.cpu().numpy()[axis.index].sum(axis=1)
    return of_positions


def _mean(scores: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = np.stack(scores).mean(axis=0)
    return mean
