"""Whether a network can be measured on a device: each step from the profile to a timed kernel, as a line.

A step that fails says what to do; those that need it are not tried.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from torch import nn

from aap_hw.compile.keys.target import CpuTarget, DeviceTarget
from aap_hw.compile.library.linking import command_of, runs_here
from aap_hw.compile.library.lowering import compile_network
from aap_hw.device.board import BoardLost, RemoteDevice
from aap_hw.device.conditions import Conditions
from aap_hw.device.connection import Device, LocalDevice, load_here, server_of, target_of, tracker_of
from aap_hw.device.facts import free_memory_mb
from aap_hw.device.machine import LoadedLibrary
from aap_hw.device.packages import tvm_packages
from aap_hw.device.probe import Reader, compile_probe
from aap_hw.device.profile import DeviceProfile, load_profile
from aap_hw.device.timing import Timing, time_function
from aap_hw.errors import UserError
from aap_hw.files import scratch_folder

# Profiling holds a batch of kernels with copies of their weights in memory.
LEAST_FREE_MB = 256
TOY_SHAPE = (1, 16, 12, 12)
# Of float32 sums in another order than PyTorch's.
TOLERANCE = 1e-4
STEPS = (
    "profile valid",
    "target known",
    "linker",
    "address",
    "tracker",
    "TVM version",
    "upload",
    "kernel correct",
    "kernel timed",
    "clock governor",
    "free memory",
)


@dataclass(frozen=True)
class Finding:
    """What a step showed.

    Attributes
    ----------
    ok : None if the step was not tried.
    text : what is there, or what is wrong and what to do about it.
    """

    step: str
    ok: bool | None
    text: str

    def as_json(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return asdict(self)


def examine(name: str, connect_to: str | None = None) -> Iterator[Finding]:
    """Go through ``STEPS`` for a device profile, by name or path; each finding as soon as it is there."""
    steps = iter(STEPS)
    examination = _Examination(name, connect_to)
    for step, look in zip(steps, examination.looks(), strict=True):
        try:
            text = look()
        except UserError as problem:
            yield Finding(step, False, str(problem))
            if step not in _HARMLESS:
                break
        else:
            yield Finding(step, True, text)
    examination.close()
    for step in steps:
        yield Finding(step, None, "not tried, for the reason above")


# Steps that no later one needs.
_HARMLESS = ("TVM version", "kernel correct", "kernel timed", "clock governor", "free memory")


class _Examination:
    def __init__(self, name: str, connect_to: str | None) -> None:
        self._name, self._connect_to = name, connect_to
        self._profile: DeviceProfile
        self._target: DeviceTarget
        self._device: Device
        self._loaded: LoadedLibrary

    def looks(self) -> tuple[Callable[[], str], ...]:
        """What ``STEPS`` are found out by, in their order."""
        return (
            self._profile_valid,
            self._target_known,
            self._linker,
            self._reached,
            self._tracker,
            self._version,
            self._upload,
            self._correct,
            self._timed,
            self._governor,
            self._memory,
        )

    def close(self) -> None:
        device = getattr(self, "_device", None)
        if isinstance(device, RemoteDevice):
            device.close()

    def _profile_valid(self) -> str:
        self._profile = load_profile(self._name).reached_by(self._connect_to)
        return f"{self._profile.name}: {self._profile.description}"

    def _target_known(self) -> str:
        self._target = target_of(self._profile)
        lanes = f", {self._target.lanes} lanes of float32" if isinstance(self._target, CpuTarget) else ""
        return f"{self._profile.target.summary()}{lanes}"

    def _linker(self) -> str:
        """Link something, and run it if the device is this machine."""
        host = self._target.host
        command = shlex.join(command_of(host))
        with scratch_folder("doctor") as folder:
            library = folder / "probe.so"
            compile_probe(host, library)
            if self._profile.connect.kind != "local" or not runs_here(host):
                return f"{command}, which made a library in {folder.parent}"
            if Reader(load_here(library), tvm.cpu()).read("/dev/null") != b"":
                raise UserError(f"a library that {command} made does not work; install another compiler")
        return f"{command}; a library that it made in {folder.parent} was loaded and run"

    def _reached(self) -> str:
        spec = self._profile.connect
        if spec.kind == "local":
            self._device = LocalDevice(self._profile)
            return "this machine"
        if spec.kind == "rpc":
            self._device = board = RemoteDevice(self._profile, self._target, server_of(self._profile))
            return f"{board.board} answers: {board.cpu}"
        tracker = tracker_of(self._profile)
        return f"{tracker} answers and has {tracker.boards().total} with the key {spec.key}"

    def _tracker(self) -> str:
        if self._profile.connect.kind != "tracker":
            return "there is none on the way"
        tracker = tracker_of(self._profile)
        registered = tracker.boards()
        lost = BoardLost(f"{tracker} has no free board; end what else uses them, or restart their servers")
        for _ in range(registered.free):
            try:
                self._device = board = RemoteDevice(self._profile, self._target, tracker.request())
            except BoardLost as problem:
                lost = problem
            else:
                return f"{registered.free} of {registered.total} free; {board.board} answers: {board.cpu}"
        raise lost

    def _version(self) -> str:
        if not isinstance(self._device, RemoteDevice):
            return str(tvm.__version__)
        self._device.check()
        there = self._device.facts.tvm
        if there is None:
            raise UserError(
                f"the board does not show which TVM it runs, here it is {tvm.__version__}; install it there with: "
                f"pip install {tvm_packages('[rpc]')}"
            )
        return f"{there} on both sides"

    def _upload(self) -> str:
        model = nn.Sequential(nn.Conv2d(TOY_SHAPE[1], 24, 3, padding=1), nn.ReLU())
        self._image = torch.randn(TOY_SHAPE, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            self._expected = model(self._image).numpy()
        with scratch_folder("doctor") as folder:
            library = folder / "toy.so"
            compile_network(model, self._image, self._target, library)
            self._loaded = self._device.load(library)
            size = library.stat().st_size
        self._loaded.set_inputs("main", [self._image.numpy()])
        return f"a library of {size / 1000:.0f} kB is loaded there"

    def _correct(self) -> str:
        difference = float(np.abs(self._loaded.run("main")[0] - self._expected).max())
        if not difference <= TOLERANCE:
            raise UserError(
                f"a small convolution differs from PyTorch by {difference:.3g}; the CPU may not be the one under "
                "[target] in the profile"
            )
        return f"a small convolution equals PyTorch's within {difference:.1g}"

    def _timed(self) -> str:
        timing: Timing = time_function(self._loaded, "main", [self._image.numpy()], self._profile.measure)
        if self._device.describe().provenance != "measured":
            return "it is, but the board is emulated: no time of it is a latency"
        return f"{timing.latency_us:.1f} us, spread {timing.spread_us:.1f} us over {timing.samples} samples"

    def _governor(self) -> str:
        conditions: Conditions = self._device.conditions()
        if conditions.governor is None:
            return "the device shows none, so Linux does not choose its clock"
        if conditions.governor != "performance":
            raise UserError(
                f"it is '{conditions.governor}', and latencies will vary with the clock; on the device run: echo "
                "performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
            )
        return conditions.governor

    def _memory(self) -> str:
        device = self._device
        if isinstance(device, RemoteDevice):
            free_mb = device.facts.free_memory_mb
        else:
            free_mb = free_memory_mb(Path("/proc/meminfo").read_text())
        if free_mb is None:
            return "the device does not show it"
        if free_mb < LEAST_FREE_MB:
            raise UserError(f"{free_mb} MB, of which profiling takes {LEAST_FREE_MB}; end other programs on the device")
        return f"{free_mb} MB"
