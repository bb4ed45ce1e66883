"""A device that was reached by a folder: known by what the program there wrote down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tvm

from aap_hw.compile.keys.key import SCHEDULES
from aap_hw.compile.keys.target import DeviceTarget
from aap_hw.device.board import MEASURED_ONCE
from aap_hw.device.conditions import Conditions
from aap_hw.device.description import EMULATED, MEASURED, DeviceDescription
from aap_hw.device.facts import cpu_name
from aap_hw.device.machine import LoadedLibrary
from aap_hw.device.packages import tvm_packages
from aap_hw.device.profile import DeviceProfile
from aap_hw.errors import UserError


class ReportedDevice:
    """A device by the name of its processor; nothing can be loaded there."""

    board = None

    def __init__(self, profile: DeviceProfile, target: DeviceTarget, cpu: str, *, emulated: bool) -> None:
        self.profile = profile.model_copy(update={"measure": MEASURED_ONCE}) if emulated else profile
        self.target, self.cpu, self.emulated = target, cpu, emulated

    @classmethod
    def of(cls, results: Mapping[str, Any], profile: DeviceProfile, target: DeviceTarget) -> ReportedDevice:
        """The device that results are of.

        Raises
        ------
        UserError : it runs another version of TVM, or the profile means this machine's CPU and it is another.
        """
        facts = results["facts"]
        if facts["tvm"] not in (None, tvm.__version__):
            raise UserError(
                f"the results are of TVM {facts['tvm']} and here it is {tvm.__version__}; install that there with: "
                f"python3 -m pip install {tvm_packages()}"
            )
        here = cpu_name(Path("/proc/cpuinfo").read_text())
        if profile.target.kind == "host" and facts["cpu"] != here:
            raise UserError(
                f"the profile '{profile.name}' is for this machine's CPU, {here}, and the results are of another: "
                f"{facts['cpu']}; give that machine a profile with its CPU under [target], and pack again"
            )
        return cls(profile, target, results["gpu"] or facts["cpu"], emulated=facts["emulated"])

    def describe(self) -> DeviceDescription:
        """What its latencies depend on."""
        return DeviceDescription(
            self.profile.name,
            self.profile.profile_hash,
            self.cpu,
            self.profile.threads,
            dict(self.target.options),
            tvm.__version__,
            SCHEDULES,
            EMULATED if self.emulated else MEASURED,
        )

    def conditions(self) -> Conditions:
        """Nothing is known of it now."""
        return Conditions()

    def load(self, library: Path) -> LoadedLibrary:
        """Not possible: it is not here."""
        raise NotImplementedError(f"{library} would have to be carried there")
