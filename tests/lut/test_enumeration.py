"""Proves which points a table needs for a network: written down by hand for a network of two convolutions."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from aap_hw.compile.front.partition import partition
from aap_hw.device import load_profile
from aap_hw.graph import ChannelGraph
from aap_hw.lut.enumeration import granularity_of, group_candidates, points_of
from tests.compile.running import target
from tests.graph.attention_nets import DIM, HEADS, FittingHeads, Fused
from tests.lut.tiny import CLASSES, FIRST_WIDTHS, INPUT, POINTS, SECOND_WIDTHS, Joined, Tiny


def test_points_of_a_small_network_are_those_written_down_by_hand() -> None:
    graph = ChannelGraph.trace(Tiny(), INPUT.zeros())
    network = partition(graph)
    candidates = group_candidates(graph, 8, 8)
    assert candidates == {"first": FIRST_WIDTHS, "second": SECOND_WIDTHS, "linear": (CLASSES,)}
    points = points_of(network, candidates)
    assert len(points) == len(set(points)) == POINTS
    assert {(point.key.op, *point.widths) for point in points} == {
        *(("conv2d", 3, out) for out in FIRST_WIDTHS),
        *(("conv2d", *pair) for pair in product(FIRST_WIDTHS, SECOND_WIDTHS)),
        *(("global_avg_pool2d", width, width) for width in SECOND_WIDTHS),
        *(("linear", width, CLASSES) for width in SECOND_WIDTHS),
    }
    assert [kernel.groups for kernel in network.kernels] == [
        ("first",),
        ("first", "second"),
        ("second",),
        ("second",),
    ]


def test_any_number_of_heads_is_a_candidate_where_the_code_cuts_whole_ones() -> None:
    graph = ChannelGraph.trace(FittingHeads(HEADS).eval(), (torch.zeros(1, 5, DIM),))
    assert group_candidates(graph, 8, 8) == {"q": (1, 2, 3), "proj": (DIM,)}


def test_kernels_of_many_groups_are_listed_by_the_sums_of_their_widths() -> None:
    """With 40 groups there are 3 ** 40 combinations."""
    for parts in (3, 40):
        graph = ChannelGraph.trace(Joined(parts).eval(), INPUT.zeros())
        candidates = {**dict.fromkeys(group_candidates(graph, 8, 8), (8, 16, 24)), "last": (4,)}
        points = points_of(partition(graph), candidates)
        assert len(points) == len(set(points))
        sums = range(8 * parts, 24 * parts + 1, 8)
        found = {(point.key.op, *point.widths) for point in points}
        assert {widths for widths in found if widths[0] == "concat"} == {("concat", width, width) for width in sums}
        squeeze = {widths for widths in found if widths[0] == "conv2d" and widths[1] != 3 and widths[2] != 4}
        assert squeeze == {("conv2d", *pair) for pair in product(sums, (8, 16, 24))}


def test_at_most_limits_the_candidates_of_a_group() -> None:
    graph = ChannelGraph.trace(Tiny(), INPUT.zeros())
    assert group_candidates(graph, 8, 2) == {"first": (16, 24), "second": (24, 40), "linear": (CLASSES,)}
    assert group_candidates(graph, 64, 8) == {"first": (24,), "second": (40,), "linear": (CLASSES,)}


def test_any_number_of_heads_is_a_candidate() -> None:
    graph = ChannelGraph.trace(Fused().eval(), (torch.zeros(1, 5, DIM),), heads=True)
    assert group_candidates(graph, 8, 8) == {"qkv:heads": (1, 2, 3), "proj": (DIM,)}
    assert group_candidates(graph, 8, 2)["qkv:heads"] == (2, 3)


@pytest.mark.parametrize(("granularity", "expected"), [("vector", target().lanes), (3, 3)])
def test_granularity_is_a_number_or_one_vector(granularity: object, expected: int) -> None:
    profile = load_profile("x86")
    widths = profile.widths.model_copy(update={"granularity": granularity})
    assert granularity_of(profile.model_copy(update={"widths": widths}), target()) == expected
