"""Real TVM RPC servers and a tracker on the loopback address, each a process that can be killed, stopped and resumed.

They are forked from one process that has imported TVM already, as are sessions with boards. What runs in
them is what ``tvm.exec.rpc_server`` and ``tvm.exec.rpc_tracker`` run.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from tvm import rpc

from aap_hw.processes import FORKED


class Server:
    """A process that serves until it is killed; also a context that kills it."""

    def __init__(self, port: int, work: Callable[..., None], *arguments: Any) -> None:
        self.port = port
        self._process = FORKED.Process(target=_run, args=(work, port, *arguments))
        self._process.start()
        deadline = time.monotonic() + 120
        while not _listens(port):
            assert self._process.is_alive(), "the server ended at once"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        """End it and its sessions as a power cut would, if that has not happened yet."""
        if self._process.is_alive():
            self._signal(signal.SIGKILL)
            self._process.join()

    def stop(self) -> None:
        """Make it hang: it stays there and does nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.killpg(self._process.pid, number)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def board(
    key: str = "",
    tracker: Server | None = None,
    *,
    port: int | None = None,
    largest_file: int | None = None,
    clock: Callable[..., Any] | None = None,
) -> Server:
    """An RPC server.

    ``largest_file`` is how many bytes a file of it can have: then its disk is full. ``clock`` takes the place of
    TVM's time evaluator, see ``tests.device.sleeping``.
    """
    if tracker is None:
        return Server(port or free_port(), _serve, key, None, largest_file, clock)
    before = _free(tracker)
    server = Server(port or free_port(), _serve, key, ("127.0.0.1", tracker.port), largest_file, clock)
    deadline = time.monotonic() + 60
    while _free(tracker) == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return server


def tracker() -> Server:
    """An RPC tracker."""
    return Server(free_port(), _track)


def _free(tracker: Server) -> int:
    summary = rpc.connect_tracker("127.0.0.1", tracker.port).summary()
    return sum(queue["free"] for queue in summary["queue_info"].values())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    """Whether a port is listened at, without connecting to it: a server would take that for a session."""
    wanted = f"0100007F:{port:04X}"
    with open("/proc/net/tcp") as table:
        return any(line.split()[1] == wanted and line.split()[3] == "0A" for line in table)


def _run(work: Callable[..., None], *arguments: Any) -> None:
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    multiprocessing.set_start_method(
        "fork", force=True
    )  # as usual, and not this file's: sessions are forks of a server
    work(*arguments)


def _end_with_parent() -> None:
    # A test process that was killed stops no server of its own.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


def _serve(
    port: int, key: str, where: tuple[str, int] | None, largest_file: int | None, clock: Callable[..., Any] | None
) -> None:
    import tvm_ffi
    from tvm.rpc.server import PopenRPCServerState

    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if clock is not None:
        tvm_ffi.register_global_func("runtime.RPCTimeEvaluator", clock, override=True)
    PopenRPCServerState("127.0.0.1", port, port + 1, tracker_addr=where, key=key, silent=True).thread.join()


def _track(port: int) -> None:
    from tvm.rpc.tracker import PopenTrackerServerState

    PopenTrackerServerState("127.0.0.1", port, port + 1, silent=True).thread.join()


def wait_until_free(tracker: Server, key: str) -> None:
    """Wait until a board under the key is free: the tracker hears of it a moment after the session's end."""
    deadline = time.monotonic() + 20
    while not rpc.connect_tracker("127.0.0.1", tracker.port).summary()["queue_info"][key]["free"]:
        assert time.monotonic() < deadline, "the board is held"
        time.sleep(0.02)
