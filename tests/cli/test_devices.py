"""`aap-hw devices` shows every profile, as a table for people and as JSON for programs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aap_hw.device import load_profile, profile_names


def test_table_names_every_device_and_how_it_is_reached(
    aap_hw: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    outcome = aap_hw("devices")
    assert (outcome.code, outcome.err) == (0, "")
    rows = {line.split()[0]: line for line in outcome.out.splitlines()[1:]}
    assert list(rows) == profile_names()
    assert "this host's CPU" in rows["x86"]
    assert "this machine" in rows["x86"]
    assert "tracker 127.0.0.1:9190, key rpi4" in rows["rpi4"]
    assert load_profile("jetson-orin").description in rows["jetson-orin"]


def test_narrow_terminal_loses_nothing(aap_hw: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for columns in ("300", "60"):
        monkeypatch.setenv("COLUMNS", columns)
        shown.append(aap_hw("devices").out)
    assert max(map(len, shown[1].splitlines())) <= 60
    # What does not fit goes on in the next line, so that the letters stand in another order.
    wide, narrow = (sorted("".join(text.split())) for text in shown)
    assert narrow == wide


def test_json_is_alone_on_standard_output(aap_hw: Callable[..., Any]) -> None:
    outcome = aap_hw("devices", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    devices = {device["name"]: device for device in json.loads(outcome.out)}
    assert list(devices) == profile_names()
    assert devices["rpi5"]["target"]["mcpu"] == "cortex-a76"
    assert devices["x86"]["profile_hash"] == load_profile("x86").profile_hash


def test_json_goes_to_the_file_that_is_named(aap_hw: Callable[..., Any], tmp_path: Path) -> None:
    outcome = aap_hw("devices", "--json", str(tmp_path / "devices.json"))
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert [d["name"] for d in json.loads((tmp_path / "devices.json").read_text())] == profile_names()


def test_unwritable_file_is_one_sentence(aap_hw: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = aap_hw("devices", "--json", str(tmp_path / "file" / "x.json"))
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("aap-hw: error: cannot write")
    assert outcome.err.count("\n") == 1
