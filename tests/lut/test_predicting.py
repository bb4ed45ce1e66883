"""Proves that a prediction is the sum of the table's entries, and that a policy is given exactly those entries."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.compile.front.network import Kernel
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.key import KernelKey
from aap_hw.graph import ChannelGraph, WidthExpr
from aap_hw.lut.enumeration import group_candidates, points_of
from aap_hw.lut.file import load_table, save_table
from aap_hw.lut.lacking import profile_command
from aap_hw.lut.merging import merge
from aap_hw.lut.networks import MeasuredNetwork
from aap_hw.lut.predicting import cost_parts, kernel_costs, kernel_latencies, latency_costs, predict_us
from aap_hw.lut.table import LatencyPoint, LatencyTable, MissingKernelError, NetworkName
from aap_hw.policy import KernelCost
from tests.lut.tables import empty
from tests.lut.tiny import FIRST, INPUT, SECOND, Joined, Tiny

GRAPH = ChannelGraph.trace(Tiny(), INPUT.zeros())
NETWORK = partition(GRAPH)
CANDIDATES = group_candidates(GRAPH, 8, 8)
TABLE = empty()
for _number, _address in enumerate(points_of(NETWORK, CANDIDATES)):
    TABLE.add(_address.key, LatencyPoint(_address.widths, 1.0 + _number**1.5, 0.1, 20))

plans = st.fixed_dictionaries({"first": st.integers(1, FIRST), "second": st.integers(1, SECOND), "linear": st.just(10)})


def test_command_that_measures_a_network_can_be_pasted() -> None:
    name = NetworkName("my nets/net.py:build", INPUT, "int8")
    words = shlex.split(profile_command(TABLE, name, heads=True, floats=["first", "a layer"]))
    assert words[:2] == ["aap-hw", "profile"]
    assert words[4:8] == ["--model", "my nets/net.py:build", "--input", "3x6x6"]
    assert words[8:] == [
        "--precision", "int8", "--float-layer", "a layer", "--float-layer", "first", "--attention-cuts", "heads",
    ]  # fmt: skip


def test_calibration_is_out_of_date_once_a_merge_brings_quicker_points(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    first, second = (LatencyTable(TABLE.device, dict(TABLE.measurement)) for _ in range(2))
    for key, of_key in TABLE.points.items():
        for point in of_key.values():
            first.add(key, point)
            second.add(key, replace(point, latency_us=point.latency_us * 0.9))

    def job(table: LatencyTable) -> MeasuredNetwork:
        return MeasuredNetwork(NetworkName("tiny", INPUT), Tiny(), GRAPH, NETWORK, table, path)

    before = job(first)
    measured = before.calibration_plans(4)
    before.take({plan: 1.2 * predict_us(NETWORK, widths, first) for plan, widths in measured.items()}, measured)
    before.calibrate(measured)
    save_table(first, path)
    assert before.is_calibrated(4)
    assert job(load_table(path)).is_calibrated(4)
    after = job(merge([("first", first), ("second", second)]).table)
    assert not after.is_calibrated(4)
    after.calibrate(measured)
    assert after.is_calibrated(4)
    assert all(entry.predicted_us == pytest.approx(entry.measured_us) for entry in after.table.validation)


@given(plans)
def test_prediction_is_the_sum_over_the_kernels(plan: dict[str, int]) -> None:
    expected = [TABLE.latency(kernel.at(plan)) for kernel in NETWORK.kernels]
    assert predict_us(NETWORK, plan, TABLE) == pytest.approx(sum(found.us for found in expected))
    rows = kernel_latencies(NETWORK, plan, TABLE)
    assert [(row.latency_us, row.interpolated) for row in rows] == [
        (found.us, found.interpolated) for found in expected
    ]
    assert [(row.width_in, row.width_out) for row in rows] == [
        (3, plan["first"]),
        (plan["first"], plan["second"]),
        (plan["second"], plan["second"]),
        (plan["second"], 10),
    ]
    is_measured = plan["first"] % 8 == 0 and plan["second"] % 8 == 0
    assert any(row.interpolated for row in rows) != is_measured


def test_costs_are_the_latencies_at_every_combination_of_widths() -> None:
    costs = latency_costs(NETWORK, CANDIDATES, TABLE)
    assert [cost.groups for cost in costs] == [("first",), ("first", "second"), ("second",), ("second",)]
    for kernel, cost in zip(NETWORK.kernels, costs, strict=True):
        for index in np.ndindex(cost.cost.shape):
            plan = {name: CANDIDATES[name][i] for name, i in zip(cost.groups, index, strict=True)}
            assert cost.cost[index] == TABLE.latency(kernel.at(plan)).us


@pytest.mark.parametrize("fixed", ["first", "second"])
def test_group_with_one_candidate_is_no_axis_of_a_cost(fixed: str) -> None:
    candidates = {**CANDIDATES, fixed: (16,)}
    (free,) = {"first", "second"} - {fixed}
    costs = latency_costs(NETWORK, candidates, TABLE)
    assert [cost.groups for cost in costs] == [
        tuple(name for name in kernel.groups if name == free) for kernel in NETWORK.kernels
    ]
    for i, width in enumerate(CANDIDATES[free]):
        total = sum(float(cost.cost[i] if cost.groups else cost.cost) for cost in costs)
        assert total == pytest.approx(predict_us(NETWORK, {fixed: 16, free: width, "linear": 10}, TABLE))


def test_sum_of_the_costs_is_the_prediction_for_every_plan() -> None:
    costs = latency_costs(NETWORK, CANDIDATES, TABLE)
    for first, second in product(range(len(CANDIDATES["first"])), range(len(CANDIDATES["second"]))):
        position = {"first": first, "second": second}
        plan = {name: CANDIDATES[name][i] for name, i in position.items()} | {"linear": 10}
        total = sum(float(cost.cost[tuple(position[name] for name in cost.groups)]) for cost in costs)
        assert total == pytest.approx(predict_us(NETWORK, plan, TABLE))


JOINED_GRAPH = ChannelGraph.trace(Joined(4).eval(), INPUT.zeros())
JOINED = partition(JOINED_GRAPH)


def costs_of_plan(costs: list[KernelCost], position: dict[str, int]) -> float:
    return sum(float(cost.cost[tuple(position[name] for name in cost.groups)]) for cost in costs)


@given(st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_counts_of_a_kernel_that_reads_many_groups_are_exact(places: list[int]) -> None:
    candidates = group_candidates(JOINED_GRAPH, 8, 8)
    position = dict(zip(candidates, places, strict=True))
    plan = {name: widths[min(position[name], len(widths) - 1)] for name, widths in candidates.items()}
    costs = kernel_costs(JOINED, candidates, Kernel.multiply_accumulates)
    assert all(len(cost.groups) <= 2 for cost in costs)
    assert costs_of_plan(costs, position) == sum(kernel.multiply_accumulates(plan) for kernel in JOINED.kernels)


@given(st.lists(st.integers(0, 2), min_size=6, max_size=6), st.randoms(use_true_random=False))
def test_latency_of_a_kernel_that_reads_many_groups_is_never_promised_too_low(places: list[int], random: Any) -> None:
    candidates = group_candidates(JOINED_GRAPH, 8, 8)
    table = empty()
    for address in points_of(JOINED, candidates):
        us = (1 + address.width_in * address.width_out / 64) * random.uniform(0.95, 1.05)
        table.add(address.key, LatencyPoint(address.widths, us, 0.1, 20))
    position = dict(zip(candidates, places, strict=True))
    plan = {name: widths[min(position[name], len(widths) - 1)] for name, widths in candidates.items()}
    predicted = predict_us(JOINED, plan, table)
    promised = costs_of_plan(latency_costs(JOINED, candidates, table), position)
    dense = predict_us(JOINED, JOINED.dense, table)
    assert predicted * (1 - 1e-9) <= promised <= predicted + 0.2 * dense


SUMMED = {"a": (8, 12, 16), "b": (2, 4, 8), "c": (0, 8, 24), "d": (16, 24), "e": (1, 3, 5)}


def summing(read: str, made: str) -> Kernel:
    """A kernel that reads groups, of which the second counts twice, and makes others."""
    widths = [
        WidthExpr(not names, tuple((name, 1 + (i == 1)) for i, name in enumerate(names))) for names in (read, made)
    ]
    return Kernel("summing", KernelKey.make("conv2d", (4, 4), 1), (), tuple(widths))


@pytest.mark.parametrize(
    ("read", "made"), [("c", "ab"), ("ab", "c"), ("ab", "abd"), ("abc", ""), ("ab", "de"), ("e", "abd")]
)
@given(st.randoms(use_true_random=False))
def test_costs_of_sums_are_exact_where_they_can_be_and_never_too_low(read: str, made: str, random: Any) -> None:
    kernel, noise = summing(read, made), dict[tuple[int, int], float]()

    def exact(kernel: Kernel, widths: Mapping[str, int]) -> float:
        return 2 + kernel.width_in.at(widths) * kernel.width_out.at(widths) / 8

    def rough(kernel: Kernel, widths: Mapping[str, int]) -> float:
        at = kernel.width_in.at(widths), kernel.width_out.at(widths)
        return noise.setdefault(at, random.uniform(0, 9))

    exactly, roughly = cost_parts(kernel, SUMMED, exact), cost_parts(kernel, SUMMED, rough)
    for places in product(*(range(len(SUMMED[name])) for name in kernel.groups)):
        position = dict(zip(kernel.groups, places, strict=True))
        widths = {name: SUMMED[name][i] for name, i in position.items()}
        is_there = not kernel.is_removed(widths)
        assert costs_of_plan(roughly, position) >= is_there * rough(kernel, widths) - 1e-9
        if not {*read} & {*made}:
            assert costs_of_plan(exactly, position) == pytest.approx(is_there * exact(kernel, widths))


def test_kernel_that_the_table_lacks_is_an_error_and_never_nothing() -> None:
    graph = ChannelGraph.trace(Tiny(kernel=3), INPUT.zeros())
    network = partition(graph)
    for ask in (
        lambda: predict_us(network, network.dense, TABLE),
        lambda: latency_costs(network, CANDIDATES, TABLE),
    ):
        with pytest.raises(MissingKernelError, match=r"has no kernel 'conv2d 6x6 .*kernel=3x3"):
            ask()
