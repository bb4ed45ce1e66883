"""Proves that the tables in ``lut/`` are readable, whole, and say how good they are."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.key import SCHEDULES
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.inputs import Inputs
from aap_hw.lut.enumeration import group_candidates, points_of
from aap_hw.lut.file import dump_table, load_table
from aap_hw.lut.sampling import next_points
from aap_hw.models import zoo

FOLDER = Path(__file__).parents[2] / "lut"
SHIPPED = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_table_reads_and_is_written_the_same(path: Path) -> None:
    table = load_table(path)
    assert dump_table(table) == path.read_text("utf-8")
    assert table.device["provenance"] == "measured"
    assert table.device["schedules"] == SCHEDULES


@pytest.mark.parametrize("name", ["mobilenetv2", "resnet20"])
def test_table_of_x86_answers_for_every_point_of_its_networks(name: str) -> None:
    table = load_table(FOLDER / "x86.json")
    model = zoo.build(name)
    inputs = Inputs.of(model.input_shape)
    graph = ChannelGraph.trace(model.module, inputs.zeros())
    network = partition(graph)
    how = table.measurement
    points = points_of(network, group_candidates(graph, how["granularity"], how["at_most"]))
    # Raises for a point that is neither measured nor between measured ones.
    assert all(table.latency(point).us > 0 for point in points)
    assert next_points(points, lambda at: table.latency(at).us if at in table else None, tolerance=math.inf) == []
    assert table.dense_ms(name, inputs) is not None
