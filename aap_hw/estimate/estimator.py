"""A device's estimator: what a kernel would take there, by its terms and by the correction that was learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.device.connection import target_of
from aap_hw.device.profile import DeviceProfile
from aap_hw.errors import UserError
from aap_hw.estimate.cores import CORES
from aap_hw.estimate.correction import Correction
from aap_hw.estimate.terms import Machine

METHOD = "instructions and bytes, version 2"


@dataclass(frozen=True)
class Estimator:
    """Estimates for one device.

    Attributes
    ----------
    target : what kernels are compiled for.
    cpu : LLVM's name of the core.
    """

    target: CpuTarget
    cpu: str
    machine: Machine
    correction: Correction

    def latency_us(self, address: Address) -> float:
        """Estimated latency of one call of a kernel at its widths, in microseconds; always the same.

        Raises
        ------
        UserError : the kernel has no code for the target, or none of ours.
        """
        return self.correction.shares.latency_us(self.machine.terms(address, self.target))

    @property
    def method(self) -> str:
        """How estimates are made, and by which figures of the board: with others they are other estimates."""
        board = self.machine.board
        caches = ", ".join(str(kib) for kib in (board.l1_kib, board.l2_kib, board.l3_kib) if kib)
        return (
            f"{METHOD} ({board.clock_ghz:g} GHz, caches of {caches} KiB, {board.memory_gb_s:g} GB/s, "
            f"{board.fork_us:g} µs to start threads)"
        )

    @property
    def network_factor(self) -> float:
        """Latency of a network over the sum of its kernels, each on its own."""
        return self.correction.network_factor

    @property
    def error(self) -> dict[str, Any]:
        """How far off the method is where it was checked: ``machine``, ``networks``, ``plans``, ``mean_pct``, ..."""
        return self.correction.error


def estimator_of(profile: DeviceProfile) -> Estimator:
    """The estimator of a device.

    Raises
    ------
    UserError : it is a GPU, its profile says nothing of its caches, or the pipeline of its core is not known.
    """
    if profile.target.kind == "cuda":
        raise UserError(f"latencies of GPUs are not estimated, and {profile.name} is one; profile it")
    target = target_of(profile)
    assert isinstance(target, CpuTarget)
    cpu = str(target.tvm.attrs.get("mcpu", "generic"))
    if cpu not in CORES:
        raise UserError(
            f"nothing is known of the pipeline of a {cpu}, so no latency of '{profile.name}' can be estimated (known: "
            f"{', '.join(CORES)}); profile it on the device"
        )
    if profile.board is None:
        raise UserError(
            f"the device profile '{profile.name}' has no table [board] with its clock, caches and memory, which an "
            "estimate is made from; profile it on the device, or add one like that of device_profiles/rpi4.toml"
        )
    return Estimator(target, cpu, Machine(CORES[cpu], profile.board, profile.measure.copies), Correction.load())
