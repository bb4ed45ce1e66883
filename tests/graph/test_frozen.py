"""A group is never wrong: what must not be cut is frozen and says why, and what is left can still be cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph
from tests.graph.constructs.padded import PaddedByANumber
from tests.graph.ground_truth import (
    IMAGES,
    assert_cut_equals_silenced,
    assert_widths_follow,
    random_keep,
    traced,
)
from tests.graph.treacherous import FROZEN, Net

# Close to one of the others, whose reason they share.
SLOW = {
    "ambiguous shuffle",
    "as many as channels everywhere",
    "as many as channels in a new tensor",
    "at most the number of channels",
    "count of other channels",
    "depthwise without a layer",
    "divided by a count of ones",
    "division by the number of channels",
    "filters read as a whole",
    "halves of the batch",
    "literal flatten",
    "literal slice",
    "literal view",
    "maximum over all",
    "places and channels summed over",
    "pooled to a number of channels",
    "power of the number of channels",
    "product of two matrices of parameters",
    "root of the number of channels as a tensor",
    "squeeze channels",
    "sum with a product divided by the number of channels",
    "sum with ones",
    "zeros beside",
    "zeros of the same shape",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FROZEN]
)
def test_channels_that_must_not_be_cut_are_frozen_with_a_reason(name: str) -> None:
    between, channels, word = FROZEN[name]
    torch.manual_seed(0)
    model, graph, images = traced(Net(between, channels), IMAGES)
    stem = graph.group("stem.0")
    assert stem.frozen is not None
    assert word in stem.frozen
    keep = random_keep(graph, seed=1)
    smaller = assert_cut_equals_silenced(model, graph, images, keep)
    assert_widths_follow(graph, smaller, keep, images)


def test_the_reason_names_the_call_as_it_is_written_and_its_line() -> None:
    graph = ChannelGraph.trace(PaddedByANumber(), (torch.zeros(IMAGES),))
    frozen = {group.name: group.frozen for group in graph.groups if group.frozen}
    assert list(frozen) == ["wide", "head.linear"]
    padded, read = map(str, frozen.values())
    assert padded.startswith("meets extra channels, in a number that the model's code fixes (F.pad, base.py:")
    assert read.startswith("reaches the network's output (nn.Linear 'head.linear', nets.py:")


def test_both_sides_of_an_addition_freeze_if_one_does() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x), self.b(x)
            return self.c(a + b), b.flip(1)

    graph = ChannelGraph.trace(Sum(), (torch.zeros(IMAGES),))
    assert graph.groups[0].name == "a"
    assert [axis.parameter for axis in graph.groups[0].axes if axis.role == "out"] == ["a.weight", "b.weight"]
    assert all(group.frozen for group in graph.groups)
    assert graph.unsupported_ops() == {"x.flip": 1}


def test_outputs_in_a_dictionary_and_the_input_freeze() -> None:
    class Pieces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.on_image = nn.Conv2d(3, 3, 3, groups=3)
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
            a = self.a(self.on_image(x)).relu()
            return {"maps": [a, self.b(a)]}

    groups = ChannelGraph.trace(Pieces(), (torch.zeros(IMAGES),)).groups
    assert [group.name for group in groups] == ["on_image", "a", "b"]
    assert all(group.frozen for group in groups)


def test_a_layer_whose_channels_have_different_fates_makes_two_groups() -> None:
    class Fates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sum, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 5, 1), nn.Conv2d(3, 3, 1)
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.sum(x) + torch.cat([self.a(x), self.b(x)], 1)))

    model, graph, images = traced(Fates(), IMAGES)
    assert graph.widths == {"sum": 5, "sum#2": 3, "last": 4}
    assert [group.observed for group in graph.groups] == [
        ("relu", "conv2d_1"),
        ("relu", "conv2d_2"),
        ("conv2d_3",),
    ]
    dim, places = graph.positions_of("relu", "sum#2")
    assert (dim, places.tolist()) == (1, [[5], [6], [7]])
    keep = {"sum": [1, 4], "sum#2": [0, 2]}
    smaller = assert_cut_equals_silenced(model, graph, images, keep)
    assert_widths_follow(graph, smaller, keep, images)


def test_a_model_without_filters_has_no_groups() -> None:
    graph = ChannelGraph.trace(nn.ReLU(), (torch.zeros(IMAGES),))
    assert graph.groups == []
    assert graph.width_of("relu").at({}) == 3


def test_one_channel_stays_where_an_axis_of_one_would_vanish() -> None:
    def between(_: Net, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True).squeeze()[:, :, None, None]

    model, graph, images = traced(Net(between), IMAGES)
    stem, rest = graph.group("stem.0"), graph.group("stem.0#2")
    assert (stem.width, rest.width, rest.frozen) == (1, 7, None)
    assert_cut_equals_silenced(model, graph, images, {rest.name: [4]})


def test_sums_of_values_whose_size_depends_on_the_input_are_no_branches() -> None:
    class Found(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            places = x[0, 0].nonzero()
            return self.b(self.a(x)), places + places

    graph = ChannelGraph.trace(Found(), (torch.zeros(IMAGES),))
    assert [group.name for group in graph.groups if group.frozen is None] == ["a"]


def test_codes_that_the_code_computes_say_what_to_do_about_them() -> None:
    def between(_: Net, x: Tensor) -> Tensor:
        channels = torch.arange(x.shape[1], dtype=x.dtype) / x.shape[1]
        return x + torch.sin(100**channels)[:, None, None]

    _, graph, _ = traced(Net(between), IMAGES)
    assert (graph.group("stem.0").frozen or "").startswith(
        "meets values that the code computes for this many channels; in a buffer made by __init__, they could be cut ("
    )
