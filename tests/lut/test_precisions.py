"""Proves that one table holds a network in several precisions, each with its own kernels, calibration and plans.

The network in int8 is compiled and timed on this machine. The table that it is added to has its float32 kernels by a
formula.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from aap_hw.compile.front.domains import mixed_network
from aap_hw.compile.front.network import Network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.precision import HALF, INT8, MIXED, NetworkPrecision
from aap_hw.compile.keys.target import half_precision_of
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.lut import profiling, subject, validating
from aap_hw.lut.calibrating import Slowdown
from aap_hw.lut.enumeration import group_candidates, points_of
from aap_hw.lut.file import load_table, save_table
from aap_hw.lut.lacking import require_kernels
from aap_hw.lut.predicting import predict_us
from aap_hw.lut.profiling import profile_model
from aap_hw.lut.subject import Workload
from aap_hw.lut.table import LatencyPoint, LatencyTable, MissingKernelError, NetworkName, Validation
from aap_hw.lut.validating import validate_model
from tests.compile.running import needs_bfloat16
from tests.lut import tiny
from tests.lut.tiny import INPUT, Tiny

FLOATING, IN_INT8 = NetworkName("tiny", INPUT), NetworkName("tiny", INPUT, INT8)
GRAPH = ChannelGraph.trace(Tiny(), INPUT.zeros())


def points(network: Network) -> list[tuple[object, ...]]:
    return [(point.key, point.widths) for point in points_of(network, group_candidates(GRAPH, 8, 8))]


def profile(path: Path, floats: tuple[str, ...] = (), precision: NetworkPrecision = INT8) -> LatencyTable:
    workload = Workload("tiny", Tiny(), INPUT, precision=precision, floats=floats)
    return profile_model(workload, tiny.device(), path, workers=1, tolerance=0.0, networks=1)


def validate(path: Path) -> list[Validation]:
    workload = Workload("tiny", Tiny(), INPUT, precision=INT8)
    return validate_model(workload, tiny.device(), path, plans=1, seed=0, workers=1)


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the network in float32 that nobody measured, calibrated by as many networks as `profile` asks for."""
    path, profiled = tmp_path_factory.mktemp("float32") / "table.json", tiny.device()
    how = {**profiled.profile.measure.model_dump(), "statistic": "median", "granularity": 8, "at_most": 8}
    facts = {**profiled.describe().as_json(), "host": "Linux", "date": "2026-01-01"}
    table = LatencyTable(facts, {**how, "reference_us": 80.0, "reference_drift": 0.01})
    network = partition(GRAPH)
    for address in points_of(network, group_candidates(GRAPH, 8, 8)):
        table.add(address.key, LatencyPoint(address.widths, 1.0 * sum(address.widths), 0.1, 3))
    table.slowdowns[FLOATING] = Slowdown(400.0, 420.0, 0.05)
    table.validation.append(Validation("tiny", INPUT, "dense", network.dense, 420.0, 430.0))
    save_table(table, path)
    return path


@pytest.fixture(scope="module")
def in_both(in_float32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That table, to which the network in int8 was added by measuring it."""
    path = tmp_path_factory.mktemp("both") / "table.json"
    path.write_bytes(in_float32.read_bytes())
    profile(path)
    return path


def test_profile_in_int8_measures_all_its_kernels_and_leaves_float32_as_it_was(in_float32: Path, in_both: Path) -> None:
    before, table = load_table(in_float32), load_table(in_both)
    added = partition(GRAPH, INT8)
    assert {kernel.key.precision for kernel in added.kernels} == {"float32_int8", "int8", "int8_float32"}
    held = [(key, widths) for key, of_key in table.points.items() for widths in of_key]
    assert sorted(held) == sorted({*points(partition(GRAPH)), *points(added)})
    assert {key: table.points[key] for key in before.points} == before.points
    assert [entry for entry in table.validation if entry.network == FLOATING] == before.validation
    assert table.slowdowns.keys() == {FLOATING, IN_INT8}
    assert table.slowdowns[FLOATING] == before.slowdowns[FLOATING]


def test_whole_networks_in_int8_calibrate_what_is_predicted_of_them(in_both: Path) -> None:
    table, network = load_table(in_both), partition(GRAPH, INT8)
    entries = [entry for entry in table.validation if entry.network == IN_INT8]
    assert [entry.plan for entry in entries] == ["dense", "calibration-0"]
    slowdown = table.slowdown("tiny", INPUT, INT8)
    for entry in entries:
        assert 0 < entry.measured_us < 1e5
        predicted = predict_us(network, entry.widths, table, slowdown)
        assert entry.predicted_us == pytest.approx(predicted, rel=5e-3)
    assert table.dense_ms("tiny", INPUT, INT8) == entries[0].measured_us / 1e3
    table.validation.append(Validation("tiny", INPUT, "dense", network.dense, 420.0, 440.0, MIXED))
    assert table.dense_ms("tiny", INPUT) == table.dense_ms("tiny", INPUT, MIXED) == 0.43, "these are one network"


def test_nothing_is_measured_twice(in_both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "compiler", None)
    before = in_both.read_bytes()
    profile(in_both)
    assert in_both.read_bytes() == before


def test_random_plans_are_of_the_precision_that_is_asked_for(in_both: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(in_both.read_bytes())
    (entry,) = validate(path)
    assert (entry.plan, entry.network) == ("random-0-0", IN_INT8)
    assert [each.network for each in load_table(path).validation if each.plan == "random-0-0"] == [IN_INT8]


def test_a_table_without_the_precision_is_refused_with_the_command_that_measures_it(
    in_float32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validating, "compiler", None)
    with pytest.raises(MissingKernelError) as refused:
        validate(in_float32)
    assert str(refused.value) == (
        "the latency table of x86 is not of tiny at 3x6x6 in int8 but of tiny at 3x6x6: it lacks 5 of 5 kernels, the "
        f"first is '{partition(GRAPH, INT8).kernels[0].key}'; extend it with 'aap-hw profile --device x86 --model tiny "
        "--input 3x6x6 --precision int8' (and --out unless it is in lut/)"
    )


@needs_bfloat16
def test_in_half_precision_the_table_is_asked_for_what_the_device_has(in_float32: Path) -> None:
    half = half_precision_of(tiny.device().target)
    first = partition(GRAPH, HALF, half=half).kernels[0].key
    assert half in first.precision
    workload = Workload("tiny", Tiny(), INPUT, precision=HALF)
    with pytest.raises(MissingKernelError) as refused:
        validate_model(workload, tiny.device(), in_float32, plans=1, seed=0)
    assert "is not of tiny at 3x6x6 in half precision but of tiny at 3x6x6: it lacks" in str(refused.value)
    assert f"the first is '{first}'; extend it with 'aap-hw profile --device x86 " in str(refused.value)
    assert "--input 3x6x6 --precision half'" in str(refused.value)


def test_a_device_without_kernels_of_the_precision_is_refused_before_anything_is_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("no such kernels")

    monkeypatch.setattr(subject, "require_precision", refuse)
    monkeypatch.setattr(subject.ChannelGraph, "trace", None)
    with pytest.raises(UserError, match="no such kernels"):
        profile(tmp_path / "table.json")
    assert not list(tmp_path.iterdir())


def test_layers_that_may_stay_in_float32_are_measured_too(in_both: Path, tmp_path: Path) -> None:
    path, mixed = tmp_path / "table.json", partition(GRAPH, INT8, floats=("second",))
    path.write_bytes(in_both.read_bytes())
    before = load_table(path)
    with pytest.raises(MissingKernelError, match=r"input 3x6x6 --precision int8 --float-layer second' \(and"):
        require_kernels(mixed, IN_INT8, before, floats=("second",))
    table = profile(path, floats=("second",))
    require_kernels(mixed, IN_INT8, table, floats=("second",))
    lacking = load_table(path)
    floating = next(kernel.key for kernel in mixed.kernels if not kernel.key.types.is_quantized)
    del lacking.points[floating]
    with pytest.raises(MissingKernelError, match=r"has no kernel .* --model NAME --precision int8'"):
        predict_us(mixed, mixed.dense, lacking)
    assert set(points(mixed)) <= {(key, at) for key, of_key in table.points.items() for at in of_key}
    # It is the whole network in int8 that calibrates, as before.
    assert [entry.measured_us for entry in table.validation] == [entry.measured_us for entry in before.validation]
    line, line_before = (each.slowdown("tiny", INPUT, INT8) for each in (table, before))
    assert line.network_us(4.0) == pytest.approx(line_before.network_us(4.0), rel=5e-3)


def test_mixtures_are_measured_with_all_their_kernels_and_calibrated_by_networks_of_their_own(
    in_both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, before, mixed = tmp_path / "table.json", load_table(in_both), mixed_network(GRAPH)
    path.write_bytes(in_both.read_bytes())
    with pytest.raises(MissingKernelError, match=r"input 3x6x6 --precision mixed' \(and"):
        require_kernels(mixed.everything, NetworkName("tiny", INPUT, MIXED), before)
    profile(path, precision=MIXED)
    table = load_table(path)
    held = {(key, at) for key, of_key in table.points.items() for at in of_key}
    assert set(points(mixed.everything)) <= held
    assert set(before.slowdowns.items()) < set(table.slowdowns.items())
    entries = [entry for entry in table.validation if entry.precision == MIXED]
    assert [entry.plan for entry in entries] == ["dense", "calibration-0"]
    slowdown = table.slowdown("tiny", INPUT, MIXED)
    assert mixed.is_floating(entries[0].floats)
    assert not mixed.is_floating(entries[1].floats)
    for entry in entries:
        predicted = predict_us(mixed.network(entry.floats), entry.widths, table, slowdown)
        assert entry.predicted_us == pytest.approx(predicted, rel=5e-3)
    written = path.read_bytes()
    monkeypatch.setattr(profiling, "compiler", None)
    profile(path, precision=MIXED)
    assert path.read_bytes() == written, "nothing is measured twice"


def test_a_layer_that_is_not_there_is_refused(in_both: Path) -> None:
    with pytest.raises(UserError, match=r"--float-layer: 'secnd' is no layer that is in int8; did you mean 'second'\?"):
        profile(in_both, floats=("secnd",))
