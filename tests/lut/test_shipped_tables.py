"""Proves that the tables in ``lut/`` are readable, whole, and say how good they are."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import SCHEDULES
from aap_hw.device import load_profile
from aap_hw.estimate.estimator import estimator_of
from aap_hw.estimate.published import published
from aap_hw.graph import ChannelGraph
from aap_hw.inputs import Inputs
from aap_hw.lut.enumeration import group_candidates, points_of
from aap_hw.lut.file import dump_table, load_table, rounded
from aap_hw.lut.lacking import of_one_width
from aap_hw.lut.sampling import next_points
from aap_hw.lut.table import NetworkName
from aap_hw.models import zoo

FOLDER = Path(__file__).parents[2] / "lut"
SHIPPED = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_table_reads_and_is_written_the_same(path: Path) -> None:
    table = load_table(path)
    assert dump_table(table) == path.read_text("utf-8")
    assert table.device["provenance"] == ("measured" if path.stem == "x86" else "estimated")
    assert table.device["schedules"] == SCHEDULES


@pytest.mark.parametrize("name", ["mobilenetv2", "resnet20"])
def test_tables_answer_for_every_point_of_their_networks(name: str) -> None:
    model = zoo.build(name)
    inputs = Inputs.of(model.input_shape)
    traced = ChannelGraph.trace(model.module, inputs.zeros())
    network = partition(traced)
    for table in map(load_table, SHIPPED):
        how = table.measurement
        fixed = of_one_width(network, traced, table, NetworkName(name, inputs))
        # It was measured before shortcuts that pad channels could be cut.
        assert [*fixed] == (["conv1", "layer3.0.conv2"] if (table.device["name"], name) == ("x86", "resnet20") else [])
        graph = traced.frozen(fixed)
        points = points_of(network, group_candidates(graph, how["granularity"], how["at_most"]))
        # Raises for a point that is neither known nor between known ones.
        assert all(table.latency(point).us > 0 for point in points)
        known = {at: table.latency(at).us for at in points if at in table}
        assert next_points(points, known.get, tolerance=math.inf) == []
        assert NetworkName(name, inputs) in table.networks
        assert (table.dense_ms(name, inputs) is None) == table.is_estimated


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.stem != "x86"], ids=lambda path: path.name)
def test_estimates_are_those_of_the_method_as_it_is(path: Path) -> None:
    table, estimator = load_table(path), estimator_of(load_profile(path.stem))
    assert table.measurement["method"] == estimator.method
    assert table.measurement["error"] == estimator.error
    assert published()["methods"][path.stem] == estimator.method
    assert table.device["profile_hash"] == load_profile(path.stem).profile_hash
    held = [Address(key, widths) for key, points in sorted(table.points.items()) for widths in points]
    for address in held[:: len(held) // 5]:
        assert table.latency(address).us == rounded(estimator.latency_us(address))
