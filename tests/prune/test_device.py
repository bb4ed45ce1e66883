"""A result is measured only where the table was: elsewhere the latencies stay predictions, and it is said why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from aap_hw.errors import UserError
from aap_hw.prune.device import device_of
from aap_hw.resources import resource_dirs
from tests.synthetic import of_this_device, table


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
        ({"name": "rpi4"}, "the tracker at 127.0.0.1:9190 cannot be reached"),
        ({"provenance": "emulated"}, "the table's latencies are emulated"),
    ],
    ids=["cpu", "threads", "target", "unknown", "board", "emulated"],
)
def test_table_of_another_device_is_not_and_the_reason_is_given(changes: dict[str, Any], reason: str) -> None:
    device, why_not = device_of(table(**{**of_this_device(), **changes}))
    assert device is None
    assert re.search(reason, why_not)


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
