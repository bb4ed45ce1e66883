"""What a group says about itself: its name, its axes, where it is observed, how long tensors will be."""

from __future__ import annotations

import functools

import pytest
import torch
import torchvision.models as tv
from torch import nn

from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph, WidthExpr
from aap_hw.graph.groups.groups import find_groups
from aap_hw.graph.walk.labelling import Labelling
from tests.graph import nets
from tests.graph.ground_truth import IMAGES


@functools.cache
def mobilenet() -> ChannelGraph:
    return ChannelGraph.trace(tv.mobilenet_v2(), (torch.zeros(1, 3, 64, 64),))


def test_mobilenet_groups_are_the_ones_in_its_paper() -> None:
    """Stem, 16 expansions, 7 block outputs (shared within a stage), last convolution, classifier."""
    graph = mobilenet()
    expansions = [96, 144, 144, 192, 192, 192, 384, 384, 384, 384, 576, 576, 576, 960, 960, 960]
    stages = [16, 24, 32, 64, 96, 160, 320]
    assert sorted(graph.widths.values()) == sorted([32, *expansions, *stages, 1280, 1000])
    assert [group.name for group in graph.groups if group.frozen] == ["classifier.1"]
    assert [group.name for group in graph.groups][:4] == [
        "features.0.0",
        "features.1.conv.1",
        "features.2.conv.0.0",
        "features.2.conv.2",
    ]


def test_axes_name_every_parameter_of_a_residual_stream_with_its_role() -> None:
    stream = mobilenet().group("features.2.conv.2")
    weights = [(axis.role, axis.parameter) for axis in stream.axes if axis.role != "norm"]
    assert weights == [
        ("out", "features.2.conv.2.weight"),
        ("in", "features.3.conv.0.0.weight"),
        ("out", "features.3.conv.2.weight"),
        ("in", "features.4.conv.0.0.weight"),
    ]
    norms = {axis.parameter for axis in stream.axes if axis.role == "norm"}
    leaves = ("weight", "bias", "running_mean", "running_var")
    assert norms == {f"{norm}.{leaf}" for norm in ("features.2.conv.3", "features.3.conv.3") for leaf in leaves}
    expansion = mobilenet().group("features.2.conv.0.0")
    assert [axis.role for axis in expansion.axes if axis.role != "norm"] == ["out", "depthwise", "in"]


def test_observed_nodes_follow_the_activation_after_each_convolution() -> None:
    graph = mobilenet()
    nodes = {node.name: node for node in graph.program.graph.nodes}
    ops = {group.name: [str(nodes[name].target) for name in group.observed] for group in graph.groups}
    assert ops["features.2.conv.0.0"] == ["aten.hardtanh_.default"] * 2  # expansion, depthwise
    assert ops["features.1.conv.1"] == ["aten.batch_norm.default"]  # no activation follows
    assert ops["features.2.conv.2"] == [
        "aten.batch_norm.default",
        "aten.add.Tensor",
    ]  # two readers stop the walk
    for group in graph.groups:
        for name in group.observed:
            dim, places = graph.positions_of(name, group.name)
            assert (dim, places.ravel().tolist()) == (1, list(range(group.width)))


def test_residual_stream_of_a_resnet_is_observed_after_its_additions() -> None:
    graph = ChannelGraph.trace(tv.resnet18(), (torch.zeros(1, 3, 64, 64),))
    stream = graph.group("layer2.0.conv2")
    assert [axis.parameter for axis in stream.axes if axis.role == "out"] == [
        "layer2.0.conv2.weight",
        "layer2.0.downsample.0.weight",
        "layer2.1.conv2.weight",
    ]
    nodes = {node.name: node for node in graph.program.graph.nodes}
    assert [str(nodes[name].target) for name in stream.observed] == ["aten.relu_.default"] * 2


def test_width_of_an_axis_counts_the_channels_of_each_group_and_the_fixed_ones() -> None:
    graph = ChannelGraph.trace(nets.Concat(), (torch.zeros(IMAGES),))
    assert graph.width_of("x") == WidthExpr(3)
    assert graph.width_of("cat") == WidthExpr(3, (("a.0", 2), ("b.0", 1)))
    assert graph.width_of("flatten") == WidthExpr(0, (("a.0", 16), ("c.0", 16)))
    assert graph.width_of("flatten", dim=0) == WidthExpr(2)
    assert graph.width_of("linear", dim=-1) == WidthExpr(4)
    assert graph.width_of("p_linear_weight") == WidthExpr(0, (("a.0", 16), ("c.0", 16)))
    assert graph.width_of("cat").at({"a.0": 4, "b.0": 2}) == 13
    # The last of the image's channels, all of a.0 and all of b.0; behind them is a.0 again.
    assert graph.width_of("cat", part=slice(2, 14)) == WidthExpr(1, (("a.0", 1), ("b.0", 1)))
    assert graph.width_of("cat", 2, slice(1, None)) == WidthExpr(7)


def test_channels_in_a_shuffle_follow_their_group_along_one_of_the_axes_that_change_places() -> None:
    graph = ChannelGraph.trace(nets.Shuffle(), (torch.zeros(IMAGES),))
    (transposed,) = [node.name for node in graph.program.graph.nodes if "transpose" in node.name]
    assert graph.group("a.0").width == 2  # the grouped convolutions before and after tie 9 channels each
    assert graph.width_of(transposed, 1) == WidthExpr(0, (("a.0", 3),))
    assert graph.width_of(transposed, 2) == WidthExpr(3)
    assert graph.width_of("conv2d_2") == WidthExpr(0, (("a.0", 9),))


@pytest.mark.parametrize("net", nets.SOUND, ids=lambda net: net.__name__)
def test_arguments_by_keyword_give_the_same_groups(net: type[nn.Module]) -> None:
    model = net().eval()
    graph = ChannelGraph.trace(model, (torch.zeros(IMAGES),))
    for node in graph.program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None:
            names = [argument.name for argument in schema.arguments]
            node.kwargs = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
            node.args = ()
    groups = find_groups(Labelling(graph.program, model)).groups
    described = [
        [
            (
                group.name,
                group.frozen,
                group.observed,
                [(a.parameter, a.dim, a.role, a.index.tolist()) for a in group.axes],
            )
            for group in some
        ]
        for some in (groups, graph.groups)
    ]
    assert described[0] == described[1]


def test_values_and_parameters_say_which_groups_channels_they_hold() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1), nn.Conv2d(9, 2, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.last(torch.cat([self.left(image), self.right(image)], 1))

    graph = ChannelGraph.trace(Joined(), (torch.zeros(IMAGES),))
    assert {node.name: graph.groups_at(node.name) for node in graph.program.graph.nodes if node.op != "output"} == {
        "p_left_weight": {"left": {0}},
        "p_left_bias": {"left": {0}},
        "p_right_weight": {"right": {0}},
        "p_right_bias": {"right": {0}},
        "p_last_weight": {"last": {0}, "left": {1}, "right": {1}},
        "p_last_bias": {"last": {0}},
        "image": {},
        "conv2d": {"left": {1}},
        "conv2d_1": {"right": {1}},
        "cat": {"left": {1}, "right": {1}},
        "conv2d_2": {"last": {1}},
    }
    with pytest.raises(UserError, match="no node 'convolution'"):
        graph.groups_at("convolution")
