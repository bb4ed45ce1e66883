"""Every construct of its own: what can be cut is found, and cut equals masked, in float64.

And the oracle itself: a column that is shifted by one does not pass.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from aap_hw.graph import ChannelGraph
from aap_hw.graph.walk.tables import tables_late
from tests.graph.constructs import CONSTRUCTS
from tests.graph.ground_truth import (
    assert_cut_equals_silenced,
    assert_widths_follow,
    output,
    random_keep,
    silenced,
    traced,
)

# Those that take several trials. Beside them every second one is slow, as neighbours are alike.
TRIALS = {
    "CellFromZeros",
    "ChannelsShiftedInTime",
    "CheckedNumberIsAFactor",
    "GridBesideChannels",
    "PaddedByAShare",
    "PaddedByWhatIsLacking",
    "PaddedOnBothSides",
    "PartsOfOnesAreFilled",
    "PiecesOfOneWeight",
    "ShiftedInTime",
    "SlicesOfAQuarter",
    "SplitByAttributeAndTheRest",
    "SplitCountedOnWhatIsRead",
    "StateReadByLinearLayers",
    "StatesOfEachChannel",
    "StatesTakenApart",
    "StatisticsPerChannel",
    "SumFromZeros",
    "TwiceAsManyStepsAsUnits",
    "ZerosOfANumber",
}
SLOW = TRIALS.union(list(CONSTRUCTS)[1::2])
each_construct = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CONSTRUCTS]
)


@functools.cache
def ready(name: str) -> tuple[nn.Module, ChannelGraph, Tensor]:
    torch.manual_seed(0)
    return traced(CONSTRUCTS[name](), CONSTRUCTS[name].shape)


def test_there_are_at_least_sixty_constructs() -> None:
    assert len(CONSTRUCTS) >= 60
    assert CONSTRUCTS.keys() >= SLOW


@each_construct
def test_cut_equals_masked_and_only_what_must_be_is_frozen(name: str) -> None:
    model, graph, images = ready(name)
    frozen = {group.name.partition("#")[0] for group in graph.groups if group.frozen}
    assert frozen == {*CONSTRUCTS[name].frozen, "head.linear"}
    keep = random_keep(graph, seed=1)
    masked = output(silenced(model, graph, keep), images)
    assert (masked - output(model, images)).abs().max() > 1e-4, "a mask that changes nothing proves nothing"
    smaller = assert_cut_equals_silenced(model, graph, images, keep)
    assert_widths_follow(graph, smaller, keep, images)


def test_tables_may_be_calculated_in_thousands_of_steps() -> None:
    graph = fx.Graph()
    steps = [table := graph.placeholder("table")]
    for _ in range(3000):
        steps.append(graph.call_function(torch.neg, (steps[-1],)))
    image = graph.placeholder("image")
    made = graph.call_function(torch.add, (image, steps[-1]))
    assert list(tables_late(graph.nodes, steps[1:])) == [table, image, *steps[1:], made]


def _shifted(graph: ChannelGraph) -> Iterator[tuple[str, str]]:
    """Shift the columns of one axis by one, of every axis of every group in turn; undone afterwards."""
    for number, group in enumerate(graph.groups):
        for place, axis in enumerate(group.axes):
            if group.frozen is None and group.width > 2 and len(group.axes) > 1:
                axes = list(group.axes)
                axes[place] = replace(axis, index=np.roll(axis.index, 1, axis=0))
                graph.groups[number] = replace(group, axes=tuple(axes))
                yield group.name, f"{axis.role} {axis.parameter}"
                graph.groups[number] = group


@pytest.mark.parametrize("name", ["DenseConvolution", "DepthwiseConvolutionWithMultiplier", "SplitByListOfSizes"])
def test_the_oracle_notices_columns_that_are_shifted_by_one(name: str) -> None:
    model, graph, images = ready(name)
    shifted = 0
    for group, axis in _shifted(graph):
        shifted += 1
        width = graph.group(group).width
        keep = {group: list(range(0, width, 2))}
        difference = output(graph.cut(model, keep), images) - output(silenced(model, graph, keep), images)
        assert difference.abs().max() > 1e-9, f"shifting {axis} of {group} went unnoticed"
    assert shifted == sum(len(group.axes) for group in graph.groups if group.frozen is None and group.width > 2) > 5
