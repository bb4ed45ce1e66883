"""Whether the device of a latency table is the one that this process can measure on."""

from __future__ import annotations

from aap_hw.device import load_profile
from aap_hw.device.connection import Device, LocalDevice
from aap_hw.errors import UserError
from aap_hw.lut.table import LatencyTable


def device_of(table: LatencyTable) -> tuple[Device | None, str]:
    """The table's device, ready to measure on, or None and the reason why there is none."""
    name = table.device["name"]
    if table.device["provenance"] != "measured":
        return None, f"the table's latencies are {table.device['provenance']}"
    try:
        profile = load_profile(name)
        profile.require_local("prune")
    except UserError as problem:
        return None, str(problem)
    device = LocalDevice(profile)
    # The CPU first: where it differs, so does the target, and that says less.
    for fact, here in sorted(device.describe().as_json().items(), key=lambda item: item[0] != "cpu"):
        there = table.device[fact]
        if there != here:
            return None, (
                f"the table was measured with the {FACTS.get(fact, fact)} {there!r} and here it is {here!r}; "
                f"'aap-hw profile --device {name} --out FILE' makes a table for this machine"
            )
    return device, ""


FACTS = {"cpu": "CPU", "profile_hash": "device profile", "threads": "thread count", "tvm": "TVM version"}
