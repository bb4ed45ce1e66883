"""Proves what is read of clock and heat, from folders like those of a board, a laptop and a virtual machine."""

from __future__ import annotations

from pathlib import Path

from aap_hw.device.conditions import Conditions, conditions


def write(system: Path, name: str, text: str) -> None:
    (system / name).parent.mkdir(parents=True, exist_ok=True)
    (system / name).write_text(text)


def test_hottest_sensor_and_the_governor_are_read(tmp_path: Path) -> None:
    for core in range(4):
        write(tmp_path, f"devices/system/cpu/cpu{core}/cpufreq/scaling_governor", "ondemand\n")
    write(tmp_path, "class/thermal/thermal_zone0/temp", "48312\n")
    write(tmp_path, "class/thermal/thermal_zone1/temp", "51500\n")
    assert conditions(tmp_path) == Conditions("ondemand", 51.5)


def test_cores_with_different_governors_are_all_named(tmp_path: Path) -> None:
    write(tmp_path, "devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    write(tmp_path, "devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance\n")
    assert conditions(tmp_path).governor == "performance+powersave"


def test_what_is_not_shown_is_none(tmp_path: Path) -> None:
    assert conditions(tmp_path) == Conditions(None, None)
    assert conditions(tmp_path / "none") == Conditions(None, None)


def test_sensors_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "class/thermal/thermal_zone0/temp", "0\n")
    write(tmp_path, "class/thermal/thermal_zone1/temp", "-274000\n")
    write(tmp_path, "class/thermal/thermal_zone2/temp", "not a number\n")
    (tmp_path / "class/thermal/thermal_zone3/temp").mkdir(parents=True)
    write(tmp_path, "class/thermal/thermal_zone4/temp", "")
    (tmp_path / "class/thermal/thermal_zone5").mkdir()
    (tmp_path / "class/thermal/thermal_zone5/temp").write_bytes(b"\xff\xfe")
    assert conditions(tmp_path).temperature_c is None
    write(tmp_path, "class/thermal/thermal_zone6/temp", "40000")
    assert conditions(tmp_path).temperature_c == 40.0
