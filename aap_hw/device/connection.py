"""The one interface through which anything runs on a device, its form for this machine, and how a device is reached.

A device loads a compiled library and times its functions. What is compiled, and which device is meant, is decided
elsewhere; a board behind TVM RPC is ``aap_hw.device.board``, several of a kind are ``aap_hw.device.boards``.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Protocol

import tvm

from aap_hw.compile.gpu.cubin import compile_for_loader
from aap_hw.compile.keys.target import DeviceTarget, GpuTarget, device_target, host_options
from aap_hw.compile.library.linking import runs_here, triple_of
from aap_hw.device.board import RemoteDevice, ServerAddress
from aap_hw.device.conditions import Conditions, conditions
from aap_hw.device.description import DeviceDescription
from aap_hw.device.facts import cpu_name
from aap_hw.device.machine import LoadedLibrary, LoadedModule
from aap_hw.device.profile import DeviceProfile
from aap_hw.device.tracker import Tracker
from aap_hw.errors import UserError
from aap_hw.files import require_loading_from_temporary, scratch_folder


class Device(Protocol):
    """A device that is ready to run compiled libraries."""

    profile: DeviceProfile
    target: DeviceTarget

    @property
    def board(self) -> str | None:
        """Where the board is that this is; None for this machine."""

    def describe(self) -> DeviceDescription:
        """What a latency measured here depends on."""

    def conditions(self) -> Conditions:
        """The state of the device's clock and heat now."""

    def load(self, library: Path) -> LoadedLibrary:
        """Bring a compiled library to the device."""


class LocalDevice:
    """This machine's CPU or GPU."""

    def __init__(self, profile: DeviceProfile) -> None:
        self.profile = profile
        self.target = target_of(profile)
        if not runs_here(self.target.host):
            raise UserError(
                f"the profile '{profile.name}' is for {triple_of(self.target.host)} and this machine is "
                f"{platform.machine()}; say where the device is with --connect rpc://HOST:PORT or tracker://HOST:PORT/KEY"
            )
        # TVM would bind this thread to one core, and with it all threads started later, PyTorch's among them.
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        tvm.get_global_func("runtime.config_threadpool")(1, profile.threads)
        self._device = tvm.cuda(0) if isinstance(self.target, GpuTarget) else tvm.cpu()
        if isinstance(self.target, GpuTarget):
            _require_gpu(self.target, self._device)

    @property
    def board(self) -> str | None:
        """None: this machine."""
        return None

    def describe(self) -> DeviceDescription:
        """What a latency measured here depends on."""
        cpu = self._device.device_name if isinstance(self.target, GpuTarget) else cpu_model()
        return DeviceDescription.of(self.profile, self.target, cpu)

    def conditions(self) -> Conditions:
        """The state of this machine's clock and heat now."""
        return conditions()

    def load(self, library: Path) -> LoadedLibrary:
        """Load a library into this process."""
        return LoadedModule(load_here(library), self._device)


def load_here(library: Path) -> tvm.runtime.Module:
    """Load a copy of a compiled library into this process.

    The dynamic linker takes two files of one path for the same library, even if one replaced the other.

    Raises
    ------
    UserError : libraries cannot be loaded from the temporary folder.
    """
    with scratch_folder("load") as folder:
        copy = shutil.copy(library, folder)
        try:
            return tvm.runtime.load_module(copy)
        except RuntimeError as problem:
            require_loading_from_temporary()
            why = str(problem).strip().splitlines()[-1].rpartition(f"{copy}: ")[2]
            raise UserError(
                f"this machine does not load what was compiled for it in {folder.parent}: {why}; set TMPDIR to another "
                "folder if that is the reason"
            ) from problem


def _require_gpu(target: GpuTarget, device: tvm.runtime.Device) -> None:
    """Refuse to run on a GPU that is not there or is of another architecture; let TVM load what was compiled for it."""
    if not device.exist:
        raise UserError(
            "this machine has no NVIDIA GPU with a driver; 'aap-hw compile' and 'aap-hw deploy --no-run' do without one"
        )
    arch = "sm_" + device.compute_version.replace(".", "")
    if arch != target.arch:
        raise UserError(f"the profile is for a GPU of {target.arch} and this machine's is of {arch}; correct its arch")
    compile_for_loader(target.arch)


def target_of(profile: DeviceProfile) -> DeviceTarget:
    """The compilation target of a profile, with the host's CPU filled in where it asks for that."""
    options = profile.target_config()
    if profile.target.kind == "host":
        options = {**options, **host_options()}
    return device_target(options, profile.threads)


def server_of(profile: DeviceProfile) -> ServerAddress:
    """Where the RPC server of a profile is."""
    spec = profile.connect
    assert spec.host is not None
    assert spec.port is not None
    # A server was started with a key or without one; with a key it usually has the name of its kind.
    return ServerAddress(spec.host, spec.port, (spec.key,) if spec.key else ("", profile.name))


def tracker_of(profile: DeviceProfile) -> Tracker:
    """The RPC tracker that a profile names."""
    spec = profile.connect
    assert spec.host is not None
    assert spec.port is not None
    assert spec.key is not None
    return Tracker(spec.host, spec.port, spec.key, spec.timeout_s)


def open_board(profile: DeviceProfile, target: DeviceTarget, address: ServerAddress) -> RemoteDevice:
    """A board that answers and is what the profile says; see ``RemoteDevice`` for what may be wrong."""
    board = RemoteDevice(profile, target, address)
    try:
        board.check()
    except UserError:
        board.close()
        raise
    return board


def cpu_model() -> str:
    """The name that the operating system has for this machine's CPU."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    return cpu_name(cpuinfo) or platform.processor() or platform.machine()
