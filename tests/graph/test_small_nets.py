"""A cut network computes what the whole network computes when nothing reads the channels that were cut.

Small networks, one for each way in which channels can be connected; hypothesis chooses the channels.
"""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph
from tests.graph import nets
from tests.graph.ground_truth import (
    IMAGES,
    assert_cut_equals_silenced,
    cut_graph,
    output,
    random_keep,
    silenced,
    traced,
)

each_net = pytest.mark.parametrize("net", nets.SOUND, ids=lambda net: net.__name__)


@functools.cache
def ready(net: type[nn.Module]) -> tuple[nn.Module, ChannelGraph, Tensor]:
    torch.manual_seed(0)
    return traced(net(), IMAGES)


@each_net
@settings(max_examples=15)
@given(data=st.data())
def test_cut_model_equals_silenced_model(net: type[nn.Module], data: st.DataObject) -> None:
    model, graph, images = ready(net)
    keep = {}
    for group in graph.groups:
        if group.frozen is None and data.draw(st.booleans(), label=f"cut {group.name}"):
            channels = st.sets(st.integers(0, group.width - 1), min_size=1)
            keep[group.name] = list(data.draw(channels, label=group.name))
    assert_cut_equals_silenced(model, graph, images, keep)


@each_net
def test_every_group_but_the_last_can_be_cut(net: type[nn.Module]) -> None:
    _, graph, _ = ready(net)
    assert len(graph.groups) >= 3
    assert [group.frozen is None for group in graph.groups] == [True] * (len(graph.groups) - 1) + [False]
    assert graph.unsupported_ops() == {}


@each_net
def test_every_width_is_foretold_and_a_cut_model_can_be_cut_again(net: type[nn.Module]) -> None:
    model, graph, images = ready(net)
    keep = random_keep(graph, seed=1)
    smaller = graph.cut(model, keep)
    again = cut_graph(graph, smaller, keep, images)
    assert [group.name for group in again.groups] == [group.name for group in graph.groups]
    assert again.widths == graph.widths | {name: len(kept) for name, kept in keep.items()}
    assert_cut_equals_silenced(smaller, again, images, random_keep(again, seed=2))


@each_net
def test_silencing_changes_the_output(net: type[nn.Module]) -> None:
    """Guards the other tests: a comparison of outputs that never change would prove nothing."""
    model, graph, images = ready(net)
    for group in graph.groups:
        if group.frozen is None and group.width > 1:
            difference = output(silenced(model, graph, {group.name: [0]}), images) - output(model, images)
            assert difference.abs().max() > 1e-4, group.name


@each_net
def test_cutting_leaves_the_model_as_it_was(net: type[nn.Module]) -> None:
    model, graph, _ = ready(net)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = [repr(module) for module in model.modules()]
    graph.cut(model, random_keep(graph, seed=3))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert attributes == [repr(module) for module in model.modules()]


def test_layer_attributes_match_the_cut_weights() -> None:
    model, graph, _ = ready(nets.Depthwise)
    smaller = graph.cut(model, {"stem.0": [1, 4]})
    twice, norm, slope = smaller.twice, smaller.norm, smaller.slope
    assert (twice.in_channels, twice.out_channels, twice.groups) == (2, 4, 2)
    assert norm.num_features == slope.num_parameters == 4
    assert torch.equal(norm.running_mean, model.norm.running_mean[[2, 3, 8, 9]])


def test_tied_parameters_stay_tied() -> None:
    model, graph, _ = ready(nets.Shared)
    smaller = graph.cut(model, {"a": [0, 3], "stem.0": [5, 2, 1]})
    assert smaller.a.weight is smaller.b.weight
    assert smaller.a.weight.shape == (2, 3, 1, 1)
    assert smaller.a.bias.shape == smaller.b.bias.shape == (2,)


def test_training_state_survives_tracing_and_cutting() -> None:
    model = nets.InPlaceResidual()
    model.b.weight.requires_grad_(False)
    model.stem.eval()
    flags = [module.training for module in model.modules()]
    graph = ChannelGraph.trace(model, (torch.zeros(IMAGES),))
    assert [module.training for module in model.modules()] == flags
    smaller = graph.cut(model, {"stem.0": [0, 1]})
    assert [module.training for module in smaller.modules()] == flags
    assert not smaller.b.weight.requires_grad
    assert smaller.a.weight.requires_grad
