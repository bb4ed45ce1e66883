"""A board behind a TVM RPC server, as a device like any other.

Each board's session lives in a process of its own (``aap_hw.device.session``), which is killed when the board does not
answer in time. Several boards at once are ``aap_hw.device.boards``.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from aap_hw.compile.keys.target import DeviceTarget, GpuTarget
from aap_hw.compile.library.linking import triple_of
from aap_hw.device.conditions import Conditions, conditions_of
from aap_hw.device.description import EMULATED, MEASURED, DeviceDescription
from aap_hw.device.facts import Facts, cpu_name
from aap_hw.device.packages import tvm_packages
from aap_hw.device.probe import compile_probe
from aap_hw.device.profile import DeviceProfile, MeasureSpec
from aap_hw.device.session import serve
from aap_hw.errors import UserError
from aap_hw.files import scratch_folder
from aap_hw.processes import FORKED, ctrl_c_blocked

# An emulator's times mean nothing, however often they are taken.
MEASURED_ONCE = MeasureSpec(warmup=0, repeats=1, copies=1)
# Our own process, before it hears of any board: an import of TVM on a busy machine.
SECONDS_TO_START = 120.0
# The slowest network that is waited for, and how much longer than the last time the same work may take.
BYTES_A_SECOND = 100_000.0
PATIENCE = 10.0


class BoardLost(UserError):  # noqa: N818 - a circumstance, and work may go on elsewhere
    """A board that does not answer any more; what was measured before is as good as ever."""


@dataclass(frozen=True)
class ServerAddress:
    """Where a server listens, and the keys that it may be registered under."""

    host: str
    port: int
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class RemoteDevice:
    """A board with an open RPC session; one thread at a time may use it.

    Attributes
    ----------
    cpu : what the board calls its CPU, or of a profile for a GPU, its GPU.

    Raises
    ------
    BoardLost : nobody answers at the address, or not as this device.
    UserError : nothing here links for the profile's platform.
    """

    def __init__(self, profile: DeviceProfile, target: DeviceTarget, address: ServerAddress) -> None:
        self.profile, self.target, self.board = profile, target, str(address)
        self._timeout_s = profile.connect.timeout_s
        self._dropped: list[int] = []
        self._pipe, theirs = FORKED.Pipe()
        self._process = FORKED.Process(target=serve, args=(theirs,), daemon=True)
        with ctrl_c_blocked():
            self._process.start()
        theirs.close()
        self._finalizer = weakref.finalize(self, _end, self._process, self._pipe)
        self._receive(SECONDS_TO_START)
        # Only for a board that answers does it matter whether anything here links for it.
        self._ask("connect", address.host, address.port, address.keys, isinstance(target, GpuTarget))
        try:
            self.facts = self._look_around()
            self.cpu: str = self._ask("gpu_name") if isinstance(target, GpuTarget) else self.facts.cpu
        except UserError:
            self.close()
            raise
        if self.facts.emulated:
            self.profile = profile.model_copy(update={"measure": MEASURED_ONCE})

    def _look_around(self) -> Facts:
        with scratch_folder("probe") as folder:
            probe = folder / "probe.so"
            compile_probe(self.target.host, probe)
            architecture = triple_of(self.target.host).split("-")[0]
            facts: Facts = self._ask("look_around", probe, architecture, self.profile.threads)
        return facts

    def check(self) -> None:
        """Refuse a board whose latencies would be of something else than the profile says.

        Raises
        ------
        UserError : it runs another version of TVM, or the profile means this machine's CPU.
        """
        if self.facts.tvm not in (None, tvm.__version__):
            raise UserError(
                f"the board at {self.board} runs TVM {self.facts.tvm} and here it is {tvm.__version__}; "
                f"install it there with: pip install {tvm_packages('[rpc]')}"
            )
        here = cpu_name(Path("/proc/cpuinfo").read_text())
        if self.profile.target.kind == "host" and self.facts.cpu != here:
            raise UserError(
                f"the profile '{self.profile.name}' is for this machine's CPU, {here}, and the board at {self.board} "
                f"is another: {self.facts.cpu}; give the board a profile with its CPU under [target]"
            )

    def describe(self) -> DeviceDescription:
        """What a latency measured here depends on."""
        provenance = EMULATED if self.facts.emulated else MEASURED
        return DeviceDescription.of(self.profile, self.target, self.cpu, provenance)

    def conditions(self) -> Conditions:
        """The state of the board's clock and heat now."""
        # An emulator shows the files of the machine that it runs on.
        return Conditions() if self.facts.emulated else conditions_of(self.read)

    def read(self, path: str) -> bytes | None:
        """A file of the board, or None if it cannot be read."""
        content: bytes | None = self._ask("read", path)
        return content

    def load(self, library: Path) -> RemoteLibrary:
        """Upload a compiled library and load it there.

        Raises
        ------
        UserError : it does not fit on the board's disk, or is for another CPU.
        """
        number = self._ask("load", library, seconds=library.stat().st_size / BYTES_A_SECOND)
        loaded = RemoteLibrary(self._ask, number)
        # Told with the next request: this may happen in any thread, at any time.
        weakref.finalize(loaded, self._dropped.append, number)
        return loaded

    def close(self) -> None:
        """End the session."""
        self._finalizer()

    def abort(self) -> None:
        """End the session under whatever another thread asks of it just now, which then is lost."""
        self._process.kill()

    def _ask(self, request: str, *arguments: Any, seconds: float = 0.0) -> Any:
        """One answer, which may take ``seconds`` longer than the board's usual time to answer."""
        try:
            if self._dropped:
                dropped, self._dropped[:] = list(self._dropped), []
                self._pipe.send(("unload", (dropped,)))
                self._receive(self._timeout_s)
            self._pipe.send((request, arguments))
        except OSError:
            raise self._lost("its session has ended") from None
        return self._receive(self._timeout_s + seconds)

    def _receive(self, seconds: float) -> Any:
        try:
            if not self._pipe.poll(seconds):
                raise self._lost(f"it did not answer for {seconds:.0f} s")
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise self._lost("its session has ended") from None
        if answer.fault is None:
            return answer.value
        if answer.lost:
            raise self._lost(answer.fault)
        cause = RuntimeError(answer.details) if answer.details else None
        raise UserError(f"the board at {self.board}: {answer.fault}") from cause

    def _lost(self, why: str) -> BoardLost:
        self.close()
        return BoardLost(f"the board at {self.board} cannot be used: {why}")


class RemoteLibrary:
    """A library that is loaded on a board."""

    def __init__(self, ask: Any, number: int) -> None:
        self._ask, self._number = ask, number
        self._inputs: dict[str, bytes] = {}
        self._call_us: dict[str, float] = {}

    def set_inputs(self, function: str, inputs: Sequence[np.ndarray]) -> None:
        """Upload the arguments that ``run`` and ``time_us`` use, unless they are there."""
        digest = hashlib.blake2b()
        for array in inputs:
            # As bytes: bfloat16 is a type that buffers do not know.
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        if self._inputs.get(function) != digest.digest():
            size = sum(array.nbytes for array in inputs)
            self._ask("set_inputs", self._number, function, inputs, seconds=size / BYTES_A_SECOND)
            self._inputs[function] = digest.digest()

    def run(self, function: str) -> list[np.ndarray]:
        """Call once and fetch the outputs."""
        outputs: list[np.ndarray] = self._ask("run", self._number, function, seconds=self._expected_s(function, 1))
        return outputs

    def time_us(self, function: str, number: int, repeats: int) -> list[float]:
        """Mean microseconds a call of ``repeats`` samples of ``number`` calls each."""
        # TVM makes one call before those that it times.
        seconds = self._expected_s(function, number * repeats + 1)
        samples: list[float] = self._ask("time_us", self._number, function, number, repeats, seconds=seconds)
        self._call_us[function] = max(samples)
        return samples

    def _expected_s(self, function: str, calls: int) -> float:
        return PATIENCE * calls * self._call_us.get(function, 0.0) / 1e6


def _end(process: BaseProcess, pipe: Connection) -> None:
    process.kill()
    process.join()
    pipe.close()
