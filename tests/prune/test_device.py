"""A result is measured only where the table was: elsewhere the latencies stay predictions, and it is said why."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aap_hw.device import load_profile
from aap_hw.device.connection import LocalDevice
from aap_hw.device.description import DeviceDescription
from aap_hw.errors import UserError
from aap_hw.prune.device import device_of
from aap_hw.resources import resource_dirs
from tests.device import servers
from tests.synthetic import of_this_device, table, this_device


def test_table_of_this_machine_is_measured_on() -> None:
    device, why_not = device_of(table(**of_this_device()))
    assert device is not None
    assert device.describe().as_json() == of_this_device()
    assert why_not == ""


def test_how_the_points_were_timed_is_no_obstacle() -> None:
    assert device_of(table(**{**of_this_device(), "profile_hash": "another", "tvm": "0.27.1"}))[0] is not None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cpu": "Cortex-A72"}, "the table was measured with the CPU 'Cortex-A72' and here it is"),
        ({"threads": 64}, "thread count 64 and here it is 1"),
        ({"target": {"kind": "llvm", "mcpu": "generic"}}, "target .*generic"),
        ({"name": "mine"}, "there is no device 'mine'"),
        ({"provenance": "emulated"}, "the table's latencies are emulated"),
        ({"provenance": "estimated"}, "the table's latencies are estimated"),
    ],
    ids=["cpu", "threads", "target", "unknown", "emulated", "estimated"],
)
def test_table_of_another_device_is_not_and_the_reason_is_given(changes: dict[str, Any], reason: str) -> None:
    device, why_not = device_of(table(**{**of_this_device(), **changes}))
    assert device is None
    assert re.search(reason, why_not)


def test_board_that_cannot_be_reached_is_not_measured_on_and_the_reason_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nowhere = load_profile("rpi4").reached_by(f"tracker://127.0.0.1:{servers.free_port()}/rpi4")
    monkeypatch.setattr("aap_hw.prune.device.load_profile", lambda _: nowhere)
    device, why_not = device_of(table(**{**of_this_device(), "name": "rpi4"}))
    assert device is None
    assert f"the tracker at 127.0.0.1:{nowhere.connect.port} cannot be reached" in why_not


@pytest.mark.parametrize("where", [("x86", None), (None, "local"), ("x86", "local")], ids=str)
@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"cpu": "Cortex-A72"}, "with the CPU 'Cortex-A72' and here it is"),
        ({"threads": 64}, "with the thread count 64 and here it is 1"),
        ({"target": {"kind": "llvm", "mcpu": "generic"}}, "with the target .*generic"),
        ({"cpu": "QEMU's", "provenance": "emulated"}, 'with the CPU "QEMU\'s" and here it is'),
    ],
    ids=["cpu", "threads", "target", "emulated"],
)
def test_device_that_a_person_names_is_not_left_out_but_refused_if_it_is_another(
    changes: dict[str, Any], difference: str, where: tuple[str | None, str | None]
) -> None:
    with pytest.raises(UserError, match=difference) as refusal:
        device_of(table(**{**of_this_device(), **changes}), *where)
    assert ("--connect local --model NAME --out FILE" in str(refusal.value)) == (where[1] is not None)
    assert str(refusal.value).endswith("without --device and --connect latencies are predicted")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> DeviceDescription:
    """What this device says of itself, as if an emulator stood in for it."""
    description = replace(this_device().describe(), provenance="emulated")
    monkeypatch.setattr(LocalDevice, "describe", lambda _: description)
    return description


def test_emulated_device_of_an_emulated_table_may_be_named_and_is_not_measured_on(emulated: DeviceDescription) -> None:
    assert device_of(table(**emulated.as_json()), "x86", "local") == (None, "the table's latencies are emulated")


def test_device_of_an_estimated_table_may_be_named_and_is_not_looked_for() -> None:
    estimated = table(name="rpi4", provenance="estimated")  # which nothing answers for
    assert device_of(estimated, "rpi4") == (None, "the table's latencies are estimated")
    with pytest.raises(UserError, match="the device profile x86 is of 'x86' and the table of 'rpi4'"):
        device_of(estimated, "x86")
    with pytest.raises(UserError, match=r"nothing is measured beside an estimate; .*--connect rpc://a:1 --model NAME'"):
        device_of(estimated, None, "rpc://a:1")


def test_emulated_device_is_another_than_the_measured_one(emulated: DeviceDescription) -> None:
    device, why_not = device_of(table(**{**emulated.as_json(), "provenance": "measured"}))
    assert device is None
    assert "the table is measured and the times of what is here are emulated" in why_not


def test_device_whose_profile_is_a_file_is_measured_on_if_it_is_the_tables(tmp_path: Path) -> None:
    x86 = (resource_dirs("device_profiles")[0] / "x86.toml").read_text()
    mine = tmp_path / "mine.toml"
    mine.write_text(x86.replace('name = "x86"', 'name = "my-cpu"'))
    of_mine = table(**{**of_this_device(), "name": "my-cpu"})
    found, why_not = device_of(of_mine, str(mine))
    assert found is not None, why_not
    assert found.describe().name == "my-cpu"
    with pytest.raises(UserError, match=r"mine\.toml is of 'my-cpu' and the table of 'x86'; give the profile that the"):
        device_of(table(**of_this_device()), str(mine))
    with pytest.raises(UserError, match="there is no device 'mime'"):
        device_of(of_mine, "mime")
