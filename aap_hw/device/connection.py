"""The one interface through which anything runs on a device, and its form for this machine.

A device loads a compiled library and times its functions. What is compiled, and which device is meant, is decided
elsewhere; boards behind TVM RPC will implement the same protocol.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tvm
from tvm import relax

from aap_hw.compile.build import SCHEDULES
from aap_hw.compile.target import CpuTarget, host_options
from aap_hw.device.conditions import Conditions, conditions
from aap_hw.device.profile import DeviceProfile


@dataclass(frozen=True)
class DeviceDescription:
    """What a latency depends on, as far as a device can tell. Two tables with equal ones may be merged."""

    name: str
    profile_hash: str
    cpu: str
    threads: int
    target: dict[str, Any]
    tvm: str
    schedules: int

    def as_json(self) -> dict[str, Any]:
        """The description as JSON values."""
        return asdict(self)


class LoadedLibrary(Protocol):
    """A compiled library on a device."""

    def set_inputs(self, function: str, inputs: Sequence[np.ndarray]) -> None:
        """Upload the arguments that ``run`` and ``time_us`` use."""

    def run(self, function: str) -> np.ndarray:
        """Call once and fetch the output."""

    def time_us(self, function: str, number: int, repeats: int) -> list[float]:
        """Mean microseconds a call of ``repeats`` samples of ``number`` calls each."""


class Device(Protocol):
    """A device that is ready to run compiled libraries."""

    profile: DeviceProfile
    target: CpuTarget

    def describe(self) -> DeviceDescription:
        """What a latency measured here depends on."""

    def conditions(self) -> Conditions:
        """The state of the device's clock and heat now."""

    def load(self, library: Path) -> LoadedLibrary:
        """Bring a compiled library to the device."""


class LocalDevice:
    """This machine's CPU."""

    def __init__(self, profile: DeviceProfile) -> None:
        self.profile = profile
        self.target = target_of(profile)
        # TVM would bind this thread to one core, and with it all threads started later, PyTorch's among them.
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        tvm.get_global_func("runtime.config_threadpool")(1, profile.threads)

    def describe(self) -> DeviceDescription:
        """What a latency measured here depends on."""
        return DeviceDescription(
            self.profile.name,
            self.profile.profile_hash,
            cpu_model(),
            self.profile.threads,
            dict(self.target.options),
            tvm.__version__,
            SCHEDULES,
        )

    def conditions(self) -> Conditions:
        """The state of this machine's clock and heat now."""
        return conditions()

    def load(self, library: Path) -> LoadedLibrary:
        """Load a copy of a library into this process.

        The dynamic linker takes two files of one path for the same library, even if one replaced the other.
        """
        with tempfile.TemporaryDirectory(prefix="aap-hw-load-") as folder:
            copy = shutil.copy(library, folder)
            machine = relax.VirtualMachine(tvm.runtime.load_module(copy), tvm.cpu())
        return _VirtualMachine(machine, tvm.cpu())


class _VirtualMachine:
    def __init__(self, machine: relax.VirtualMachine, device: tvm.runtime.Device) -> None:
        self._machine, self._device = machine, device

    def set_inputs(self, function: str, inputs: Sequence[np.ndarray]) -> None:
        self._machine.set_input(function, *[tvm.runtime.tensor(array, self._device) for array in inputs])

    def run(self, function: str) -> np.ndarray:
        self._machine.invoke_stateful(function)
        output: np.ndarray = self._machine.get_outputs(function).numpy()
        return output

    def time_us(self, function: str, number: int, repeats: int) -> list[float]:
        evaluator = self._machine.time_evaluator("invoke_stateful", self._device, number=number, repeat=repeats)
        return [seconds * 1e6 for seconds in evaluator(function).results]


def target_of(profile: DeviceProfile) -> CpuTarget:
    """The compilation target of a profile, with the host's CPU filled in where it asks for that."""
    options = profile.target_config()
    if profile.target.kind == "host":
        options = {**options, **host_options()}
    return CpuTarget.of(options, profile.threads)


def connect(profile: DeviceProfile, command: str) -> Device:
    """Reach the device of a profile, for the sub-command ``command``.

    Raises
    ------
    UserError : the device cannot be reached with this version.
    """
    profile.require_local(command)
    return LocalDevice(profile)


def cpu_model() -> str:
    """The name that the operating system has for this machine's CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    family = [line.partition(":")[2].strip() for line in lines if line.startswith(("cpu family", "model\t"))][:2]
    if not named:
        return platform.processor() or platform.machine()
    return f"{named[0]} (family {family[0]}, model {family[1]})" if len(family) == 2 else named[0]
