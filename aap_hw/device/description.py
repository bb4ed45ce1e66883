"""What a latency depends on, as far as a device can tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# How latencies came about. A device that is there is never estimated; only a table may be.
MEASURED, EMULATED, ESTIMATED = "measured", "emulated", "estimated"


@dataclass(frozen=True)
class DeviceDescription:
    """What a latency depends on, as far as a device can tell. Two tables with equal ones may be merged.

    Attributes
    ----------
    provenance : ``measured``, or ``emulated`` where a program stands in for the device, whose times are no latencies.
    """

    name: str
    profile_hash: str
    cpu: str
    threads: int
    target: dict[str, Any]
    tvm: str
    schedules: int
    provenance: str = MEASURED

    def as_json(self) -> dict[str, Any]:
        """The description as JSON values."""
        return asdict(self)
