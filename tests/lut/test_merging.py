"""Tables of one device become one that has every point, at one speed, and says what they disagree on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.errors import UserError
from aap_hw.inputs import Inputs
from aap_hw.lut.calibrating import Slowdown
from aap_hw.lut.comparing import compare
from aap_hw.lut.file import load_table, save_table
from aap_hw.lut.merging import merge
from aap_hw.lut.table import LatencyPoint, LatencyTable, NetworkName, Validation
from tests.synthetic import ESTIMATE

CONV = KernelKey.make("conv2d", (8, 8), 1, kernel=(3, 3))
LINEAR = KernelKey.make("linear", (), 1)
NETWORK, VGG = (NetworkName(name, Inputs.of((3, 32, 32))) for name in ("resnet20", "vgg"))


def table(points: dict[tuple[KernelKey, int, int], float], reference_us: float = 100.0, **device: Any) -> LatencyTable:
    facts = {"name": "x86", "cpu": "a CPU", "threads": 1, "target": {"kind": "llvm"}, "schedules": 2, "tvm": "0.27.0"}
    facts |= {"profile_hash": "0" * 12, "host": "Linux", "date": "2026-01-01", "provenance": "measured", **device}
    how = {"warmup": 3, "repeats": 20, "copies": 4, "statistic": "median", "granularity": 4, "at_most": 8}
    made = LatencyTable(facts, {**how, "reference_us": reference_us, "reference_drift": 0.01})
    for (key, width_in, width_out), us in points.items():
        made.add(key, LatencyPoint((width_in, width_out), us, 0.1, 20))
    return made


def test_every_point_is_there_at_the_speed_of_the_first_table() -> None:
    one = table({(CONV, 8, 8): 10.0})
    # The machine was half as fast that day.
    two = table({(CONV, 8, 16): 40.0, (LINEAR, 8, 10): 2.0}, reference_us=200.0, date="2026-02-02")
    merged = merge([("one", one), ("two", two)])
    assert {(str(k), *w): p.latency_us for k, points in merged.table.points.items() for w, p in points.items()} == {
        (str(CONV), 8, 8): 10.0,
        (str(CONV), 8, 16): 20.0,
        (str(LINEAR), 8, 10): 1.0,
    }
    assert merged.conflicts == ()
    assert merged.table.device["date"] == "2026-02-02"
    assert one.points[CONV].keys() == {(8, 8)}, "its sources are left alone"


def test_points_that_differ_are_named_and_the_quicker_one_is_kept() -> None:
    one = table({(CONV, 8, 8): 10.0, (CONV, 8, 16): 20.0})
    two = table({(CONV, 8, 8): 9.9, (CONV, 8, 16): 30.0})
    for named in ([("one", one), ("two", two)], [("two", two), ("one", one)]):
        merged = merge(named)
        assert merged.table.latency(Address(CONV, (8, 8))).us == 9.9
        assert merged.table.latency(Address(CONV, (8, 16))).us == 20.0
        (conflict,) = merged.conflicts
        assert (conflict.address.width_out, conflict.kept_us, conflict.other_us, conflict.kept) == (
            16,
            20.0,
            30.0,
            "one",
        )


def test_calibration_of_a_network_stays_with_its_measurements() -> None:
    one, two = table({(CONV, 8, 8): 10.0}), table({(CONV, 8, 8): 20.0}, reference_us=200.0)
    for each, slow in ((one, Slowdown(10.0, 12.0, 0.0)), (two, Slowdown(20.0, 28.0, 0.0))):
        each.slowdowns[NETWORK] = slow
        each.validation.append(
            Validation(NETWORK.model, NETWORK.inputs, "dense", {"conv1": 16}, slow.measured_us, slow.measured_us)
        )
    two.slowdowns[VGG] = Slowdown(20.0, 22.0, 0.1)
    merged = merge([("one", one), ("two", two)])
    assert merged.table.slowdowns == {
        NETWORK: Slowdown(10.0, 12.0, 0.0),
        VGG: Slowdown(10.0, 11.0, 0.1),
    }
    assert [entry.measured_us for entry in merged.table.validation] == [12.0]
    assert merged.networks == ("resnet20 at 3x32x32, of two",)


def test_a_network_in_int8_is_another_than_in_float32() -> None:
    in_int8 = replace(NETWORK, precision="int8")
    tables = [table({}), table({}, reference_us=200.0), table({})]
    for each, name, us in zip(tables, (NETWORK, in_int8, in_int8), (12.0, 8.0, 3.0), strict=True):
        each.slowdowns[name] = Slowdown(us, us, 0.0)
        each.validation.append(Validation(name.model, name.inputs, "dense", {"conv1": 16}, us, us, name.precision))
    merged = merge(list(zip(("one", "two", "three"), tables, strict=True)))
    assert merged.table.slowdowns == {NETWORK: Slowdown(12.0, 12.0, 0.0), in_int8: Slowdown(4.0, 4.0, 0.0)}
    assert merged.table.dense_ms(NETWORK.model, NETWORK.inputs) == 0.012
    assert merged.table.dense_ms(NETWORK.model, NETWORK.inputs, "int8") == 0.004
    assert merged.networks == ("resnet20 at 3x32x32 in int8, of three",)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"threads": 2}, "two and one are not of one device: threads is 2 and 1"),
        ({"schedules": 3}, "two and one are not of one device: schedules is 3 and 2"),
        ({"provenance": "emulated"}, "of two are emulated and those of one are measured: a table never mixes"),
    ],
)
def test_tables_of_other_devices_or_schedules_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        merge([("one", table({})), ("two", table({}, **change))])
    other = table({})
    other.measurement["granularity"] = 8
    with pytest.raises(UserError, match="not of one measurement: granularity is 8 and 4"):
        merge([("one", table({})), ("two", other)])


def test_estimates_are_merged_with_estimates_and_never_with_what_was_measured() -> None:
    how = {"granularity": 4, "at_most": 8, **ESTIMATE}

    def estimated(points: dict[tuple[KernelKey, int, int], float]) -> LatencyTable:
        made = table(points, provenance="estimated", cpu="another name for the CPU")
        return LatencyTable(made.device, how, made.points)

    merged = merge([("one", estimated({(CONV, 8, 8): 1.0})), ("two", estimated({(CONV, 8, 16): 2.0}))])
    assert (len(merged.table), merged.table.measurement) == (2, how)
    with pytest.raises(UserError, match="of two are estimated and those of one are measured: a table never mixes"):
        merge([("one", table({})), ("two", estimated({}))])


def test_difference_counts_what_is_shared_and_finds_the_farthest_apart() -> None:
    one = table({(CONV, 8, n): 10.0 for n in range(1, 6)} | {(LINEAR, 8, 10): 1.0})
    two = table({(CONV, 8, n): 10.0 * n for n in range(2, 8)}, threads=2)
    found = compare(one, two)
    assert (len(found.shared), found.only_first, found.only_second) == (4, 2, 2)
    assert [point.ratio for point in found.farthest(2)] == [5.0, 4.0]
    assert math.isclose(found.quantiles()["median"], 3.5)
    assert found.facts == (("threads", 1, 2),)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    grid = {(CONV, i, o): 1.0 + i * o / 10 for i in (8, 16) for o in (8, 16, 24)}
    save_table(table(grid), tmp_path / "one.json")
    save_table(table({at: us * (2 if at[2] == 24 else 1) for at, us in grid.items()}), tmp_path / "two.json")
    return tmp_path / "one.json", tmp_path / "two.json"


def test_commands_merge_and_compare_files(aap_hw: Callable[..., Any], files: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = map(str, files)
    merged = aap_hw("lut", "merge", one, two, "--out", str(tmp_path / "both.json"))
    assert (merged.code, merged.err) == (0, "")
    assert "2 points differ by more than 5% between tables; the quicker is kept:" in merged.out
    assert load_table(tmp_path / "both.json").points == load_table(files[0]).points
    again = aap_hw("lut", "merge", one, two, "--out", str(tmp_path / "both.json"))
    assert (again.code, "exists already; give --out another name" in again.err) == (2, True)
    compared = aap_hw("lut", "diff", one, two)
    assert (compared.code, compared.err) == (0, "")
    assert "6 points of both" in compared.out
    assert "(+100.0%)" in compared.out


@pytest.mark.parametrize("kind", ["png", "html"])
def test_commands_draw_files(aap_hw: Callable[..., Any], files: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    one, two = map(str, files)
    beginning = {"png": b"\x89PNG", "html": b"<!DOCTYPE html>"}[kind]
    for name, command in {
        "stairs": ("plot", one, "--out", str(tmp_path / f"stairs.{kind}")),
        "both": ("diff", one, two, "--out", str(tmp_path / f"both.{kind}")),
    }.items():
        outcome = aap_hw("lut", *command)
        assert (outcome.code, outcome.err) == (0, "")
        content = (tmp_path / f"{name}.{kind}").read_bytes()
        assert content.startswith(beginning)
        assert len(content) > 10_000
    for out, kernel, sentence in (
        ("x.svg", "", "is neither a .png nor an .html file"),
        ("x.png", "pool", "no kernel of several widths whose key contains 'pool'"),
    ):
        outcome = aap_hw("lut", "plot", one, "--out", str(tmp_path / out), "--kernel", kernel)
        assert (outcome.code, sentence in outcome.err) == (2, True)
        assert not (tmp_path / out).exists()


def test_only_kernels_whose_key_contains_a_text_are_drawn(aap_hw: Callable[..., Any], tmp_path: Path) -> None:
    points = {(key, width, 8): 1.0 * width for key in (CONV, LINEAR) for width in (8, 16)}
    save_table(table(points), tmp_path / "table.json")
    command = ("lut", "plot", str(tmp_path / "table.json"), "--out", str(tmp_path / "stairs.html"))
    for kernel, drawn in (("", [CONV, LINEAR]), ("linear", [LINEAR])):
        outcome = aap_hw(*command, "--kernel", kernel)
        assert outcome.out == f"{tmp_path}/stairs.html: {len(drawn)} kernel{'s' if len(drawn) > 1 else ''}\n", outcome
        page = (tmp_path / "stairs.html").read_text("utf-8")
        assert [key for key in (CONV, LINEAR) if str(key) in page] == drawn
