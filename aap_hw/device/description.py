"""What a latency depends on, as far as a device can tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from aap_hw.compile.keys.key import SCHEDULES

if TYPE_CHECKING:
    from aap_hw.compile.keys.target import DeviceTarget
    from aap_hw.device.profile import DeviceProfile

# How latencies came about. A device that is there is never estimated; only a table may be.
MEASURED, EMULATED, ESTIMATED = "measured", "emulated", "estimated"


@dataclass(frozen=True)
class DeviceDescription:
    """What a latency depends on, as far as a device can tell. Two tables with equal ones may be merged.

    Attributes
    ----------
    cpu : what the device calls its CPU, or GPU.
    target : what TVM compiles for.
    tvm : version of the package that compiles.
    schedules : version of our schedules.
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

    @classmethod
    def of(cls, profile: DeviceProfile, target: DeviceTarget, cpu: str, provenance: str = MEASURED) -> Self:
        """The device of a profile, whose ``cpu`` is called like this, by the compiler that is installed here."""
        import tvm  # two seconds, which whoever only reads a table does without

        return cls(
            profile.name,
            profile.profile_hash,
            cpu,
            profile.threads,
            dict(target.options),
            tvm.__version__,
            SCHEDULES,
            provenance,
        )

    def as_json(self) -> dict[str, Any]:
        """The description as JSON values."""
        return asdict(self)
