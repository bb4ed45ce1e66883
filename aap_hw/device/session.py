"""A TVM RPC session in a process of its own, which answers requests that come through a pipe.

RPC calls wait in native code for as long as the board is silent, and nothing but the end of their process ends them:
``aap_hw.device.board`` is on the other end of the pipe, and kills this process when its patience is over. What goes
wrong here is an answer, not an exception.
"""

from __future__ import annotations

import os
import queue
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from tvm import rpc

from aap_hw.device.facts import Facts, facts_of
from aap_hw.device.machine import LoadedModule
from aap_hw.device.packages import tvm_packages
from aap_hw.device.probe import Reader
from aap_hw.foreign import LONGEST, internal_error, is_for_developers, shortened

# e_machine of an ELF file: a number, 18 bytes from its beginning.
_ELF_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes
    ----------
    fault : why there is no value, in words; None if there is one.
    lost : whether the session is of no use any more.
    details : what TVM says about it, for ``--debug``.
    """

    value: Any = None
    fault: str | None = None
    lost: bool = False
    details: str = ""


class Refusal(Exception):  # noqa: N818 - becomes an answer
    """A request that the board refused, in words for a person."""


class Session:
    """The requests that a session answers, by the names of its public methods."""

    def __init__(self) -> None:
        self._libraries: dict[int, LoadedModule] = {}
        self._count = 0

    def connect(self, host: str, port: int, keys: Sequence[str], on_gpu: bool) -> None:
        """Begin the session with the first of the keys that the server takes."""
        where = f"{host}:{port}"
        for key in keys:
            try:
                self._remote = rpc.connect(host, port, key)
                break
            except RuntimeError as problem:
                if "matches key" not in str(problem):
                    raise Refusal(_why_not_connected(str(problem), where)) from problem
        else:
            raise Refusal(
                f"the server at {where} is not registered as {' or '.join(map(repr, filter(None, keys)))}; give the "
                "key that it was started with: --connect rpc://HOST:PORT/KEY"
            )
        self._device = self._remote.cuda(0) if on_gpu else self._remote.cpu(0)
        if not self._device.exist:
            raise Refusal(
                f"the server at {where} has no NVIDIA GPU that its TVM can use; start it without TVM_USE_RUNTIME_LIB, "
                "which leaves GPUs out, and see that the driver is installed"
            )

    def look_around(self, probe: Path, architecture: str, threads: int) -> Facts:
        """What the board is, as the probe reads it there; an emulator keeps its own number of threads."""
        # Without the probe, a file can only be read back to see whether it has arrived.
        file = self._upload(probe)
        if len(self._remote.download(file)) != probe.stat().st_size:
            raise Refusal(_DISK_FULL)
        self._reader = Reader(self._load(file, probe), self._remote.cpu(0))
        facts = facts_of(self._reader.read, architecture)
        if not facts.emulated:  # an emulator has fewer cores than it shows, and threads that wait for each other
            self._remote.get_function("runtime.config_threadpool")(1, threads)
        return facts

    def gpu_name(self) -> str:
        """What its driver calls the GPU."""
        return str(self._device.device_name)

    def read(self, path: str) -> bytes | None:
        """Content of a file of the board."""
        return self._reader.read(path)

    def load(self, library: Path) -> int:
        """Upload a library and load it; gives its number."""
        file, size = self._upload(library), library.stat().st_size
        # TVM's server reports no write that fails.
        if not self._reader.holds(self._remote.get_function("tvm.rpc.server.workpath")(file), size):
            self._remote.remove(file)
            raise Refusal(_DISK_FULL)
        self._libraries[self._count] = LoadedModule(self._load(file, library), self._device)
        self._remote.remove(file)  # what is loaded stays
        return self._count

    def unload(self, numbers: Sequence[int]) -> None:
        """Forget libraries, and with them their inputs' memory."""
        for number in numbers:
            self._libraries.pop(number, None)

    def set_inputs(self, number: int, function: str, inputs: Sequence[np.ndarray]) -> None:
        """See ``LoadedLibrary``."""
        self._libraries[number].set_inputs(function, inputs)

    def run(self, number: int, function: str) -> list[np.ndarray]:
        """See ``LoadedLibrary``."""
        return self._libraries[number].run(function)

    def time_us(self, number: int, function: str, calls: int, repeats: int) -> list[float]:
        """See ``LoadedLibrary``."""
        return self._libraries[number].time_us(function, calls, repeats)

    def answer(self, request: str, arguments: Sequence[Any]) -> Answer:
        """The answer to one request, whatever happens."""
        try:
            return Answer(getattr(self, request)(*arguments))
        except Refusal as refusal:
            return Answer(fault=str(refusal), lost=request in ("connect", "look_around"))
        except Exception as problem:  # whatever it is, it is for the other process to say
            if self._is_alive():
                return Answer(fault=_last_line(str(problem)), details=str(problem))
            broken = "the connection broke; its server's process died, or it is off"
            return Answer(fault=broken, lost=True, details=str(problem))

    def _upload(self, library: Path) -> str:
        self._count += 1
        file = f"aap-hw-{self._count}.so"
        self._remote.upload(str(library), file)
        return file

    def _load(self, file: str, library: Path) -> Any:
        try:
            return self._remote.load_module(file)
        except RuntimeError as problem:
            # The dynamic linker of a board calls a library of another CPU missing.
            here, there = _machine(library.read_bytes()), _machine(bytes(self._remote.download("/proc/self/exe")))
            if here != there:
                raise Refusal(
                    f"the board runs {there} programs, and the library is for {here}; correct [target] in the profile"
                ) from problem
            raise Refusal(f"the board cannot load what was compiled for it: {_last_line(str(problem))}") from problem

    def _is_alive(self) -> bool:
        try:
            self._remote.get_function("tvm.rpc.server.workpath")("")
        except Exception:  # an answer of any other kind is none
            return False
        return True


_DISK_FULL = "the disk of the board is full: a library did not arrive whole; free some space there, in /tmp too"


def _why_not_connected(text: str, where: str) -> str:
    if "Connect to" in text:
        return (
            f"nothing listens at {where}; start the server there with: python -m tvm.exec.rpc_server "
            f"--host ADDRESS --port {where.rpartition(':')[2]}"
        )
    if "protocol" in text.lower():
        return (
            f"the server at {where} speaks another version of TVM's RPC; install this one there with: "
            f"pip install {tvm_packages('[rpc]')}"
        )
    return f"the server at {where} refused the connection: {_last_line(text)}"


def _machine(elf: bytes) -> str:
    """Architecture of a program or library by its first bytes."""
    (machine,) = struct.unpack_from("<H", elf, 18) if elf[:4] == b"\x7fELF" and len(elf) >= 20 else (0,)
    return _ELF_MACHINES.get(machine, f"ELF machine {machine}")


def _last_line(text: str) -> str:
    """The line of TVM's message that has the cause, if it is for users."""
    line = "".join(text.strip().splitlines()[-1:])
    return internal_error("TVM") if not line or is_for_developers(line) else shortened(line, LONGEST)


def serve(pipe: Connection) -> None:
    """Answer what comes through a pipe until its other end is closed."""
    os.setsid()  # Ctrl-C is for the other process, which decides what becomes of the work
    requests: queue.SimpleQueue[tuple[str, Sequence[Any]]] = queue.SimpleQueue()

    def listen() -> None:
        # In a thread of its own: the other process may end while a call waits for the board.
        try:
            while True:
                requests.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    session = Session()
    pipe.send(Answer("ready"))
    while True:
        pipe.send(session.answer(*requests.get()))
