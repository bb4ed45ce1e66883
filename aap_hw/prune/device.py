"""Whether the device of a latency table is the one that this process can measure on."""

from __future__ import annotations

from aap_hw.device import load_profile
from aap_hw.device.connection import Device, connect
from aap_hw.errors import UserError
from aap_hw.lut.table import LatencyTable

# What makes it another machine, the plainest first. How points were timed, and by which TVM, is no reason not to
# measure: what is measured corrects the table.
FACTS = {"cpu": "CPU", "threads": "thread count", "target": "target"}


def device_of(table: LatencyTable, connect_to: str | None = None) -> tuple[Device | None, str]:
    """The table's device, ready to measure on, or None and the reason why there is none.

    Raises
    ------
    UserError : a person said where the device is, with ``connect_to``, and it is not to be had there.
    """
    name = table.device["name"]
    if table.device["provenance"] != "measured":
        return None, f"the table's latencies are {table.device['provenance']}"
    try:
        device = connect(load_profile(name).reached_by(connect_to))
    except UserError as problem:
        if connect_to is not None:
            raise
        return None, str(problem)
    description = device.describe().as_json()
    for fact, word in FACTS.items():
        here, there = description[fact], table.device[fact]
        if there != here:
            return None, (
                f"the table was measured with the {word} {there!r} and here it is {here!r}; "
                f"'aap-hw profile --device {name} --out FILE' makes a table for this machine"
            )
    return device, ""
