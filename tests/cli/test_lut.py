"""`aap-hw lut show` says what a table is of, how it was measured and what is in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aap_hw.lut.file import load_table


def test_text_names_device_measurement_kernels_and_validation(
    aap_hw: Callable[..., Any], table_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    outcome = aap_hw("lut", "show", str(table_file))
    assert (outcome.code, outcome.err) == (0, "")
    table, lines = load_table(table_file), outcome.out.splitlines()
    assert lines[0] == "x86: a CPU elsewhere, 1 thread, measured 2026-01-01"
    assert f"{len(table)} points of {len(table.points)} kernels" in lines[2]
    assert "drift 1.0%" in lines[2]
    for key, rows in table.points.items():
        (line,) = [line for line in lines if line.startswith(f"{key} ")]
        values = [point.median_us for point in rows.values()]
        assert line.split()[-4] == str(len(rows))
        assert line.split()[-1].split("-")[0] == f"{min(values):.4g}"
        assert line.split()[-1].split("-")[-1] == f"{max(values):.4g}"
    assert re.match(r"resnet20 1x3x32x32, dense: predicted 1\.\d+ ms, measured 1\.\d+ ms \(-20\.0%\)", lines[-1])


def test_points_are_printed_when_asked_for(
    aap_hw: Callable[..., Any], table_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    brief, full = aap_hw("lut", "show", str(table_file)).out, aap_hw("lut", "show", str(table_file), "--points").out
    assert len(full.splitlines()) - len(brief.splitlines()) == len(load_table(table_file))
    assert "±" in full


def test_narrow_terminal_loses_nothing(
    aap_hw: Callable[..., Any], table_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    assert "…" not in aap_hw("lut", "show", str(table_file)).out


def test_json_is_alone_on_standard_output(aap_hw: Callable[..., Any], table_file: Path) -> None:
    outcome = aap_hw("lut", "show", str(table_file), "--json")
    assert (outcome.code, outcome.err) == (0, "")
    shown, table = json.loads(outcome.out), load_table(table_file)
    assert shown["device"] == table.device
    assert shown["points"] == len(table) == sum(kernel["points"] for kernel in shown["kernels"].values())
    assert shown["kernels"].keys() == {str(key) for key in table.points}
    assert shown["validation"][0]["input"] == [1, 3, 32, 32]


def test_help_of_every_level_ends_with_an_example(aap_hw: Callable[..., Any]) -> None:
    for arguments in (("lut", "--help"), ("lut", "show", "--help")):
        outcome = aap_hw(*arguments)
        assert outcome.code == 0
        assert outcome.out.rstrip().splitlines()[-1] == "    aap-hw lut show lut/x86.json"
