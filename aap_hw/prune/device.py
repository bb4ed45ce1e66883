"""Whether the device of a latency table is the one that this process can measure on."""

from __future__ import annotations

from aap_hw.device import load_profile
from aap_hw.device.connection import Device, LocalDevice
from aap_hw.errors import UserError
from aap_hw.lut.table import LatencyTable


def device_of(table: LatencyTable) -> tuple[Device | None, str]:
    """The table's device, ready to measure on, or None and the reason why there is none."""
    name = table.device["name"]
    try:
        profile = load_profile(name)
        profile.require_local("prune")
    except UserError as problem:
        return None, str(problem)
    device = LocalDevice(profile)
    here, there = device.describe().cpu, table.device["cpu"]
    if here != there:
        return (
            None,
            f"the table was measured on {there!r} and this machine is {here!r}; profile {name} here for a table of its own",
        )
    return device, ""
